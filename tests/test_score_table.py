"""A score looks the same everywhere: one order, direction, scale, interval and headline metric."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import support
from hypothesis import given
from hypothesis import strategies as st
from support import call, steady

from evalkit.base import schema, statistics
from evalkit.record.reading import score_table
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.findings import Report
from evalkit.show.export import every_eval_ever, tables
from evalkit.show.source import Source, headline_rows, rows

EXAMPLE = next((support.ROOT / "results/example").glob("*/record.json"))


def record(groups: dict[str, list[str]], tasks: dict[str, dict[str, Any]], **n: int) -> Any:
    """The committed record with other tasks; a group says nothing of a metric's direction where its
    members are groups, as lm-eval leaves it."""
    made = json.loads(EXAMPLE.read_text())
    example = made["tasks"]["demo_qa"]
    made["tasks"] = {
        name: example | {"alias": name, "n": n.get(name, 100), "metrics": metrics}
        for name, metrics in tasks.items()
    }
    shared = {m: v for metrics in tasks.values() for m, v in metrics.items()}
    made["groups"] = {
        name: {
            "alias": name,
            "version": None,
            "subtasks": below,
            "n": 100 * len(tasks),
            "metrics": {
                metric: value | ({"higher_is_better": None} if set(below) & set(groups) else {})
                for metric, value in shared.items()
            },
        }
        for name, below in groups.items()
    }
    inner = {child for below in groups.values() for child in below}
    made["suite"]["tasks"] = [
        {"task": name, "num_fewshot": None} for name in [*groups, *tasks] if name not in inner
    ]
    return made


def source_of(made: Any) -> Source:
    """A record that nobody verified, as a source."""
    return Source(Path(), made, Report([]), whole=True)


def metric(value: float, better: bool | None = True, stderr: float | None = 0.04) -> dict[str, Any]:
    method = None if stderr is None else "sample standard deviation / sqrt(n)"
    return {"value": value, "stderr": stderr, "stderr_method": method, "higher_is_better": better}


MMLU = {"mmlu": ["stem", "other"], "stem": ["a", "b"], "other": ["c"]}
NESTED = record(MMLU, {name: {"acc,none": metric(0.253)} for name in "abc"})


def test_a_group_of_groups_has_the_direction_and_scale_of_its_leaf_tasks() -> None:
    """mmlu stood as 0.253 beside hellaswag's 40.0, without an interval."""
    (mmlu, stem, other) = score_table.scores(NESTED)
    assert [each.task for each in (mmlu, stem, other)] == ["mmlu", "stem", "other"]
    assert mmlu.higher_is_better and mmlu.share and mmlu.low is not None
    assert r"25.3 $\pm$ 4.0" in tables.to_latex([headline_rows(NESTED)])
    mixed = record({"g": ["a", "b"]}, {"a": {"m,none": metric(0.1)},
                                       "b": {"m,none": metric(0.1, False)}})  # fmt: skip
    mixed["groups"]["g"]["metrics"]["m,none"]["higher_is_better"] = None
    assert score_table.direction(mixed, "g", "m,none") is None


def test_every_view_lists_subgroups_and_leaf_tasks_below_their_group() -> None:
    found = [(row.score.depth, row.score.task) for row in rows(NESTED)]
    assert found == [(0, "mmlu"), (1, "stem"), (2, "a"), (2, "b"), (1, "other"), (2, "c")]


def test_a_group_without_a_score_gives_its_place_to_what_it_holds() -> None:
    made = record({"g": ["a", "b"]}, {"z": {"acc,none": metric(0.5)}, "a": {"acc,none": metric(1)},
                                      "b": {"exact_match,none": metric(0.0)}})  # fmt: skip
    made["groups"]["g"]["metrics"] = {}
    made["suite"]["tasks"] = [{"task": "g"}, {"task": "z"}]
    assert score_table.rows(made) == [(0, "a"), (0, "b"), (0, "z")]
    assert {row.score.task for row in headline_rows(made)} == {"a", "b", "z"}
    assert "exact" in tables.to_latex([headline_rows(made)])


