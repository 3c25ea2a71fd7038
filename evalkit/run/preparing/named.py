"""Names in a folder that are used only if its reader gives them again: a model, an adapter, a
suite, an engine.

Following a stranger's record or run.json could open a path, send a key to an address or run a
suite's code. evalkit's own suites and models are exempt, and a run that was planned here:
`remember` keeps the digest of its run.json.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs import suite as suites
from evalkit.inputs.models import model as models

PLANNED = "planned"  # the folder in evalkit's cache for runs that were planned here
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a folder, and the option by which a reader gives it."""

    kind: str
    text: str
    option: str

    def __str__(self) -> str:
        return f"its {self.kind} {_quoted(self.text)}"


def _quoted(text: str) -> str:
    """Return a stranger's text for a message: one printable line, not too long."""
    return ascii(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def model(recorded: str, given: str | None) -> list[Name]:
    """Return the name of the model, unless the reader gave one or it is built in."""
    own = given or recorded in models.BUILT_IN
    return [] if own else [Name("model", recorded, "--model")]


def suite(recorded: str, given: str | None) -> list[Name]:
    """Return the name of the suite, unless the reader gave one or it is shipped."""
    own = given or recorded in suites.shipped()
    return [] if own else [Name("suite", recorded, "--suite FILE")]


def adapter(recorded: Any, given: object) -> list[Name]:
    """Return the name of the adapter, if there is one and the reader gave none."""
    return [Name("adapter", str(recorded), "--adapter")] if recorded and not given else []


def engine(name: str, args: dict[str, str], given: str | None) -> list[Name]:
    """Return the name of an engine of lm-eval, with its arguments, unless the reader gave one."""
    if given or name == "evalkit":
        return []
    words = " ".join([name, *(f"{key}={value}" for key, value in args.items())])
    return [Name("engine", words, "--engine NAME --engine-arg KEY=VALUE")]


def require(names: Iterable[Name], where: Path) -> None:
    """Raise EvalkitError (3), with what to type, where there are such names."""
    unconfirmed = list(names)
    if unconfirmed:
        shown = ", ".join(map(str, unconfirmed))
        raise EvalkitError(
            f"only you may name what is opened, run or sent to; this names {shown}",
            where=str(where),
            fix=f"if you want that, give {' '.join(name.option for name in unconfirmed)}",
            code=Exit.MISSING,
        )


def require_to_execute(
    run: Path, body: Mapping[str, Any], model_: str | None, folder: object
) -> None:
    """Raise EvalkitError (3) where a run that was not planned here names a model, an adapter or an
    engine that its reader did not give. `body` is run.json, `folder` the reader's adapter."""
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
    run: Path, body: Mapping[str, Any], model_: str | None, suite_: str | None
) -> None:
    """Raise EvalkitError (3) likewise for the model, whose tokenizer is used, and the suite."""
    if not is_planned_here(run):
        asked = body["options"]
        require([*model(asked["model"], model_), *suite(asked["suite"], suite_)], run)


def code(run: Path, body: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether a model's own code or pickles may run, which a stranger can't decide."""
    asked = body["options"] if is_planned_here(run) else {}
    return {key: bool(asked.get(key, False)) for key in ("allow_pickle", "trust_remote_code")}


def remember(run: Path, places: Mapping[str, str]) -> None:
    """Note that a run was planned here, and where its model, suite and adapter lie, of which its
    folder has the names alone. Where that fails, its names have to be typed."""
    with suppress(EvalkitError):
        canon.make_folder(_kept(run).parent)
        canon.write_json(_kept(run), {"run": run.name, "places": dict(places)})


def places(run: Path) -> dict[str, str]:
    """Return where the model, the suite and the adapter lie of a run that was planned here, by
    option; without those that are gone, or lie nowhere."""
    with suppress(EvalkitError, AttributeError, KeyError, TypeError, ValueError):
        noted = canon.read_json(_kept(run))["places"]
        return {option: where for option, where in noted.items() if Path(where).exists()}
    return {}


def is_planned_here(run: Path) -> bool:
    """Return whether a folder holds the unchanged run.json of a run that was planned here."""
    return _kept(run).is_file()


def _kept(run: Path) -> Path:
    return kept.folder() / PLANNED / f"{canon.sha256_file(run / 'run.json')}.json"
