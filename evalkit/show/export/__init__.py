"""`export`: a record's scores, or those of lm-eval's own results, in the formats that other tools
read.

Each is made from the record alone and checked by the format's own schema or parser (in a test where
that parser is no dependency of ours). What is exported is verified first; what contradicts itself
is refused, or marked in all that is made of it.
"""

from collections.abc import Sequence
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.record.reading.folder import foreign
from evalkit.show.export import every_eval_ever, hub, native, parquet, tables, trackers
from evalkit.show.scores.rows import Row, headline, rows
from evalkit.show.source import Source, source

__all__ = ["FORMATS", "Row", "headline", "rows", "text", "write"]

FORMATS = ("csv", "markdown", "latex", "every-eval-ever", "model-index", "eval-results", "parquet",
           "lm-eval", "mlflow", "wandb")  # fmt: skip
ONE = {"lm-eval", "parquet", "every-eval-ever", "mlflow", "wandb"}  # hold a single run


def write(
    runs: Sequence[Path], to: str, out: Path | None, *, unverified: bool = False, pack: str = ""
) -> str:
    """Write the runs' scores to `out`, a folder for lm-eval's format; what is to be printed: the
    path, or without `out` the text itself. `pack`: the public pack's address, for the Hub."""
    if to in ("lm-eval", "parquet") and out is None:
        what = "a folder" if to == "lm-eval" else "a file"
        raise EvalkitError(f"{to} is {what} for one run", fix="give --out")
    with foreign(runs[0]):
        sources = [source(run, unverified=unverified) for run in runs]
        if to in ONE and len(sources) > 1:
            raise EvalkitError(f"{to} holds one run", fix="export them one by one")
        if to == "lm-eval" and out is not None:
            return str(native.write(sources[0], out))
        if to == "parquet" and out is not None:
            return str(parquet.write(sources[0], out))
        if to == "mlflow":
            return trackers.to_mlflow(sources[0])
        if to == "wandb":
            return trackers.to_wandb(sources[0], out or Path())
        made = text(sources, to, pack=pack)
    if out is None:
        return made.removesuffix("\n")
    canon.write_atomic(out, made)
    return str(out)


def text(sources: Sequence[Source], to: str, *, pack: str = "") -> str:
    """The runs' scores in a format that is one text."""
    if to == "csv":
        return tables.to_csv([row for each in sources for row in rows(each.record, each.mark)])
    if to in ("markdown", "latex"):
        made = tables.to_markdown if to == "markdown" else tables.to_latex
        return made([headline(each.record, each.mark) for each in sources])
    if to == "model-index":
        return hub.model_index(sources)
    if to == "eval-results":
        return hub.eval_results(sources, pack)
    return every_eval_ever.every_eval_ever(sources[0])
