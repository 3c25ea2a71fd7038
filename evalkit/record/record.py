"""The record: what was asked, what was answered, what was scored, with what and on what.

Built here from plain values (run.json, lm-eval's results, the journal's digests, the events);
`write` checks it against schemas/record.schema.json and puts it on the disk last, so that a record
that is there says the run finished.
"""

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.harness.samples import Sample, flat, value_of
from evalkit.inputs.locked import Lock, group_metric
from evalkit.inputs.types import FileEntry, GroupMetric, MetricEntry
from evalkit.plan.types import PlanBody
from evalkit.record.journal import Answers
from evalkit.record.reading import identity
from evalkit.record.sections import (
    BOOTSTRAP,
    MEAN,
    POOLED,
    UNWEIGHTED,
    GroupResult,
    Health,
    Metric,
    TaskResult,
)

SCHEMA = "evalkit/record/4"
BLOCK = 1 << 20  # bytes of samples.jsonl.gz that are held back


def write_samples(path: Path, samples: Iterable[Sample]) -> "SampleFacts":
    """Write samples.jsonl.gz, the same bytes for the same samples; note facts for the record."""
    facts = SampleFacts()
    canon.write_atomic(path, _zipped(samples, facts))
    return facts


def _zipped(samples: Iterable[Sample], facts: "SampleFacts") -> Iterator[bytes]:
    block = io.BytesIO()
    with gzip.GzipFile(fileobj=block, mode="wb", compresslevel=6, mtime=0, filename="") as zipped:
        for sample in samples:
            facts.add(sample)
            text = json.dumps(canon.finite(sample), ensure_ascii=False, allow_nan=False)
            zipped.write(text.encode() + b"\n")
            if block.tell() >= BLOCK:
                yield block.getvalue()
                block = zipped.fileobj = io.BytesIO()
    yield block.getvalue()


@dataclass
class SampleFacts:
    """Per leaf task: its questions and prompts in order, of texts also the values of each metric,
    and what the health section counts."""

    questions: dict[str, list[list[Any]]] = field(default_factory=dict)
    prompts: dict[str, list[list[Any]]] = field(default_factory=dict)
    values: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    not_found: int = 0
    _first_filter: dict[str, str] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        """Take in one line of samples.jsonl.gz."""
        task, doc_id = sample["task"], sample["doc_id"]
        # lm-eval's regex filters answer "[invalid]" where they find nothing
        self.not_found += any(answer == "[invalid]" for answer in flat(sample["filtered_resps"]))
        if isinstance(next(flat(sample["resps"]), None), str):
            for metric in sample["metrics"]:
                values = self.values.setdefault(task, {})
                key = f"{metric},{sample['filter']}"
                values.setdefault(key, []).append(value_of(sample, metric))
        if self._first_filter.setdefault(task, sample["filter"]) != sample["filter"]:
            return
        self.questions.setdefault(task, []).append(
            [doc_id, sample["doc_hash"], sample["target_hash"]]
        )
        self.prompts.setdefault(task, []).append([doc_id, sample["prompt_hash"]])


def health(
    plan: PlanBody, answers: Answers, facts: SampleFacts, multiple_choice: set[str],
    split_batches: int,
) -> Health:  # fmt: skip
    """Counts of what should be zero. Exact ties are looked for in multiple-choice tasks only; which
    texts were cut is unknown where the engine does not say why they ended."""
    texts = answers.texts.values()
    untold = next((each.untold for each in texts if each.untold), None)
    counts: Health = {
        "truncated_prompts": sum(plan["truncated"].values()),
        "missing_bos": plan["missing_bos"],
        "double_bos": plan["double_bos"],
        "appended_eos": plan["appended_eos"],
        "dropped_system_turns": plan["dropped_system_turns"],
        "fewshot_leaks": sum(plan["leaking"].values()),
        "empty_texts": sum(map(len, plan["empty_texts"].values())),
        "empty_generations": answers.empty,
        "cut_generations": untold or sum(each.cut for each in texts),
        "answers_not_found": facts.not_found,
        "nan_answers": answers.nan_documents,
        "exact_ties": sum(count for leaf, count in answers.ties.items() if leaf in multiple_choice),
        "split_batches": split_batches,
    }
    if any(each.thinks for each in texts):
        counts["endless_thoughts"] = sum(each.endless for each in texts)
    return counts


