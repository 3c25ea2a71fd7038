"""A run with its samples in two formats of others: the folder that lm-eval itself would have left,
and one Parquet file with a row for each document and filter.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, not_installed
from evalkit.harness.samples import Sample, value_of
from evalkit.show.source import Source

ROWS_AT_ONCE = 2_000  # held in memory
TEXTS = ("task", "filter", "target", "doc_hash", "prompt_hash", "target_hash")
NESTED = ("doc", "arguments", "resps", "filtered_resps")  # written as JSON texts


def to_lm_eval(source: Source, out: Path) -> Path:
    """Write lm-eval's results file and samples files below `out`; return their folder, which is
    named after the model as lm-eval names it. EvalkitError (2) where one with this record's time is
    there already."""
    run, record = source.path, source.record
    if not source.whole:
        raise EvalkitError("these are lm-eval's own results already", where=str(run))
    results = canon.read_json(run / "results.json")
    if source.mark:
        results = {"evalkit_verdict": source.report.verdict} | results
    model = str(results.get("model_name_sanitized") or record["model"]["reference"])
    folder = out / "".join(c if c.isalnum() or c in "._-" else "_" for c in model).lstrip(".")
    time = f"{datetime.fromisoformat(str(record['created'])):%Y-%m-%dT%H-%M-%S.%f}"
    if source.mark:
        folder = folder.with_name(f"{source.mark}-{folder.name}")
    path = folder / f"results_{time}.json"
    if path.exists():
        raise EvalkitError("it is there already", where=str(path), fix="choose another --out")
    canon.make_folder(folder)
    for leaf, samples in groupby(source.samples(), key=lambda sample: str(sample["task"])):
        if leaf not in record["tasks"] or "/" in leaf:
            raise EvalkitError("samples of a task that the record does not have", where=str(run))
        canon.write_atomic(folder / f"samples_{leaf}_{time}.jsonl", _json_lines(samples))
    canon.write_atomic(path, json.dumps(results, indent=2, ensure_ascii=False))
    return folder


def _json_lines(samples: Iterable[Sample]) -> Iterator[bytes]:
    for sample in samples:
        body = {key: value for key, value in sample.items() if key != "task"}
        yield json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def to_parquet(source: Source, out: Path) -> Path:
    """Write the samples as a Parquet file; return its path. EvalkitError (3) without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise not_installed("pyarrow") from None
    tasks = source.record["tasks"].values()
    metrics = sorted({metric.partition(",")[0] for task in tasks for metric in task["metrics"]})
    fields = [("mark", pyarrow.string()), ("doc_id", pyarrow.int64())]
    fields += [(name, pyarrow.string()) for name in (*TEXTS, *NESTED)]
    fields += [(name, pyarrow.float64()) for name in metrics]
    schema = pyarrow.schema(fields)
    sink = pyarrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        samples = source.samples()
        while part := list(islice(samples, ROWS_AT_ONCE)):
            rows = [_row(sample, metrics, source.mark) for sample in part]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    canon.write_atomic(out, _blocks(sink.getvalue()))
    return out


def _blocks(buffer: Any) -> Iterator[bytes]:
    for start in range(0, buffer.size, 1 << 20):
        yield buffer.slice(start, min(1 << 20, buffer.size - start)).to_pybytes()


def _row(sample: Sample, metrics: list[str], mark: str) -> dict[str, object]:
    texts = {name: _text(sample, name) for name in TEXTS}
    nested = {name: canon.dumps(canon.finite(value_of(sample, name))) for name in NESTED}
    scores = {name: _number(sample.get(name)) for name in metrics}
    return {"mark": mark, "doc_id": sample["doc_id"], **texts, **nested, **scores}


def _text(sample: Sample, name: str) -> str:
    return str(value_of(sample, name)).encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float | None:
    """Return a score that is one number; log-likelihoods with their units stay in `resps`."""
    try:
        return None if value is None else float(canon.number(value))
    except (TypeError, ValueError):
        return None
