"""verify, samples, answers, scores: a score follows from its answer, an aggregate from scores."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from runs import Run
from verifying import failed, judged, line, resealed, set_score

from evalkit.judge.verify import Status, verify
from evalkit.judge.verify.checks import aggregates, scores
from evalkit.record.reading import folder
from evalkit.record.reading.evidence.samples import Samples

pytestmark = pytest.mark.usefixtures("without_lm_eval")


def test_a_changed_response_in_a_sample_is_not_the_journals(tmp_path: Path) -> None:
    run = Run()
    run.samples[0]["resps"][0][0] = ["-0.5", "True"]
    run.samples[0]["filtered_resps"][0] = ["-0.5", "True"]
    report = judged(run, tmp_path)
    assert "answers" in failed(report)
    assert "arc_challenge/0/0/0 was answered" in line(report, "answers", Status.FAIL)


@pytest.mark.parametrize("name", ["target", "prompt"])
def test_a_changed_target_or_prompt_is_not_what_its_hash_says(tmp_path: Path, name: str) -> None:
    run = Run()
    if name == "target":
        run.samples[0]["target"] = "0"
    else:
        for argument in run.samples[0]["arguments"].values():
            argument["arg_0"] = "Psst, it is B. " + argument["arg_0"]
    report = judged(run, tmp_path)
    assert "samples" in failed(report)
    assert f"is not what its {name}_hash says" in line(report, "samples", Status.FAIL)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_a_raised_score_with_every_aggregate_put_right_is_not_the_answers(
    tmp_path: Path, metric: str
) -> None:
    run = Run()
    set_score(run, metric, 1.0)
    report = judged(run, tmp_path)
    assert failed(report) == {"scores"}
    assert f"{metric} is 1.0, should be 0.0" in line(report, "scores", Status.FAIL)


def test_a_raised_pair_of_a_perplexity_is_not_the_answers(tmp_path: Path) -> None:
    run = Run()
    sample = run.samples[-1]
    assert sample["task"] == "whole_texts"
    sample["word_perplexity"] = [-0.5, sample["word_perplexity"][1]]
    report = judged(run, tmp_path)
    assert failed(report) == {"scores", "aggregates"}


def test_a_score_raised_in_the_record_alone_is_found_twice(tmp_path: Path) -> None:
    run = Run()
    run.record["tasks"]["mmlu_anatomy"]["metrics"]["acc,none"]["value"] = 0.9
    report = judged(run, tmp_path)
    assert {"aggregates", "results"} <= failed(report)
    assert "mmlu_anatomy acc,none is 0.9, the samples give" in line(
        report, "aggregates", Status.FAIL
    )


def test_a_score_raised_in_record_and_results_is_not_the_samples(tmp_path: Path) -> None:
    run = Run()
    run.record["groups"]["science"]["metrics"]["acc,none"]["value"] = 0.9
    for section in ("results", "groups"):
        run.results[section]["science"]["acc,none"] = 0.9
    report = judged(run, tmp_path)
    assert failed(report) == {"aggregates"}


@pytest.mark.parametrize("name", ["mmlu_anatomy", "science"])
def test_a_narrowed_standard_error_is_found(tmp_path: Path, name: str) -> None:
    run = Run()
    section = "groups" if name == "science" else "tasks"
    metric = run.record[section][name]["metrics"]["acc,none"]
    metric["stderr"] /= 2
    for entry in (run.results["results"], run.results["groups"]):
        if name in entry:
            entry[name]["acc_stderr,none"] = metric["stderr"]
    assert failed(judged(run, tmp_path)) == {"aggregates"}


def test_a_group_not_weighted_by_size_is_said_to_be_one(tmp_path: Path) -> None:
    run = Run()
    run.lock["group_scores"]["science"]["metrics"]["acc"]["weight_by_size"] = False
    leaves = [run.record["tasks"][leaf]["metrics"]["acc,none"] for leaf in run.groups["science"]]
    value = sum(metric["value"] for metric in leaves) / 2
    error = sum(metric["stderr"] ** 2 for metric in leaves) ** 0.5 / 2
    run.record["groups"]["science"]["metrics"]["acc,none"] |= {"value": value, "stderr": error}
    for section in ("results", "groups"):
        run.results[section]["science"] |= {"acc,none": value, "acc_stderr,none": error}
    report = judged(run, tmp_path)
    assert failed(report) == set()
    assert "plain means, not weighted by size: science" in line(report, "aggregates", Status.PASS)


def test_an_aggregation_that_only_lm_eval_has_is_skipped_by_name(tmp_path: Path) -> None:
    run = Run()
    run.configs["arc_challenge"]["metric_list"][1] = {"metric": "acc_norm", "aggregation": "f1"}
    report = judged(run, tmp_path)
    assert "arc_challenge acc_norm,none (f1)" in line(report, "aggregates", Status.SKIP)


def test_values_that_no_run_has_are_out_of_range(tmp_path: Path) -> None:
    for key, value in (("acc,none", 1.5), ("acc,none", "nan"), ("acc_norm,none", -0.1)):
        run = Run()
        run.record["tasks"]["arc_challenge"]["metrics"][key]["value"] = value
        report = verify(run.write(tmp_path / f"{key}{value}"))
        assert "ranges" in failed(report)
    run = Run()
    run.record["tasks"]["whole_texts"]["metrics"]["word_perplexity,none"]["value"] = 0.5
    assert "ranges" in failed(verify(run.write(tmp_path / "perplexity")))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not gzip",
        gzip.compress(b'{"task": 1}\n', mtime=0),
        gzip.compress(b"[]\n" * 5, mtime=0),
        b"\x1f\x8b",
    ],
    ids=["empty", "not gzip", "wrong types", "lists", "torn"],
)
def test_unreadable_samples_are_failures_and_not_a_crash(tmp_path: Path, text: bytes) -> None:
    path = Run().write(tmp_path / "run")
    assert {"completeness", "plan"} <= failed(verify(resealed(path, "samples.jsonl.gz", text)))


def test_a_gzip_bomb_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MAX_STREAM", 60_000)
    monkeypatch.setattr(folder, "MAX_LINE", 40_000)
    path = Run().write(tmp_path / "run")
    cases = ((b"\n" * 80_000, "is over the limit of"), (b"x" * 50_000, "longer than"))
    for line_of, text in cases:
        report = verify(resealed(path, "samples.jsonl.gz", gzip.compress(line_of)))
        assert text in "\n".join(check.detail for check in report.checks)


def test_a_generation_may_say_nan() -> None:
    sample = {"resps": [["nan"]]}
    assert scores.has_nan(sample, "loglikelihood_rolling")
    assert not scores.has_nan(sample, "generate_until")
    assert scores.has_nan({"resps": [[["-1.0", "False"]], [["nan", "False"]]]}, "multiple_choice")


def test_equal_numbers_are_equal_to_a_billionth() -> None:
    assert scores.same(1, 1.0)
    assert scores.same("nan", float("nan"))
    assert scores.same([1.0, "-inf"], (1.0, float("-inf")))
    assert not scores.same(1.0, 1.0 + 1e-6)
    assert not scores.same("1.0", 1.0)
    assert not scores.same(None, 0.0)


def test_the_last_line_says_what_is_not_scored_again(tmp_path: Path) -> None:
    """A generation's score, say, which only lm-eval makes: raised, it passed without a word."""
    run = Run()
    sample = next(s for s in run.samples if "exact_match" in s)
    sample["exact_match"] = 1.0 - sample["exact_match"]
    run.aggregate()
    report = judged(run, tmp_path)
    assert report.verdict.endswith("; 1 tasks' samples are not scored again here")
    without = judged(Run(leave_out=("bbh_cot_fewshot_navigate",)), tmp_path / "without")
    assert "not scored again" not in without.verdict


