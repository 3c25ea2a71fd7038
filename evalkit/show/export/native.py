"""A record as the folder that lm-eval itself would have left: its results file and a samples file a
leaf task, under the names by which its own tools find them.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.show.source import Source


def write(source: Source, out: Path) -> Path:
    """Write the folder under `out`, named after the model as lm-eval names it; its path.

    EvalkitError (2) where one with this record's time is there already.
    """
    run, record = source.path, source.record
    if not source.whole:
        raise EvalkitError("these are lm-eval's own results already", where=str(run))
    results = canon.read_json(run / "results.json")
    if source.mark:
        results = {"evalkit_verdict": source.report.verdict} | results
    named = str(results.get("model_name_sanitized") or record["model"]["reference"])
    folder = out / "".join(c if c.isalnum() or c in "._-" else "_" for c in named).lstrip(".")
    when = f"{datetime.fromisoformat(record['created']):%Y-%m-%dT%H-%M-%S.%f}"
    if source.mark:
        folder = folder.with_name(f"{source.mark}-{folder.name}")
    path = folder / f"results_{when}.json"
    if path.exists():
        raise EvalkitError("it is there already", where=str(path), fix="choose another --out")
    canon.make_folder(folder)
    for leaf, samples in groupby(source.samples(), key=lambda sample: str(sample["task"])):
        if leaf not in record["tasks"] or "/" in leaf:
            raise EvalkitError("samples of a task that the record does not have", where=str(run))
        canon.write_atomic(folder / f"samples_{leaf}_{when}.jsonl", _lines(samples))
    text = json.dumps(results, indent=2, ensure_ascii=False)
    canon.write_atomic(path, text)
    return folder


def _lines(samples: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for sample in samples:
        body = {key: value for key, value in sample.items() if key != "task"}
        yield json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