def metrics(
    result: Mapping[str, Any], higher_is_better: Mapping[str, bool | None],
    method: Mapping[str, str | None], otherwise: str | None = None,
) -> dict[str, Metric]:  # fmt: skip
    """A task's or group's `<metric>,<filter>` entries, each with its standard error. `method` says
    how lm-eval made a metric's standard error, by entry or by metric name; `otherwise`: that of a
    metric that is not among them."""
    found: dict[str, Metric] = {}
    for key, value in result.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = result.get(f"{name}_stderr,{filtered}")
        stderr = None if stderr in (None, "N/A") else stderr
        found[key] = {
            "value": value,
            "stderr": stderr,
            "stderr_method": (
                method.get(key, method.get(name, otherwise)) if stderr is not None else None
            ),
            "higher_is_better": higher_is_better.get(name),
        }
    return found


def tasks(
    results: Mapping[str, Any], lock: Lock, facts: SampleFacts, answers: Answers, limit: int | None
) -> dict[str, TaskResult]:
    """The record's tasks section from lm-eval's results."""
    sections: dict[str, TaskResult] = {}
    for name, locked in lock.tasks.items():
        config = results["configs"][name]
        dataset = lock.datasets[locked["dataset"]]
        section: TaskResult = {
            "alias": results["results"][name].get("alias", name),
            "output_type": config["output_type"],
            "version": results["versions"].get(name),
            "num_fewshot": results["n-shot"].get(name) or 0,
            "n": results["n-samples"][name]["effective"],
            "n_expected": min(limit or locked["documents"], locked["documents"]),
            "documents": locked["documents"],
            "metrics": metrics(
                results["results"][name],
                results["higher_is_better"].get(name, {}),
                _methods(locked["metrics"]),
                MEAN,  # of what a metric's function gives by other names, as pass@1
            ),
            "questions": canon.digest(facts.questions[name]),
            "prompts": canon.digest(facts.prompts[name]),
            "dataset": {
                "repo": locked["dataset"],
                "config": locked["config"],
                "split": locked["split"],
                "revision": dataset["revision"],
                "rows": locked["rows"],
                "licence": dataset["licence"],
                "redistributable": dataset["redistributable"],
            },
        }
        if name in answers.texts:
            values = facts.values.get(name, {})
            section["texts"] = answers.texts[name].to_json(values, section["metrics"])
        sections[name] = section
    return sections


def _methods(locked: Mapping[str, MetricEntry]) -> dict[str, str | None]:
    """How lm-eval made each metric's standard error: from its aggregation's name."""
    return {
        name: MEAN if how["aggregation"] == "mean" else BOOTSTRAP for name, how in locked.items()
    }


def groups(
    results: Mapping[str, Any], scored: Mapping[str, Mapping[str, GroupMetric]]
) -> dict[str, GroupResult]:
    """The record's groups section; `scored` says per group how its metrics are aggregated."""
    found: dict[str, GroupResult] = {}
    for name, children in results["group_subtasks"].items():
        result = results["results"].get(name, {})
        methods: dict[str, str | None] = {
            key: POOLED if how["weight_by_size"] else UNWEIGHTED
            for key in result
            if (how := group_metric(scored.get(name, {}), key))
        }
        found[name] = {
            "alias": result.get("alias", name),
            "version": results["versions"].get(name),
            "subtasks": children,
            "n": result.get("sample_len", 0),
            "metrics": metrics(result, results["higher_is_better"].get(name) or {}, methods),
        }
    return found


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file of a run but those that may be there unlisted."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in found}
    return {
        name: {"size": path.stat().st_size, "sha256": canon.sha256_file(path)}
        for path, name in names.items()
        if name not in identity.UNLISTED and not identity.is_passing(name)
    }


def write(folder: Path, record: Mapping[str, object]) -> Path:
    """Check a record against its schema and write it, last and atomically."""
    body = canon.finite(record)
    problems = schema.check("record", body)
    assert not problems, f"the record does not fit its schema: {problems[:3]}"
    path = folder / "record.json"
    canon.write_json(path, body)
    return path
