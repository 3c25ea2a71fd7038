"""Scores for the Hub: a model card's `model-index`, and files for a repository's `.eval_results`.

Datasets are named by their ids on the Hub, a group by its leaf tasks' where they share one; what
has no such id (a suite's own files) is in neither. Both are YAML, checked in the tests by the Hub's
own library. The Hub shows `.eval_results` of the benchmarks on its own list only.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import yaml

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.inputs.suite import OWN_FILES
from evalkit.record.reading import score_table
from evalkit.record.reading.score_table import Score
from evalkit.record.types import AnyRecord
from evalkit.show.source import Source, headline_rows

# The task of a dataset, by its id and lm-eval's task, where the Hub calls it otherwise.
TASKS = {("Idavidrein/gpqa", "gpqa_diamond_zeroshot"): "gpqa_diamond",
         ("Idavidrein/gpqa", "gpqa_diamond_n_shot"): "gpqa_diamond"}  # fmt: skip


def model_index(sources: Sequence[Source]) -> str:
    """Return the suites' members as `model-index` for a card's head: one entry a model."""
    models: dict[str, list[object]] = {}
    for source in sources:
        results = models.setdefault(score_table.model_name(source.record), [])
        by_task = groupby(_finite_scores(source), key=lambda score: score.task)
        results += [_entry(source, list(scores)) for _, scores in by_task]
    body = {"model-index": [{"name": n, "results": results} for n, results in models.items()]}
    return _warning(sources) + _yaml(body)


def _finite_scores(source: Source) -> list[Score]:
    scores = [row.score for row in headline_rows(source.record)]
    return [score for score in scores if math.isfinite(score.value)]


def _entry(source: Source, scores: list[Score]) -> dict[str, object]:
    record, first = source.record, scores[0]
    dataset: dict[str, object] = {"type": first.task, "name": first.task}
    dataset |= _dataset(record, first.task)
    args = {"num_few_shot": first.shots, "documents": first.count,
            "partial": record["suite"]["partial"]}  # fmt: skip
    ids = {"run": record["ids"]["run"], "answers": record["ids"]["answers"],
           "verdict": source.report.verdict.partition(":")[0]}  # fmt: skip
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": dataset | {"args": args},
        "metrics": [
            {"type": score.metric_name, "name": score.name, "value": score.value,
             "args": canon.finite({"stderr": score.stderr} | ids)}
            for score in scores
        ],
    }  # fmt: skip


def _dataset(record: AnyRecord, task: str) -> dict[str, str]:
    """Return what all leaf tasks of a task or group have alike; nothing for data not on the Hub."""
    leaves = [record["tasks"][leaf]["dataset"] for leaf in score_table.below(record, task)]
    known: dict[str, str] = {}
    for key, name in (("repo", "type"), ("config", "config"), ("split", "split"),
                      ("revision", "revision")):  # fmt: skip
        values = [leaf.get(key) for leaf in leaves]
        first = values[0] if values else None
        if isinstance(first, str) and values.count(first) == len(values):
            known[name] = first
    return {} if known.get("type", "").startswith(OWN_FILES) else known


def eval_results(sources: Sequence[Source], pack: str) -> str:
    """Return one model's runs as a file for its repository's `.eval_results`: its tasks' headline
    metrics, shares in per cent. Their source is the public pack at the address `pack`."""
    if len({score_table.model_name(source.record) for source in sources}) > 1:
        raise EvalkitError("these are of several models", fix="export each model by itself")
    entries = [
        _result(source, score, pack)
        for source in sources
        for score in _finite_scores(source)
        if score.headline and "type" in _dataset(source.record, score.task)
    ]
    if not entries:
        raise EvalkitError("no task is of a dataset on the Hub, so there is nothing to list")
    return _warning(sources) + _yaml(entries)


def _result(source: Source, score: Score, pack: str) -> dict[str, object]:
    record = source.record
    dataset = _dataset(record, score.task)
    name = dataset["type"]
    listed = {"id": name, "task_id": TASKS.get((name, score.task), score.task)}
    if "revision" in dataset:
        listed["revision"] = dataset["revision"]
    notes = [f"{score.shots}-shot {score.name}", f"{score.count:,} documents"]
    notes += ["a part of them"] if record["suite"]["partial"] else []
    notes += [f"evalkit run {record['ids']['run'][7:19]}", source.report.verdict.partition(":")[0]]
    value = round(100 * score.value, 4) if score.share else score.value
    body: dict[str, object] = {"dataset": listed, "value": value}
    if record["created"]:
        body["date"] = record["created"]
    if pack:
        body["source"] = {"url": pack, "name": "evalkit record"}
    return body | {"notes": ", ".join(notes)}


def _warning(sources: Sequence[Source]) -> str:
    """Return a comment for each source that must not be published."""
    lines = [f"# {s.path.name} is {s.mark}: do not publish" for s in sources if s.mark]
    return "".join("".join(c if c.isprintable() else " " for c in x) + "\n" for x in lines)


def _yaml(body: object) -> str:
    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True))
