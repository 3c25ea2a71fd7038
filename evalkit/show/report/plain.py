"""What the report of lm-eval's own results shows, as it wrote them or imported: scores, leaf tasks,
confidence and samples. What such a folder can't say (weights, revisions, time by phase) has no
section, and the verdict says so.
"""

from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.judge.verify import plain
from evalkit.record import record as records
from evalkit.record.reading import lm_eval_results
from evalkit.show.report import leaves, single, texts


def context(folder: Path, *, everything: bool = False) -> dict[str, Any]:
    """What `run.html.j2` shows; EvalkitError where there are no results with samples."""
    found = lm_eval_results.find(folder)
    judged = plain.verify(found.folder, f"results_{found.time}.json", asked=False)
    record = _record(found.name, found.body)
    kept = texts.Texts(len(record["tasks"]), everything=everything)
    read, unread = leaves.of_documents(found.documents(), record, {}, kept)
    imported = (found.folder / "imported.json").is_file()
    origin = "imported from lm-eval's results" if imported else "lm-eval's own results"
    return single.shown(folder.name, judged, record, read, everything=everything) | {
        "unread": unread,
        "notes": [f"{origin}: which model answered, and whether it did, can't be known"],
        "whole": False,
        "published": [],
        "said": [],
        "marks": {},
    }


def _record(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results in a record's form, as far as they go."""
    counts = body.get("n-samples") or {}
    groups = {group: below for group, below in (body.get("group_subtasks") or {}).items() if below}
    inner = {child for below in groups.values() for child in below}
    members = [each for each in [*groups, *counts] if each not in inner]
    return {
        "tasks": {leaf: _entry(body, leaf) | {
            "n": counts[leaf]["effective"], "documents": counts[leaf]["original"],
            "num_fewshot": body.get("n-shot", {}).get(leaf) or 0,
        } for leaf in counts},
        "groups": {group: _entry(body, group) | {
            "n": body["results"].get(group, {}).get("sample_len", 0), "subtasks": below,
        } for group, below in groups.items() if group not in counts},
        "suite": {"name": "lm-eval", "tasks": [{"task": each} for each in members],
                  "limit": _limit(body),
                  "partial": any(c["effective"] < c["original"] for c in counts.values())},
        "model": {"reference": name},
        "created": None,
    }  # fmt: skip


def _limit(body: dict[str, Any]) -> int | None:
    """Documents a leaf task; None where there was no limit, or it was a share."""
    limit = (body.get("config") or {}).get("limit")
    return int(limit) if isinstance(limit, (int, float)) and limit >= 1 else None


def _entry(body: dict[str, Any], name: str) -> dict[str, Any]:
    result = body["results"].get(name, {})
    better = (body.get("higher_is_better") or {}).get(name) or {}
    metrics = records.metrics(canon.finite(result), better, {})
    return {"alias": str(result.get("alias", name)), "metrics": metrics}
