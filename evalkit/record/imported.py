"""Results that lm-eval wrote, in evalkit's forms: a folder that `verify`, `compare` and `report`
read (`evalkit import`), and a record for views and exports.

The folder keeps lm-eval's form and stays lm-eval's word; what older versions leave out is completed
(`reading.lm_eval`). `imported.json` marks it, with the digests of the source files and what no such
folder can say; in the record that is unknown.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import stamp
from evalkit.harness.samples import Counts, Results
from evalkit.record import record as records
from evalkit.record.reading import lm_eval
from evalkit.record.reading.folder import Folder, foreign
from evalkit.record.reading.lm_eval import Completing, PlainResults
from evalkit.record.sections import GroupResult, Metric
from evalkit.record.types import ImportedDataset, ImportedRecord, ImportedTask

SCHEMA = "evalkit/imported/1"
UNKNOWN = {
    "weights": "lm-eval records no digest of the model's files",
    "dataset_revisions": "lm-eval records no revision of a dataset",
    "answers": "there is no journal: the samples are the only word of what was answered",
    "environment": "lm-eval's is free text",
}
UNSAID = stamp.unknown("lm-eval's results do not say")


def bring_in(source: Path, out: Path) -> Path:
    """Write the newest run in `source` to a folder below `out`, unless an equal one is there, and
    return the folder. EvalkitError where `source` holds no run, or its samples can't be read."""
    with foreign(source):
        return _bring_in(lm_eval.find(source), out)


def _bring_in(results: PlainResults, out: Path) -> Path:
    files = results.files()
    model = "".join(c if c.isalnum() or c in "._-" else "_" for c in results.name).strip(".")
    folder = out / (model or "model") / f"lm-eval-{canon.digest(files)[7:19]}"
    if (folder / "imported.json").is_file():
        return folder
    canon.make_folder(folder)
    for leaf, path in sorted(results.samples().items()):
        canon.write_atomic(folder / path.name, _lines(results, leaf, path))
    lm_eval.with_sizes(results.body)
    results.body["model_name"] = results.name
    text = json.dumps(results.body, indent=2, ensure_ascii=False)
    canon.write_atomic(
        folder / f"results_{results.time}.json", text.encode("utf-8", "backslashreplace")
    )
    version = results.body.get("lm_eval_version")
    mark = {
        "schema": SCHEMA,
        "files": files,
        "model": results.name,
        "lm_eval": version or stamp.unknown("this version of lm-eval did not say"),
        "unknown": UNKNOWN,
    }
    canon.write_json(folder / "imported.json", mark)  # last: its presence means the rest is there
    return folder


def _lines(results: PlainResults, leaf: str, path: Path) -> Iterator[bytes]:
    completing = Completing(results.body, leaf)
    for number, raw in Folder(results.folder).lines(path.name):
        try:
            sample = json.loads(raw)
            completing.complete(sample)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise EvalkitError(
                f"a sample can't be read: {type(error).__name__}: {error}",
                where=f"{path} line {number:,}", code=Exit.FAILED,
            ) from None  # fmt: skip
        del sample["task"]  # the file's name says it
        text = json.dumps(sample, ensure_ascii=False)
        yield text.encode("utf-8", "backslashreplace") + b"\n"


def as_record(results: PlainResults) -> ImportedRecord:
    """Return what a results file and its samples say as a record. It lacks the keys that nothing is
    known of. Its ids are the digest of its files, as `evalkit import` names the folder."""
    body = results.body
    counts = body.get("n-samples") or {}
    groups = {group: below for group, below in (body.get("group_subtasks") or {}).items() if below}
    inner = {child for below in groups.values() for child in below}
    members = [name for name in [*groups, *counts] if name not in inner]
    version = str(body.get("lm_eval_version") or "unknown")
    identity = canon.digest(results.files())
    return {
        "schema": f"lm-eval {version}",
        "ids": {"run": identity, "answers": identity},
        "execution": "",
        "tasks": {leaf: _task(body, leaf, counts[leaf]) for leaf in counts},
        "groups": {group: _group(body, group, below)
                   for group, below in groups.items() if group not in counts},
        "suite": {"name": "lm-eval", "tasks": [{"task": name} for name in members],
                  "limit": _limit(body),
                  "partial": any(c["effective"] < c["original"] for c in counts.values())},
        "model": {"reference": results.name, "revision": UNSAID, "parameters": UNSAID},
        "numerics": {"dtype": UNSAID},
        "engine": {"name": "lm-eval", "bit_repeatable": False},
        "environment": {"versions": {"lm_eval": version}, "packages": {"lm_eval": version}},
        "created": _created(body),
    }  # fmt: skip


def _created(body: Results) -> str | None:
    date = body.get("date")
    if not isinstance(date, (int, float)) or not 0 < date < 1e11:
        return None
    return datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _limit(body: Results) -> int | None:
    """Return the documents for each leaf task; None for no limit or a share."""
    limit = (body.get("config") or {}).get("limit")
    return int(limit) if isinstance(limit, (int, float)) and limit >= 1 else None


def _group(body: Results, name: str, members: list[str]) -> GroupResult:
    return {
        "alias": _alias(body, name),
        "version": (body.get("versions") or {}).get(name),
        "metrics": _metrics(body, name),
        "n": _whole(body["results"].get(name, {}).get("sample_len", 0)),
        "subtasks": members,
    }


def _task(body: Results, leaf: str, count: Counts) -> ImportedTask:
    config = (body.get("configs") or {}).get(leaf) or {}
    dataset: ImportedDataset = {
        "repo": str(config.get("dataset_path") or leaf),
        "config": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "revision": UNSAID, "rows": UNSAID, "licence": UNSAID,
    }  # fmt: skip
    return {
        "alias": _alias(body, leaf),
        "metrics": _metrics(body, leaf),
        "n": _whole(count["effective"]),
        "documents": _whole(count["original"]),
        "num_fewshot": (body.get("n-shot") or {}).get(leaf) or 0,
        "version": (body.get("versions") or {}).get(leaf),
        "output_type": config.get("output_type"),
        "dataset": dataset,
    }


def _whole(count: object) -> int:
    """Return a number of documents; ValueError where it is none."""
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 1 << 53:
        raise ValueError("a number of documents is no whole number")
    return count


def _alias(body: Results, name: str) -> str:
    return str(body["results"].get(name, {}).get("alias", name))


def _metrics(body: Results, name: str) -> dict[str, Metric]:
    better = (body.get("higher_is_better") or {}).get(name) or {}
    return records.metrics(canon.finite(body["results"].get(name, {})), better, {})