def test_one_column_has_one_scale() -> None:
    low, high = (record({}, {"t": {"bleu,none": metric(value)}}) for value in (0.8, 25.3))
    made = tables.to_latex([headline_rows(low), headline_rows(high)])
    assert "0.800" in made and "25.300" in made and "80.0" not in made


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        (["acc,none", "acc_norm,none"], "acc_norm,none"),
        (["exact_match,flexible-extract", "exact_match,strict-match"], "exact_match,strict-match"),
        (["inst_level_loose_acc,none", "prompt_level_strict_acc,none"],
         "prompt_level_strict_acc,none"),
        (["word_perplexity,none", "bits_per_byte,none"], "bits_per_byte,none"),
        ([], None),
    ],
)  # fmt: skip
def test_one_metric_stands_for_a_task(metrics: list[str], wanted: str | None) -> None:
    assert score_table.headline(metrics) == wanted == score_table.headline(metrics[::-1])


@given(st.lists(st.booleans(), min_size=2, max_size=400))
@steady
def test_the_interval_of_zeros_and_ones_is_wilsons_of_their_number(answers: list[bool]) -> None:
    values = [float(answer) for answer in answers]
    share, error = statistics.mean(values), statistics.standard_error(values)
    found = score_table.interval(share, error, len(values), share=True)
    assert found == statistics.wilson(share, len(values))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
@steady
def test_the_interval_of_a_share_stays_between_0_and_1_and_has_a_width(values: list[float]) -> None:
    share, error = statistics.mean(values), statistics.standard_error(values)
    low, high = score_table.interval(share, error, len(values), share=True)
    assert low is not None and high is not None
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1 and high > low


def test_none_of_n_has_an_interval_and_a_perplexity_none_below_nothing() -> None:
    assert score_table.interval(0.0, 0.0, 48, share=True) == statistics.wilson(0, 48)
    assert score_table.interval(0.5, None, 48, share=True) == (None, None)
    assert score_table.interval(12.0, 0.0, 48, share=False) == (None, None)
    assert score_table.interval(0.5, math.nan, 1, share=False)[0] != 0.5


def test_guessing_is_one_over_the_choices_and_none_for_a_text() -> None:
    def asked(responses: int, *metrics: str) -> Document:
        return Document("t", 0, [{"resps": [[["-1", "False"]]] * responses, "metrics": metrics}])

    assert asked(4, "acc").chance == 1 / 4
    assert asked(8, "acc", "acc_mutual_info").chance == 1 / 4
    assert asked(1, "exact_match").chance == 0


@pytest.mark.parametrize(
    "made",
    [
        NESTED,
        record({}, {"t": {"word_perplexity,none": metric(31.4, False, None),
                          "bits_per_byte,none": metric(0.9, False, None)}}),
        record({}, {"t": {"mcc,none": metric(-0.2), "other,none": metric(3.5, None)}}),
    ],
    ids=["groups of groups", "perplexities", "no bounds"],
)  # fmt: skip
def test_every_eval_ever_holds_groups_and_perplexities(made: Any) -> None:
    """It ended in an assertion: a continuous score needs a least and a greatest one."""
    body = json.loads(every_eval_ever.every_eval_ever(source_of(made)))
    assert schema.problems(every_eval_ever.eee_schema(), body) == []
    assert len(body["evaluation_results"]) == len(rows(made))


def test_the_console_shows_intervals_and_no_error_of_nothing(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    (run / "record.json").unlink()
    shown = call("finish", run).done().err
    assert "0.0000 ± 0.0000" not in shown and "0.000 to 0.074" in shown
    assert "demo_cot       0.000 (0.000 to 0.074), chance 0.000: at chance" in shown
