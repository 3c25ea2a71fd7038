"""lm-eval's own results in a record's form, as far as they go, so that whoever shows or exports
scores need not know two forms. What such results can't say is unknown, with the reason.
"""

from datetime import UTC, datetime
from typing import Any

from evalkit.base import canon
from evalkit.record import record as records
from evalkit.record.reading.lm_eval.results import PlainResults

UNSAID = {"unknown": "lm-eval's results do not say"}
Value = dict[str, Any]


def as_record(found: PlainResults) -> Value:
    """The record's form of a results file with its samples; its ids are the digest of its files, as
    `evalkit import` names the folder."""
    body = found.body
    counts = body.get("n-samples") or {}
    groups = {group: below for group, below in (body.get("group_subtasks") or {}).items() if below}
    inner = {child for below in groups.values() for child in below}
    members = [each for each in [*groups, *counts] if each not in inner]
    version = str(body.get("lm_eval_version") or "unknown")
    identity = canon.digest(found.files())
    return {
        "schema": f"lm-eval {version}",
        "ids": {"run": identity, "answers": identity},
        "execution": "",
        "tasks": {leaf: _task(body, leaf, counts[leaf]) for leaf in counts},
        "groups": {group: _entry(body, group) | {
            "n": body["results"].get(group, {}).get("sample_len", 0), "subtasks": below,
        } for group, below in groups.items() if group not in counts},
        "suite": {"name": "lm-eval", "tasks": [{"task": each} for each in members],
                  "limit": _limit(body),
                  "partial": any(c["effective"] < c["original"] for c in counts.values())},
        "model": {"reference": found.name, "revision": UNSAID, "parameters": UNSAID},
        "numerics": {"dtype": UNSAID},
        "engine": {"name": "lm-eval", "bit_repeatable": False},
        "environment": {"versions": {"lm_eval": version}, "packages": {"lm_eval": version}},
        "created": _created(body),
    }  # fmt: skip


def _created(body: Value) -> str | None:
    date = body.get("date")
    if not isinstance(date, (int, float)) or not 0 < date < 1e11:
        return None
    return datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _limit(body: Value) -> int | None:
    """Documents a leaf task; None where there was no limit, or it was a share."""
    limit = (body.get("config") or {}).get("limit")
    return int(limit) if isinstance(limit, (int, float)) and limit >= 1 else None


def _task(body: Value, leaf: str, count: Value) -> Value:
    config = (body.get("configs") or {}).get(leaf) or {}
    dataset = {
        "repo": str(config.get("dataset_path") or leaf),
        "config": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "revision": UNSAID, "rows": UNSAID, "licence": UNSAID,
    }  # fmt: skip
    return _entry(body, leaf) | {
        "n": count["effective"],
        "documents": count["original"],
        "num_fewshot": (body.get("n-shot") or {}).get(leaf) or 0,
        "version": (body.get("versions") or {}).get(leaf),
        "output_type": config.get("output_type"),
        "dataset": dataset,
    }


def _entry(body: Value, name: str) -> Value:
    result = body["results"].get(name, {})
    better = (body.get("higher_is_better") or {}).get(name) or {}
    metrics = records.metrics(canon.finite(result), better, {})
    return {"alias": str(result.get("alias", name)), "metrics": metrics}
