"""`export`: a record's scores, or those of lm-eval's own results, in other tools' formats.

Each is made from the record alone and checked by the format's own schema or parser (for some in a
test). A record that contradicts itself is refused, or marked in all that is made of it.
"""

from collections.abc import Sequence
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.record.reading.folder import foreign
from evalkit.show.export import every_eval_ever, hub, samples, tables, trackers
from evalkit.show.source import Source, headline_rows, rows, source

# Formats that hold a single run.
ONE_RUN = {"lm-eval", "parquet", "every-eval-ever", "mlflow", "wandb"}


def write(
    runs: Sequence[Path], to: str, out: Path | None, *, unverified: bool = False, pack: str = ""
) -> str:
    """Write the runs' scores to `out`, a folder for lm-eval's format; return what is to be printed:
    the path, or without `out` the text itself. `pack`: the public pack's address, for the Hub."""
    if to in ("lm-eval", "parquet") and out is None:
        what = "a folder" if to == "lm-eval" else "a file"
        raise EvalkitError(f"{to} is {what} for one run", fix="give --out")
    with foreign(runs[0]):
        sources = [source(run, unverified=unverified) for run in runs]
        if to in ONE_RUN and len(sources) > 1:
            raise EvalkitError(f"{to} holds one run", fix="export them one by one")
        if to == "lm-eval" and out is not None:
            return str(samples.to_lm_eval(sources[0], out))
        if to == "parquet" and out is not None:
            return str(samples.to_parquet(sources[0], out))
        if to == "mlflow":
            return trackers.to_mlflow(sources[0])
        if to == "wandb":
            return trackers.to_wandb(sources[0], out or Path())
        text = _text(sources, to, pack)
    if out is None:
        return text.removesuffix("\n")
    canon.write_atomic(out, text)
    return str(out)


def _text(sources: Sequence[Source], to: str, pack: str) -> str:
    match to:
        case "csv":
            return tables.to_csv([row for s in sources for row in rows(s.record, s.mark)])
        case "markdown":
            return tables.to_markdown([headline_rows(s.record, s.mark) for s in sources])
        case "latex":
            return tables.to_latex([headline_rows(s.record, s.mark) for s in sources])
        case "model-index":
            return hub.model_index(sources)
        case "eval-results":
            return hub.eval_results(sources, pack)
        case "every-eval-ever":
            return every_eval_ever.every_eval_ever(sources[0])
    raise AssertionError(f"{to} is not one of cli.showing.FORMATS")
