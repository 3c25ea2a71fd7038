"""`export`: a record's scores in the formats that other tools read.

Each is made from the record alone and checked by the format's own schema or parser (in a test where
that parser is no dependency of ours). Nothing here judges a record; `verify` does.
"""

from collections.abc import Sequence
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.record.reading import read
from evalkit.record.reading.folder import foreign
from evalkit.show.export import cards, native, tables
from evalkit.show.rows import Row, headline, rows

__all__ = ["Row", "headline", "rows", "text", "write"]


def write(runs: Sequence[Path], to: str, out: Path | None) -> str:
    """Write the runs' scores to `out`, a folder for lm-eval's format; what is to be printed: the
    path, or without `out` the text itself."""
    if to == "lm-eval":
        if out is None or len(runs) > 1:
            raise EvalkitError("lm-eval's format is a folder for one run", fix="give --out FOLDER")
        with foreign(runs[0]):
            return str(native.write(runs[0], out))
    with foreign(runs[0]):
        made = text(runs, to)
    if out is None:
        return made.removesuffix("\n")
    canon.write_atomic(out, made)
    return str(out)


def text(runs: Sequence[Path], to: str) -> str:
    """The runs' scores in a format that is one text; EvalkitError where it takes one run only."""
    records = [read.record(run) for run in runs]
    if to == "csv":
        return tables.to_csv([row for record in records for row in rows(record)])
    if to in ("markdown", "latex"):
        made = tables.to_markdown if to == "markdown" else tables.to_latex
        return made([headline(record) for record in records])
    if len(records) > 1:
        raise EvalkitError(f"{to} holds one run", fix="export them one by one")
    made_of = {"every-eval-ever": cards.every_eval_ever, "model-index": cards.model_index}[to]
    return made_of(records[0])
