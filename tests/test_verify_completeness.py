"""verify, completeness and data: each document of the lock is there once and is the locked one."""

from pathlib import Path
from typing import Any

import forgeries
import pytest
import runs
import yaml
from runs import Run
from verifying import failed, judged, line, resealed

from evalkit.judge.verify import Status, verify

pytestmark = pytest.mark.usefixtures("without_lm_eval")


def test_a_collapsed_group_is_not_the_suite(tmp_path: Path, shipped: Path) -> None:
    """A group that lm-eval collapsed into one leaf task, in a run that agrees with itself."""
    run = Run(leave_out=("mmlu_anatomy",))
    report = judged(run, tmp_path)
    assert {"completeness"} <= failed(report) <= {"completeness", "data"}
    detail = line(report, "completeness", Status.FAIL)
    assert "lock.yaml is not the shipped one" in detail
    assert "1 leaf tasks missing: mmlu_anatomy" in detail


def test_fewer_documents_than_the_lock_asks_are_found(tmp_path: Path, shipped: Path) -> None:
    run = Run(limit=3)
    run.record["suite"] |= {"limit": None, "partial": False}
    run.record["ids"]["suite"] = run.suite_id()
    report = judged(run, tmp_path)
    assert {"completeness", "whole"} <= failed(report)
    assert "arc_challenge: samples 3, the lock asks 4" in "\n".join(
        check.detail for check in report.checks
    )


def test_a_dropped_sample_is_found(tmp_path: Path) -> None:
    run = Run()
    del run.samples[1]
    report = judged(run, tmp_path)
    assert {"completeness", "plan", "answers", "data"} <= failed(report)
    assert "arc_challenge document 2 stands where 1 should" in line(
        report, "completeness", Status.FAIL
    )


def test_a_sample_that_stands_twice_is_found(tmp_path: Path) -> None:
    run = Run()
    run.samples.insert(1, run.samples[0])
    report = judged(run, tmp_path)
    assert "completeness" in failed(report)
    assert "stands twice" in line(report, "completeness", Status.FAIL)


def test_samples_out_of_order_are_found(tmp_path: Path) -> None:
    run = Run()
    run.samples.reverse()
    assert "completeness" in failed(judged(run, tmp_path))


def test_an_exchanged_document_is_not_the_locked_one(tmp_path: Path) -> None:
    run = Run()
    sample = run.samples[0]
    sample["doc"] = sample["doc"] | {"question": "easier?"}
    report = judged(run, tmp_path)
    assert failed(report) == {"samples"}
    sample["doc_hash"] = runs.doc_hash(sample["doc"])
    run.record["tasks"]["arc_challenge"]["questions"] = runs.digest(
        [
            [s["doc_id"], s["doc_hash"], s["target_hash"]]
            for s in run.samples
            if s["task"] == "arc_challenge"
        ]
    )
    report = verify(run.write(tmp_path / "careful"))
    assert failed(report) == {"rows"}


def test_the_questions_and_prompts_digests_are_recomputed(tmp_path: Path) -> None:
    for name in ("questions", "prompts"):
        run = Run()
        run.record["tasks"]["arc_challenge"][name] = runs.digest([])
        assert failed(verify(run.write(tmp_path / name))) == {"data"}


def test_another_dataset_revision_is_not_the_locked_one(tmp_path: Path) -> None:
    run = Run()
    run.record["tasks"]["arc_challenge"]["dataset"]["revision"] = "f" * 40
    assert failed(judged(run, tmp_path)) == {"data"}


def test_other_shots_than_the_shipped_suites_are_a_warning(tmp_path: Path, shipped: Path) -> None:
    suite = yaml.safe_load((shipped / "tiny.yaml").read_text())
    suite["tasks"][0] = {"task": suite["tasks"][0], "num_fewshot": 5}
    (shipped / "tiny.yaml").write_text(yaml.safe_dump(suite))
    report = judged(Run(), tmp_path)
    assert "not asked as the shipped tiny asks: tasks" in line(report, "settings", Status.WARN)


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("what", "setting", "value", "said"),
    [
        (
            "the right answer in every prompt",
            "system_instruction",
            "Answer.",
            "4 leaf tasks' prompts are not held against the lock",
        ),
        (
            "answers found by another filter",
            "gen_kwargs",
            {"temperature": 0.0},
            "how 1 leaf tasks' texts are scored is not held against the lock",
        ),
        ("an aggregation renamed", "gen_kwargs", {"temperature": 0.0}, "BROKEN"),
    ],
)
def test_another_setting_is_no_excuse_that_the_last_line_keeps_quiet_about(
    what: str, setting: str, value: Any, said: str, tmp_path: Path
) -> None:
    """Each was CONSISTENT, and the last line named nothing but that setting."""
    run = forgeries.LOCKED[what]()
    run.record["suite"][setting] = value
    place = run.results["config"] if setting == "gen_kwargs" else run.results
    place[setting] = value
    report = judged(forgeries.identified(run), tmp_path)
    assert said in report.verdict, report.lines()


def test_shots_that_the_suite_gives_are_the_tasks(tmp_path: Path) -> None:
    run = Run()
    run.record["suite"]["tasks"][0]["num_fewshot"] = 5
    report = judged(run, tmp_path)
    assert "arc_challenge: num_fewshot is 0, recorded 5" in "\n".join(report.lines())


def test_a_lock_that_would_blow_up_is_not_loaded(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    report = verify(resealed(path, "lock.yaml", bomb.encode()))
    assert "it uses YAML aliases" in line(report, "completeness", Status.FAIL)
    report = verify(resealed(path, "lock.yaml", b"[" * 100_000))
    assert "nested too deep" in line(report, "completeness", Status.FAIL)
