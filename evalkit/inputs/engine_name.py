"""Which engine executes a plan, as a user names it: evalkit's own, or a model class of lm-eval's
with its arguments.

Both stand in the run's identity and are published with the record, so nothing that looks like a
secret and no path of this host may be among them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from evalkit.base import private
from evalkit.base.errors import EvalkitError

OWN = "evalkit"
FOREIGN = "lm-eval:"


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
    """The engine that `--engine NAME --engine-arg KEY=VALUE ...` asks for. Raises EvalkitError for
    an unknown name, an argument of another form, and what must not be published."""
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
    if private.is_secret_name(key) or private.is_secret(value, key):
        raise EvalkitError(
            f"--engine-arg {key} looks like a secret, and arguments are published with the record",
            fix="set the environment variable that the engine reads it from, e.g. OPENAI_API_KEY",
        )
    if problem := private.address_problem(value):
        raise EvalkitError(
            f"--engine-arg {key} is {problem}, and arguments are published with the record",
            fix="give the bare address, and credentials by the engine's environment variable",
        )
    if value.startswith(("/", "~")):
        raise EvalkitError(
            f"--engine-arg {key} is a path of this machine, and arguments are published",
            fix="give it relative to the working folder, or by the engine's environment variable",
        )
