"""Tasks as people bring them, from the question to the record: one whose scoring fails and is
mended, odd values in data fields, groups without their metric, documents without text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import yaml
from test_own_data import ROWS, files, suite_of, write

from evalkit.base import canon
from evalkit.harness import locking, samples

pytest.importorskip("lm_eval")

Tiny = Callable[..., Path]
BAD = "def score(doc, results):\n    return {'number': float(results[0].index('answer: '))}\n"
GOOD = "def score(doc, results):\n    return {'number': float(len(results[0]))}\n"


@pytest.fixture
def model(tiny_model: Tiny) -> Path:
    return tiny_model(tokenizer="gpt2", max_length=128)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks" / "d.jsonl", ROWS)
    return tmp_path / "tasks"


def ran(suite: Path, model: Path, *more: str) -> support.Ran:
    locking.write_lock(str(suite), offline=True)
    out = suite.parent / "results"
    return support.call(
        "eval", "--model", model, "--suite", suite, "--offline", "--out", out, *more
    )


def own_scored(folder: Path) -> Path:
    form = files("d.jsonl") | {"metric_list": [{"metric": "number", "aggregation": "mean"}]}
    return suite_of(folder, {"own": form}, "process_results: !function own.score\n")


def test_a_task_that_fails_while_scoring_goes_on_once_it_is_mended(
    folder: Path, model: Path
) -> None:
    """The answers are kept, the task and its line are named, and nothing is computed again."""
    (folder / "own.py").write_text(BAD)
    suite = own_scored(folder)
    line = ran(suite, model).refused(
        1, "task 'l_own' can't be scored", "own.py line 2", "finish RUN"
    )
    assert "substring not found" in line
    (failed,) = (folder.parent / "results").glob("*/own-*")
    (folder / "own.py").write_text(GOOD)
    ran(suite, model).refused(2, "suite.task_files.own.py", "evalkit finish RUN")
    again = support.call("finish", failed, "--suite", suite, "--model", model, "--offline").done()
    record = support.read(again.folder)
    assert again.folder != failed
    assert record["carried"] == {"run": support.read(failed, "run.json")["ids"]["run"],
                                 "batches": support.num_batches(failed)}  # fmt: skip
    assert record["tasks"]["l_own"]["metrics"]["number,none"]["value"] > 0
    assert "CONSISTENT" in again.err
    verdict = support.call("verify", again.folder).done()
    assert "before the suite's tasks were mended" in verdict.out + verdict.err
    assert ran(suite, model).done().folder == again.folder, "the mended suite's run is that one"


def test_answers_to_other_prompts_are_not_scored(folder: Path, model: Path) -> None:
    (folder / "own.py").write_text(BAD)
    suite = own_scored(folder)
    ran(suite, model).refused(1, "can't be scored")
    (failed,) = (folder.parent / "results").glob("*/own-*")
    text = (folder / "own.yaml").read_text()
    (folder / "own.yaml").write_text(text.replace("{{q}}", "Q: {{q}}"))
    locking.write_lock(str(suite), offline=True)
    support.call("finish", failed, "--suite", suite, "--model", model, "--offline").refused(
        2, "the prompts of task 'l_own' are not those that were answered"
    )


def test_a_failing_aggregation_names_its_task(folder: Path, model: Path) -> None:
    """lm-eval aggregates all tasks at once; which one failed has to be found."""
    rows = [{"q": f"{n}?", "g": n % 3} for n in range(6)]
    write(folder / "d.jsonl", rows)
    choices = {
        "output_type": "multiple_choice", "doc_to_target": "g",
        "doc_to_choice": ["one", "two", "three"],
    }  # fmt: skip
    forms = {
        "fine": files("d.jsonl") | choices | {"metric_list": [{"metric": "acc"}]},
        "f1": files("d.jsonl") | choices | {"metric_list": [{"metric": "f1"}]},
    }
    found = ran(suite_of(folder, forms), model).refused(1, "task 'l_f1' can't be scored")
    assert "multiclass" in found


def test_odd_values_in_data_fields_make_no_record_broken(folder: Path, model: Path) -> None:
    """JSON has no NaN: a document that has one is told from one with the text "nan"."""
    lines = [
        '{"q": "a \\u2028 b", "a": "[1, 2]", "x": NaN, "d": "2024-01-01T00:00:00", "n": null}',
        '{"q": "tab\\there", "a": "3.0", "x": 1.5, "d": "2024-01-02T00:00:00", "n": null}',
    ]
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")
    run = ran(suite_of(folder, {"odd": files("d.jsonl")}), model).done().folder
    support.call("verify", run).done()


@pytest.mark.parametrize(
    "value",
    [float("nan"), "nan", [1.5, float("-inf")], {"float": "nan"}, {"float": [{"float": 1}]}],
)
def test_a_marked_value_can_be_unmarked(value: Any) -> None:
    again = samples.unmarked(json.loads(canon.dumps(samples.marked(value))))
    assert repr(again) == repr(value)


def test_tasks_are_shown_where_their_group_has_not_their_metric(folder: Path, model: Path) -> None:
    write(folder / "d.jsonl", [row | {"g": 0, "c": ["yes", "no"]} for row in ROWS])
    choices = {"output_type": "multiple_choice", "doc_to_target": "g", "doc_to_choice": "{{c}}"}
    forms = {
        "words": files("d.jsonl"),
        "choices": files("d.jsonl") | choices | {"metric_list": [{"metric": "acc"}]},
    }
    suite = suite_of(folder, forms)
    groups = {"g_miss": "f1", "g_part": "acc"}
    for name, metric in groups.items():
        body = {"group": name, "task": [f"l_{form}" for form in forms],
                "aggregate_metric_list": [{"metric": metric}]}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(body))
    for name in groups:
        body = {"name": name, "tasks": [name], "include_path": "tasks"}
        suite.write_text(yaml.safe_dump(body))
        shown = ran(suite, model).done().err
        assert "l_words" in shown, name
        assert ("l_choices" in shown) == (name == "g_miss")


def test_a_document_without_text_counts_as_lm_eval_counts_it(folder: Path, model: Path) -> None:
    """Where the tokenizer puts nothing in front, lm-eval sums over no windows: 0."""
    write(folder / "d.jsonl", [{"t": "Some words about water."}, {"t": ""}, {"t": "And a third."}])
    form = files("d.jsonl") | {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{t}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }  # fmt: skip
    form |= {"generation_kwargs": None}
    run = ran(suite_of(folder, {"empty": form}), model).done().folder
    assert support.read(run)["health"]["empty_texts"] == 1
    support.call("verify", run).done()
    plan = support.read(run, "plan.json")
    assert plan["empty_texts"] == {"l_empty": ["1/0/0"]}
