"""Shapes of tasks and groups that lm-eval scores in a way of its own: an honest run of each is
CONSISTENT. Every one of them was called BROKEN once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_traps import CHOICES, DOCUMENTS, make, write_suite

from evalkit.base import canon
from evalkit.judge.verify import verify
from evalkit.record import sections
from evalkit.record.reading import scored

pytest.importorskip("lm_eval")

# What a task's own code may give besides what its YAML lists, or leave out.
CODE = """def more(doc, results):
    return {"listed": 0.5, "acc": 1.0}


def some(doc, results):
    return {"listed": 1.0} if doc["answer"] else {}


def single(doc, results):
    import numpy

    return {"listed": numpy.float32(0.1 * doc["answer"] + 0.2), "acc": numpy.float32(0.7)}


def pairs(doc, results):
    return {"listed": (doc["answer"], 0)}


def largest(items):
    return 100.0 * max(items)


def first(items):
    return float(items[0][0])


def two_in_one(references, predictions, **_):
    return {"length": float(len(predictions[0])), "empty": float(not predictions[0])}
"""
GENERATES = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
}
LISTED = {"metric_list": [{"metric": "listed", "aggregation": "mean", "higher_is_better": True}]}
FILTERED = {
    "filter_list": [
        {"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "flexible")
    ],
    "metric_list": [{"metric": "exact_match"}],
}
FORMS: dict[str, dict[str, Any]] = {
    "own_a": CHOICES,
    "own_b": CHOICES,
    "own_c": CHOICES,
    "own_more": GENERATES | LISTED | {"process_results": "more"},
    "own_some": GENERATES | LISTED | {"process_results": "some"},
    "own_two": GENERATES | {
        "metric_list": [
            {"metric": "two_in_one", "aggregation": "median", "higher_is_better": False}
        ]
    },
    "own_single": GENERATES | LISTED | {"process_results": "single"},  # of less precision
    "own_pairs": GENERATES | LISTED | {"process_results": "pairs"},
    "own_brier": CHOICES | {"metric_list": [{"metric": "brier_score"}, {"metric": "acc"}]},
    "own_first": CHOICES | {  # a score that is no mean of its values, and so in no range
        "metric_list": [
            {"metric": "acc", "aggregation": "largest", "higher_is_better": True}
        ]
    },
    "own_texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{% if answer %}{{question}}{% endif %}",  # every second one is empty
        "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "own_filtered": GENERATES | FILTERED,
    "own_short": GENERATES | FILTERED,
}  # fmt: skip
GROUPS = {
    "first": (["own_a", "own_b"], [{"metric": "acc"}]),
    "third": (["own_c", "own_single"], [{"metric": "acc"}]),
    "second": (["own_a", "own_more"], [{"metric": "acc", "weight_by_size": False}]),
    "both": (["first", "second"], [{"metric": "acc"}]),  # own_a counts twice
    "filtered": (
        ["own_filtered", "own_short"],
        [
            {"metric": "exact_match", "filter_list": "strict", "weight_by_size": False},
            {"metric": "exact_match", "filter_list": "flexible", "weight_by_size": True},
        ],
    ),
}


def test_an_honest_run_of_shapes_that_lm_eval_scores_its_own_way_is_consistent(
    tmp_path: Path, write_task: Callable[..., Path], tiny_model: Callable[..., Path]
) -> None:
    tasks = tmp_path / "tasks"
    for name, form in FORMS.items():
        code = str(form.get("process_results", ""))
        own = {key: value for key, value in form.items() if key != "process_results"}
        extra = f"process_results: !function code.{code}\n" if code else ""
        rows = DOCUMENTS[:5] if name == "own_short" else DOCUMENTS
        path = write_task(tasks, name, rows, extra=extra, **own)
        text = path.read_text().replace("metric: two", "metric: !function code.two")
        text = text.replace("aggregation: largest", "aggregation: !function code.largest")
        path.write_text(text.replace("mean", "!function code.first") if code == "pairs" else text)
    for name, (children, how) in GROUPS.items():
        body = {"group": name, "task": children, "aggregate_metric_list": how}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(body))
    (tasks / "code.py").write_text(CODE)
    others = ("own_some", "own_two", "own_pairs", "own_brier", "own_texts", "own_first")
    suite = write_suite(tmp_path, "both", *others, "filtered", "third")
    finished = make(suite, tiny_model(), tmp_path / "out")
    record = canon.read_json(finished / "record.json")
    assert record["groups"]["both"]["n"] == 48  # of 36 documents: own_a's count twice
    assert record["tasks"]["own_some"]["n"] == 6
    assert record["tasks"]["own_more"]["metrics"]["acc,none"]["higher_is_better"] is None
    methods = {k: m["stderr_method"] for k, m in record["groups"]["filtered"]["metrics"].items()}
    assert methods == {
        "exact_match,strict": sections.UNWEIGHTED, "exact_match,flexible": sections.POOLED,
    }  # fmt: skip
    report = verify(finished)
    assert report.consistent, report.checks
    assert "own_some (6) without a score" in str(report.checks)
    leaves = scored.read(finished).leaves  # what audit and compare read
    assert set(leaves["own_texts"].metrics) == {"byte_perplexity,none", "bits_per_byte,none"}
    no_mean = "its score is not a mean over documents"
    assert leaves["own_brier"].left_out == {"brier_score,none": no_mean}
    assert leaves["own_pairs"].left_out == {"listed,none": no_mean}
