"""The whole of `evalkit reproduce`: obtain the original, then reproduce it or only plan to.

The original is a folder, a pack, or the address of a pack. A pack's content is untrusted and
bounded; only http and https are fetched, and nothing in a pack is run. A statement about an
original that came packed is kept beside the reproductions.
"""

import http.client
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.inputs import hub
from evalkit.judge.reproduce import Wanted, prepared, reproduce
from evalkit.record.packs import archive
from evalkit.record.signing import attest
from evalkit.record.signing.keys import Private

__all__ = ["Printed", "Wanted", "obtained", "run"]

MAX_BYTES = 8 << 30
TIMEOUT_S = 60
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Printed:
    """What the command prints, for people and as JSON for programs, and the exit code."""

    lines: list[str]
    body: Mapping[str, object]
    exit_code: Exit


def run(
    where: str, wanted: Wanted, argv: list[str], key: Private | None, *, only_plan: bool
) -> Printed:
    """Reproduce the run that `where` names."""
    if wanted.given.get("offline"):
        hub.go_offline()
    with obtained(where) as original:
        if only_plan:
            planned = prepared(original, wanted)
            differences = [asdict(difference) for difference in planned.differences]
            return Printed(planned.lines(), {"differences": differences}, Exit.OK)
        outcome = reproduce(original, wanted, Events(), argv, key)
        lines = [f"again     {outcome.made}"] if outcome.made else []
        if key is not None and original != Path(where):
            kept = wanted.out / f"{original.name}.{attest.NAME}"
            canon.make_folder(wanted.out)
            canon.write_atomic(kept, (original / attest.NAME).read_bytes())
            lines.append(f"signed    {kept}: to be put into the original as {attest.NAME}")
        body = {
            **outcome.claim,
            "differences": [asdict(difference) for difference in outcome.differences],
            "made": str(outcome.made) if outcome.made else None,
        }
        return Printed([*lines, *outcome.lines()], body, outcome.exit_code)


@contextmanager
def obtained(where: str) -> Iterator[Path]:
    """Yield the run's folder, which is there until the block ends; EvalkitError for no run."""
    if where.lower().startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory(prefix="evalkit-fetched-") as folder:
            pack = Path(folder) / "run.tar.gz"
            canon.write_atomic(pack, _fetched(where))
            with archive.unpacked(pack) as run:
                yield run
        return
    path = Path(where)
    if path.is_dir():
        yield path
    elif path.is_file():
        with archive.unpacked(path) as run:
            yield run
    else:
        raise EvalkitError("there is no such run", where=where, code=Exit.MISSING)


def _fetched(address: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            total = 0
            while block := answer.read(BLOCK):
                total += len(block)
                if total > MAX_BYTES:
                    raise EvalkitError(f"more than {MAX_BYTES >> 30} GiB", where=address)
                yield block
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EvalkitError(
            f"can't fetch the pack: {error}", where=address, code=Exit.MISSING
        ) from None
