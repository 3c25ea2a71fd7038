"""Plans that were made before, by what they follow from: a second model with the same tokenizer
need not load the datasets, build the requests and tokenise them again.

A kept plan is a folder under <XDG_CACHE_HOME or ~/.cache>/evalkit/plans that appears whole or not
at all. It only saves time: what is damaged, torn or of other code counts as absent.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError
from evalkit.plan.types import PlanBody

KEPT = 8  # plans; the largest shipped suite's takes 60 MB
FILES = ("plan.json", "plan.tokens")


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan before it has a folder: plan.json's content, plan.tokens, and how many tokens its
    prompts are when each shared one counts once."""

    body: PlanBody
    tokens: bytes
    unique_tokens: int


def folder() -> Path:
    """Where plans are kept."""
    return kept.folder() / "plans"


def key(inputs: dict[str, object]) -> str:
    """The name (64 hex) of the plan that follows from `inputs` and from this evalkit's code."""
    return canon.digest(inputs | {"code": kept.code()})[7:]


def read(name: str) -> Planned | None:
    """The plan of that key; None where there is none that is whole."""
    place = folder() / name
    try:
        notes = canon.read_json(place / "digests.json")
        data = {file: (place / file).read_bytes() for file in FILES}
        if any(canon.digest_bytes(data[file]) != notes[file] for file in FILES):
            return None
        body = canon.loads(data["plan.json"])
        return Planned(body, data["plan.tokens"], int(notes["unique_tokens"]))
    except (EvalkitError, OSError, ValueError, LookupError, TypeError):
        return None


def write(name: str, planned: Planned) -> None:
    """Keep a plan, and of all plans the newest; a cache that can't be written is no error."""
    place = folder() / name
    making = canon.beside(place)
    body = canon.dumps(planned.body).encode() + b"\n"
    data = dict(zip(FILES, (body, planned.tokens), strict=True))
    notes: dict[str, str | int] = {file: canon.digest_bytes(data[file]) for file in FILES}
    with suppress(EvalkitError, OSError):
        canon.make_folder(making)
        for file in FILES:
            canon.write_atomic(making / file, data[file])
        canon.write_json(making / "digests.json", notes | {"unique_tokens": planned.unique_tokens})
        shutil.rmtree(place, ignore_errors=True)  # a damaged one, else it would have been read
        making.rename(place)
    shutil.rmtree(making, ignore_errors=True)
    with suppress(OSError):
        _drop_old()


def _drop_old() -> None:
    """Remove all but the newest plans."""
    found = [path for path in folder().iterdir() if not path.name.startswith(".")]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