def test_a_part_of_a_suite_is_called_one_in_the_last_line(tmp_path: Path) -> None:
    assert "; partial: 2 documents a leaf task" in judged(Run(limit=2), tmp_path).verdict


def test_answers_that_are_programs_and_were_never_graded_have_no_score(tmp_path: Path) -> None:
    """The section on graded programs left out, any pass rate was CONSISTENT."""
    run = Run()
    run.configs["bbh_cot_fewshot_navigate"]["unsafe_code"] = True
    report = judged(run, tmp_path)
    assert "none was graded" in line(report, "grading", Status.FAIL)


FLAT = """def agg_inst_level_acc(items):
    flat_items = [item for sublist in items for item in sublist]
    inst_level_acc = sum(flat_items) / len(flat_items)
    return inst_level_acc
"""


@pytest.mark.parametrize(("value", "wrong"), [(0.75, False), (0.76, True), (None, True)])
def test_the_mean_over_all_instructions_is_computed_again(value: float | None, wrong: bool) -> None:
    """ifeval's, of which any value was CONSISTENT: it is made by a function of its own."""
    samples = Samples()
    samples.leaves["ifeval"].values["inst", "none"] = (
        [[True, False], [True, True]] if value is not None else [[], []]
    )
    metric = {"value": value or 0.0, "stderr": None, "stderr_method": None}
    record: Any = {"tasks": {"ifeval": {"metrics": {"inst,none": metric}, "n": 2}}, "groups": {}}
    configs = {"ifeval": {"metric_list": [{"metric": "inst", "aggregation": FLAT}]}}
    (check,) = aggregates.Aggregates(record, configs, samples).check()
    assert (check.status is Status.FAIL) is wrong, check.detail
