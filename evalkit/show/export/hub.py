"""Scores for the Hub: a model card's `model-index`, and files for a repository's `.eval_results`.

Datasets are named by their ids on the Hub, a group by its leaf tasks' where they share one; what
has no such id (a suite's own files) is in neither. Both are YAML, checked in the tests by the Hub's
own library. The Hub shows `.eval_results` of the benchmarks on its own list only.
"""

import math
from collections.abc import Sequence
from typing import Any

import yaml

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.inputs.suite import OWN_FILES
from evalkit.record.reading.scores import score_table
from evalkit.show.scores.rows import Row, headline
from evalkit.show.source import Source

# The task of a dataset, by its id and lm-eval's task, where the Hub calls it otherwise.
TASKS = {("Idavidrein/gpqa", "gpqa_diamond_zeroshot"): "gpqa_diamond",
         ("Idavidrein/gpqa", "gpqa_diamond_n_shot"): "gpqa_diamond"}  # fmt: skip
Value = dict[str, Any]


def model_index(sources: Sequence[Source]) -> str:
    """The suites' members as `model-index`, to put into a card's head: a model each, with all the
    runs of it."""
    models: dict[str, list[Value]] = {}
    for source in sources:
        entries: dict[str, Value] = {}
        for row in headline(source.record, source.mark):
            if not math.isfinite(row.value):
                continue
            entry = entries.setdefault(row.task, _entry(source, row))
            metric = {"type": row.metric, "name": row.name, "value": row.value}
            args = {"stderr": row.stderr, "run": row.run, "answers": row.answers}
            args |= {"verdict": source.report.verdict.partition(":")[0]}
            entry["metrics"].append(metric | {"args": canon.finite(args)})
        models.setdefault(score_table.model_name(source.record), []).extend(entries.values())
    body = {"model-index": [{"name": n, "results": found} for n, found in models.items()]}
    return _marked(sources) + _yaml(body)


def _entry(source: Source, row: Row) -> Value:
    found = _dataset(source.record, row.task)
    dataset: Value = {"type": row.task, "name": row.task} | found
    args = {"num_few_shot": row.shots, "documents": row.documents, "partial": row.partial}
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": dataset | {"args": args},
        "metrics": [],
    }


def _dataset(record: Value, task: str) -> Value:
    """What is known of the dataset of a task, or of all leaf tasks of a group alike."""
    leaves = [record["tasks"][leaf]["dataset"] for leaf in score_table.below(record, task)]
    found = {}
    for key, name in (("repo", "type"), ("config", "config"), ("split", "split"),
                      ("revision", "revision")):  # fmt: skip
        values = {leaf[key] if isinstance(leaf[key], str) else None for leaf in leaves}
        value = values.pop() if len(values) == 1 else None
        if value is not None:
            found[name] = value
    if str(found.get("type", "")).startswith(OWN_FILES):
        return {}
    return found


def eval_results(sources: Sequence[Source], pack: str) -> str:
    """One model's runs as a file for its repository's `.eval_results`: its tasks' headline metrics,
    shares in per cent, whose source is the public pack at the address `pack`."""
    if len({score_table.model_name(source.record) for source in sources}) > 1:
        raise EvalkitError("these are of several models", fix="export each model by itself")
    entries = [
        _result(source, row, pack)
        for source in sources
        for row in headline(source.record, source.mark)
        if row.headline and math.isfinite(row.value) and "type" in _dataset(source.record, row.task)
    ]
    if not entries:
        raise EvalkitError("no task is of a dataset on the Hub, so there is nothing to list")
    return _marked(sources) + _yaml(entries)


def _result(source: Source, row: Row, pack: str) -> Value:
    dataset = _dataset(source.record, row.task)
    name = str(dataset["type"])
    listed = {"id": name, "task_id": TASKS.get((name, row.task), row.task)}
    if "revision" in dataset:
        listed["revision"] = dataset["revision"]
    notes = [f"{row.shots}-shot {row.name}", f"{row.documents:,} documents"]
    notes += ["a part of them"] if row.partial else []
    notes += [f"evalkit run {row.run[7:19]}", source.report.verdict.partition(":")[0]]
    body: Value = {
        "dataset": listed,
        "value": round(100 * row.value, 4) if row.share else row.value,
    }
    if source.record["created"]:
        body["date"] = source.record["created"]
    if pack:
        body["source"] = {"url": pack, "name": "evalkit record"}
    return body | {"notes": ", ".join(notes)}


def _marked(sources: Sequence[Source]) -> str:
    told = [f"# {s.path.name} is {s.mark}: do not publish\n" for s in sources if s.mark]
    return "".join(
        "".join(c if c.isprintable() else " " for c in line[:-1]) + "\n" for line in told
    )


def _yaml(body: Any) -> str:
    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True))
