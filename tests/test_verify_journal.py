"""verify, the journal: torn, repeated, altered and foreign lines."""

import copy
from pathlib import Path

import pytest
import runs
from runs import Run
from verifying import JOURNAL, failed, judged, line, resealed

from evalkit.judge.verify import Status, verify

pytestmark = pytest.mark.usefixtures("without_lm_eval")


def test_a_torn_line_is_nothing_where_its_batch_stands_elsewhere(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    data = (path / JOURNAL).read_bytes()
    torn = data.split(b"\n")[0][:100] + b"\n"
    report = verify(resealed(path, JOURNAL, torn + data + torn[:-1]))
    assert failed(report) == set()
    assert "2 torn lines stand elsewhere" in line(report, "journal", Status.PASS)


def test_a_torn_line_that_stands_nowhere_else_is_a_lost_batch(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    data = (path / JOURNAL).read_bytes()
    report = verify(resealed(path, JOURNAL, data[:-10]))
    assert "journal" in failed(report)
    assert "1 batches lost" in line(report, "journal", Status.FAIL)


def test_the_same_batch_twice_must_say_the_same(tmp_path: Path) -> None:
    run = Run()
    run.lines.append(run.lines[0])
    assert failed(judged(run, tmp_path)) == set()
    other = copy.deepcopy(run.lines[0])
    part = min(other["answers"])
    other["answers"][part]["loglikelihood"] -= 1
    run.lines.append(runs.seal(other))
    report = verify(run.write(tmp_path / "other"))
    assert failed(report) == {"journal"}
    assert "answered unequally" in line(report, "journal", Status.FAIL)


def test_an_altered_answer_without_its_checksum_is_a_lost_batch(tmp_path: Path) -> None:
    run = Run()
    part = min(run.lines[0]["answers"])
    run.lines[0]["answers"][part]["loglikelihood"] = -0.001
    report = judged(run, tmp_path)
    assert "1 batches lost" in line(report, "journal", Status.FAIL)


def test_a_resealed_altered_answer_is_not_what_the_record_digests(tmp_path: Path) -> None:
    run = Run()
    part = min(run.lines[0]["answers"])
    run.lines[0]["answers"][part]["loglikelihood"] = -0.001
    run.lines[0] = runs.seal(run.lines[0])
    report = judged(run, tmp_path)
    assert failed(report) == {"journal", "answers"}
    assert "1 leaf tasks have other answers digests: mmlu_anatomy" in line(
        report, "journal", Status.FAIL
    )


def test_an_answer_altered_in_the_journal_and_its_digests_is_not_what_was_scored(
    tmp_path: Path,
) -> None:
    run = Run()
    part = min(run.lines[0]["answers"])
    run.lines[0]["answers"][part]["loglikelihood"] = -0.001
    run.answers[part] = run.lines[0]["answers"][part]
    run.lines[0] = runs.seal(run.lines[0])
    run.record["answers"] = run.answer_digests()
    run.record["ids"]["answers"] = runs.digest(run.record["answers"])
    report = judged(run, tmp_path)
    assert failed(report) == {"answers"}
    assert f"{part} was answered" in line(report, "answers", Status.FAIL)


def test_lines_of_another_run_or_batch_or_segment_are_named(tmp_path: Path) -> None:
    for change, text in (
        ({"run": runs.digest("another run")}, "of another run"),
        ({"batch": runs.digest("another batch")}, "is not in the plan"),
        ({"segment": "another"}, "written by segment another"),
        ({"schema": "evalkit/journal/2"}, "not a journal line of schema 1"),
        ({"answers": {}}, "answers missing"),
    ):
        run = Run()
        run.lines.append(runs.seal(run.lines[0] | change))
        report = verify(run.write(tmp_path / runs.sha256(text)))
        assert failed(report) == {"journal"}, text
        assert text in line(report, "journal", Status.FAIL)


def test_an_answer_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    for value in ({"loglikelihood": "-1", "is_greedy": True, "num_tokens": 1}, 5, {"text": "a"}):
        run = Run()
        part = min(run.lines[0]["answers"])
        run.lines[0]["answers"][part] = value
        run.lines[0] = runs.seal(run.lines[0])
        report = verify(run.write(tmp_path / runs.sha256(str(value))))
        assert "is not a loglikelihood answer" in line(report, "journal", Status.FAIL)
