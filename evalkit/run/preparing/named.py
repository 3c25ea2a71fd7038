"""What a folder names and only its reader may name again: a model, an adapter, a suite, an engine.

A record or a run.json can come from anybody. A path in it would be opened, an address be sent a
key, a suite's code be run. So such names are shown, and whoever wants them followed types them.
What is evalkit's own by name (a shipped suite, a built-in model) needs nobody's word, and neither
does a run that was planned here: `remember` keeps the digest of its run.json.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs import suite as suites
from evalkit.inputs.models import model as models

PLANNED = "planned"  # the folder of what was planned here, among what is kept
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class Name:
    """A thing that a folder names, as text, and the option by which a reader names it."""

    kind: str
    text: str
    option: str

    def __str__(self) -> str:
        return f"its {self.kind} {_quoted(self.text)}"


def _quoted(text: str) -> str:
    """A stranger's text in a message: one line, printable and not long."""
    return ascii(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def model(recorded: str, given: str | None) -> list[Name]:
    """The model, unless the reader gave one or it is built in."""
    own = given or recorded in models.BUILT_IN
    return [] if own else [Name("model", recorded, "--model")]


def suite(recorded: str, given: str | None) -> list[Name]:
    """The suite, unless the reader gave one or it is shipped."""
    own = given or recorded in suites.shipped()
    return [] if own else [Name("suite", recorded, "--suite FILE")]


def adapter(recorded: Any, given: object) -> list[Name]:
    """The adapter, if there is one and the reader gave none."""
    return [Name("adapter", str(recorded), "--adapter")] if recorded and not given else []


def engine(name: str, args: dict[str, str], given: str | None) -> list[Name]:
    """An engine of lm-eval's, with its arguments, unless the reader gave one."""
    if given or name == "evalkit":
        return []
    words = " ".join([name, *(f"{key}={value}" for key, value in args.items())])
    return [Name("engine", words, "--engine NAME --engine-arg KEY=VALUE")]


def require(names: Iterable[Name], where: Path) -> None:
    """EvalkitError (3) that says what is named and what to type, where that is anything."""
    found = list(names)
    if found:
        told = ", ".join(map(str, found))
        raise EvalkitError(
            f"only you may name what is opened, run or sent to; this names {told}",
            where=str(where),
            fix=f"if you want that, give {' '.join(name.option for name in found)}",
            code=Exit.MISSING,
        )


def require_to_execute(run: Path, body: dict[str, Any], model_: str | None, folder: object) -> None:
    """EvalkitError (3) where a run's folder names a model, an adapter (in `folder` if given) or an
    engine that its reader did not, and was not planned here. `body`: run.json's."""
    if is_planned_here(run):
        return
    made = body["inputs"]["engine"]
    if foreign := engine(made["name"], made["args"], None):
        raise EvalkitError(
            f"this run was not planned here, and names {foreign[0]}", where=str(run),
            fix="plan it here with that engine, if you want it used", code=Exit.MISSING,
        )  # fmt: skip
    asked = body["options"]
    require([*model(asked["model"], model_), *adapter(asked["adapter"], folder)], run)


def require_to_score(
    run: Path, body: dict[str, Any], model_: str | None, suite_: str | None
) -> None:
    """The same for the model, for its tokenizer, and the suite."""
    if not is_planned_here(run):
        asked = body["options"]
        require([*model(asked["model"], model_), *suite(asked["suite"], suite_)], run)


def code(run: Path, body: dict[str, Any]) -> dict[str, bool]:
    """Whether a model's own code or pickles may run: never by another's run.json."""
    asked = body["options"] if is_planned_here(run) else {}
    return {key: bool(asked.get(key, False)) for key in ("allow_pickle", "trust_remote_code")}


def remember(run: Path) -> None:
    """Keep that a run was planned here; where that can't be kept, names will have to be typed."""
    with suppress(EvalkitError):
        canon.make_folder(_kept(run).parent)
        canon.write_json(_kept(run), {"run": run.name})


def is_planned_here(run: Path) -> bool:
    """Whether a run's folder holds the run.json of a run that was planned here, unchanged."""
    return _kept(run).is_file()


def _kept(run: Path) -> Path:
    return kept.folder() / PLANNED / f"{canon.sha256_file(run / 'run.json')}.json"
