"""verify, health, engine and segments: what a consistent record must admit."""

from pathlib import Path
from typing import Any

import pytest
import runs
from runs import Run
from verifying import failed, judged, line, made_by, nan_in

from evalkit.judge.verify import Status, verify

pytestmark = pytest.mark.usefixtures("without_lm_eval")


def test_a_nan_answer_fails_health_and_nothing_else(tmp_path: Path) -> None:
    """lm-eval alone would score such a sample right: numpy's argmax calls a NaN the best."""
    run = Run(answer=nan_in("arc_challenge/1/1/0"))
    assert next(s for s in run.samples if s["doc_id"] == 1)["acc"] == 0.0
    report = judged(run, tmp_path)
    assert failed(report) == {"health"}
    assert line(report, "health", Status.FAIL) == "1 samples with a NaN answer"


def test_a_nan_answer_that_scores_is_found(tmp_path: Path) -> None:
    run = Run(answer=nan_in("arc_challenge/1/1/0"))
    next(s for s in run.samples if s["doc_id"] == 1)["acc"] = 1.0
    assert {"scores", "aggregates", "health"} <= failed(judged(run, tmp_path))


def test_a_nan_answer_that_the_record_does_not_own_up_to_is_found(tmp_path: Path) -> None:
    run = Run(answer=nan_in("arc_challenge/1/1/0"))
    run.record["health"]["nan_answers"] = 0
    assert failed(judged(run, tmp_path)) == {"health"}


def test_an_altered_harness_fails_and_an_unknown_one_warns(tmp_path: Path) -> None:
    run = Run()
    run.record["environment"]["harness_intact"] = False
    assert failed(judged(run, tmp_path)) == {"health"}
    run.record["environment"]["harness_intact"] = {"unknown": "no RECORD"}
    report = verify(run.write(tmp_path / "unknown"))
    assert "no RECORD" in line(report, "health", Status.WARN)


def test_counts_that_the_folder_can_tell_are_told(tmp_path: Path) -> None:
    names = ("cut_generations", "empty_generations", "truncated_prompts", "double_bos")
    for name in (*names, "answers_not_found", "exact_ties"):
        run = Run()
        run.record["health"][name] = 1
        assert failed(verify(run.write(tmp_path / name))) == {"health"}, name


def test_what_should_be_zero_is_a_warning_with_its_count(tmp_path: Path) -> None:
    def cut(part: str, answer: dict[str, Any]) -> dict[str, Any]:
        if "text" not in answer:
            return answer
        longest = {"tokens": [5] * 32, "logprobs": [-1.0] * 32, "margins": [1.0] * 32}
        return answer | longest | {"stop": "length"}

    run = Run(answer=cut)
    run.record["health"] |= {"cut_generations": 3, "split_batches": 1}
    run.lines[0] = runs.seal(run.lines[0] | {"split": 2})
    report = judged(run, tmp_path)
    assert failed(report) == set()
    detail = line(report, "health", Status.WARN)
    assert "3 generations cut at the length limit" in detail
    assert "1 batches split because memory ran out" in detail


@pytest.mark.parametrize("recorded", [0, 2])
def test_another_count_of_split_batches_than_the_journals_is_found(
    tmp_path: Path, recorded: int
) -> None:
    run = Run()
    run.lines[0] = runs.seal(run.lines[0] | {"split": 1})
    run.record["health"]["split_batches"] = recorded
    assert "split_batches is 1" in line(judged(run, tmp_path), "health", Status.FAIL)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, "1", None])
def test_a_split_that_is_no_depth_is_no_journal_line(tmp_path: Path, depth: Any) -> None:
    run = Run()
    run.lines[0] = runs.seal(run.lines[0] | {"split": depth})
    assert "journal" in failed(judged(run, tmp_path))


def test_the_engine_has_a_line_that_says_how_it_computed(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert line(report, "engine", Status.PASS) == "evalkit, level tree, native float32"
    assert "bit-repeatable" not in report.lines()[-1]


@pytest.mark.parametrize(
    ("engine", "numerics", "words"),
    [
        ({"bit_repeatable": False}, {}, "evalkit claims bit_repeatable False"),
        ({"name": "lm-eval:hf"}, {}, "lm-eval:hf claims bit_repeatable True"),
        ({"name": "lm-eval:hf", "bit_repeatable": False}, {}, "has level tree, not none"),
        ({"args": {"a": "b"}}, {}, "has no arguments"),
        ({"versions": {"lm_eval": "1"}}, {}, "has no arguments and no versions"),
        ({}, {"tf32": {"unknown": "why"}}, "numerics that it says it does not know"),
    ],
)
def test_an_engine_that_claims_what_it_is_not_is_found(
    tmp_path: Path, engine: dict[str, Any], numerics: dict[str, Any], words: str
) -> None:
    report = judged(made_by(Run(), engine, numerics), tmp_path)
    assert failed(report) - {"agreement"} == {"engine"}
    assert words in line(report, "engine", Status.FAIL)


def untold(part: str, answer: dict[str, Any]) -> dict[str, Any]:
    """A generation of which the engine gives the text only."""
    if "text" not in answer:
        return answer
    why = {"unknown": "the text only"}
    return answer | dict.fromkeys(("tokens", "logprobs", "margins", "stop"), why)


def test_only_a_foreign_engine_may_leave_an_answers_parts_untold(tmp_path: Path) -> None:
    own = judged(Run(answer=untold), tmp_path)
    assert "is not a generate_until answer" in line(own, "journal", Status.FAIL)
    run = made_by(Run(answer=untold), {"name": "lm-eval:hf", "bit_repeatable": False})
    run.record["health"]["cut_generations"] = {"unknown": "the text only"}
    report = judged(run, tmp_path / "foreign")
    assert failed(report) == {"engine"}  # its plan's level is A here; all else is right
    assert "at the length limit: unknown (the text only)" in line(report, "health", Status.WARN)
    assert report.caveat.startswith("not bit-repeatable (lm-eval:hf)")


def test_a_count_that_can_be_known_may_not_be_called_unknown(tmp_path: Path) -> None:
    run = Run()
    run.record["health"]["cut_generations"] = {"unknown": "who knows"}
    assert "cut_generations" in line(judged(run, tmp_path), "health", Status.FAIL)


def test_segments_on_hardware_that_is_not_known_are_not_called_alike(tmp_path: Path) -> None:
    run = Run()
    run.record["segments"][0]["hardware"] = {"unknown": "a server computed it"}
    report = judged(run, tmp_path)
    assert line(report, "segments", Status.WARN) == "what they ran on is not known"


def test_segments_on_unlike_hardware_are_a_warning(tmp_path: Path) -> None:
    run = Run()
    run.record["segments"].append(runs.segment("later", 0, hardware="another processor"))
    report = judged(run, tmp_path)
    assert failed(report) == set()
    assert "2 kinds of hardware" in line(report, "segments", Status.WARN)


def test_a_journal_of_an_undescribed_segment_is_named(tmp_path: Path) -> None:
    run = Run()
    run.record["segments"] = [runs.segment("another", 1)]
    report = judged(run, tmp_path)
    assert "segments that the record does not describe" in line(report, "journal", Status.FAIL)
