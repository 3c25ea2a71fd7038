"""Which engine executes a plan, as a user names it: evalkit's own, or a model class of lm-eval's
with its arguments.

Both stand in the run's identity and are published with the record, so nothing that looks like a
secret and no path of this host may be among them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from evalkit.base.errors import EvalkitError

OWN = "evalkit"
FOREIGN = "lm-eval:"
_KEY = re.compile(
    r"(^|[_.-])(api_?key|key|secret|passw(or)?d|auth|headers?|credentials?|bearer)([_.-]|$)"
    r"|(^|[_.-])(auth|access|api|hf|bearer|refresh|session)_?token$|^token$",
    re.I,
)
# How the usual services' tokens begin, a JSON web token, a password or a key in an address, and a
# long word of small and capital letters and digits.
_VALUE = re.compile(
    r"^(sk|pk|rk|hf|gh[opsu]|github_pat|glpat|xox[abprs])[-_]\w{16,}|^(AIza|AKIA)\w{12,}"
    r"|^sk-\w+-\w{8,}|^[Bb]earer |^eyJ[\w-]{8,}\.|://[^/\s]*@|[?&](api_?key|key|token|secret|sig)="
    r"|^(?=\w*[a-z])(?=\w*[A-Z])(?=\w*[0-9])\w{28,}$",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine's name, as a record bears it, and its arguments as they were given."""

    name: str = OWN
    args: dict[str, str] = field(default_factory=dict)

    @property
    def foreign(self) -> str:
        """The name of lm-eval's model class; empty for evalkit's own engine."""
        return self.name.removeprefix(FOREIGN) if self.name != OWN else ""


def parse(name: str, given: Sequence[str]) -> Choice:
    """The engine that `--engine NAME --engine-arg KEY=VALUE ...` asks for.

    Raises EvalkitError for an unknown name, an argument of another form, and what must not be
    published.
    """
    if name != OWN and not name.removeprefix(FOREIGN):
        raise EvalkitError(f"'{name}' names no model class", fix="e.g. --engine lm-eval:vllm")
    if name != OWN and not name.startswith(FOREIGN):
        raise EvalkitError(
            f"unknown engine '{name}'",
            fix=f"choose {OWN} or {FOREIGN}NAME, NAME being a model class of lm-eval's",
        )
    if name == OWN and given:
        raise EvalkitError("--engine-arg is for --engine lm-eval:NAME")
    args: dict[str, str] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", key) or not equals:
            raise EvalkitError("an --engine-arg is no KEY=VALUE", where=key[:20])
        if key in args:
            raise EvalkitError(f"--engine-arg {key} is given twice")
        _refuse_private(key, value)
        args[key] = value
    return Choice(name, dict(sorted(args.items())))


def _refuse_private(key: str, value: str) -> None:
    """EvalkitError where an argument must not be stored; its value is not shown."""
    if _KEY.search(key) or _VALUE.search(value):
        raise EvalkitError(
            f"--engine-arg {key} looks like a secret, and arguments are published with the record",
            fix="set the environment variable that the engine reads it from, e.g. OPENAI_API_KEY",
        )
    if value.startswith(("/", "~")):
        raise EvalkitError(
            f"--engine-arg {key} is a path of this machine, and arguments are published",
            fix="give it relative to the working folder, or by the engine's environment variable",
        )
