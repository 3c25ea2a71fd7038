"""A run's samples as one Parquet file: a row a document and filter, as lm-eval has them, for those
who work with frames. What has a shape of its own (the document, arguments, responses) is JSON text.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.show.source import Source

AT_ONCE = 2_000  # rows in memory
TEXTS = ("task", "filter", "target", "doc_hash", "prompt_hash", "target_hash")
NESTED = ("doc", "arguments", "resps", "filtered_resps")


def write(source: Source, out: Path) -> Path:
    """Write the samples to `out`; EvalkitError (3) without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        fix = "run `pip install pyarrow`"
        raise EvalkitError("pyarrow is not installed", fix=fix, code=Exit.MISSING) from None
    tasks = source.record["tasks"].values()
    metrics = sorted({metric.partition(",")[0] for task in tasks for metric in task["metrics"]})
    fields = [("mark", pyarrow.string()), ("doc_id", pyarrow.int64())]
    fields += [(name, pyarrow.string()) for name in (*TEXTS, *NESTED)]
    fields += [(name, pyarrow.float64()) for name in metrics]
    schema = pyarrow.schema(fields)
    sink = pyarrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        samples = source.samples()
        while part := list(islice(samples, AT_ONCE)):
            rows = [_row(sample, metrics, source.mark) for sample in part]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    canon.write_atomic(out, _blocks(sink.getvalue()))
    return out


def _blocks(buffer: Any) -> Iterator[bytes]:
    for start in range(0, buffer.size, 1 << 20):
        yield buffer.slice(start, min(1 << 20, buffer.size - start)).to_pybytes()


def _row(sample: dict[str, Any], metrics: list[str], mark: str) -> dict[str, Any]:
    row: dict[str, Any] = {"mark": mark, "doc_id": sample["doc_id"]}
    row |= {name: _text(sample[name]) for name in TEXTS}
    row |= {name: canon.dumps(canon.finite(sample[name])) for name in NESTED}
    return row | {name: _number(sample.get(name)) for name in metrics}


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float | None:
    """A score that is one number; log-likelihoods with their units stay in `resps`."""
    try:
        return None if value is None else float(canon.number(value))
    except (TypeError, ValueError):
        return None
