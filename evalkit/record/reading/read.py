"""A finished run's record and samples, read for those who only want to look: schema-checked and
bounded, as a stranger's are. Whether they are true is `verify`'s business.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading import identity
from evalkit.record.reading.evidence.samples import NAME
from evalkit.record.reading.folder import BROKEN, Folder, reason


def record(run: Path) -> dict[str, Any]:
    """A run's record; EvalkitError (3) where there is none yet, (1) where it is not one."""
    if not (run / "record.json").is_file():
        raise EvalkitError(
            "there is no finished run here", where=str(run),
            fix="`evalkit status` says how far it is", code=Exit.MISSING,
        )  # fmt: skip
    found = identity.record(Folder(run))
    if found.record is None:
        raise EvalkitError(found.check.detail, where=str(run / "record.json"), code=Exit.FAILED)
    return found.record


def samples(run: Path) -> Iterator[dict[str, Any]]:
    """A run's per-sample records, in order; EvalkitError (1) where they can't be read."""
    try:
        for number, raw in Folder(run).gzip_lines(NAME):
            sample = canon.loads(raw)
            if not isinstance(sample, dict) or not isinstance(sample.get("task"), str):
                raise ValueError(f"line {number:,} is no sample")
            yield sample
    except BROKEN as error:
        raise EvalkitError(reason(error), where=str(run / NAME), code=Exit.FAILED) from None
