"""Shards of one plan, however many, wherever and how often: the same answers, or two are named.

Most are executed in this process, which saves the seconds that importing torch takes.
"""

import json
import os
import shutil
from pathlib import Path

import fire
import pytest
import support
from fire import Fire, Tell
from support import call

from evalkit.base import canon
from evalkit.judge.verify import verify
from evalkit.record import journal

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def plan(runs: Fire, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a planned run; never to be changed."""
    out = tmp_path_factory.mktemp("plan") / "out"
    runs.planned(out)
    return out


def planned(plan: Path, folder: Path) -> Path:
    """A planned run of the test's own."""
    shutil.copytree(plan, folder / "out")
    (run,) = [path.parent for path in (folder / "out").glob("*/*/run.json")]
    return run


def finished(runs: Fire, run: Path) -> dict[str, object]:
    """Finish a run, and hold its record."""
    call("finish", run, "--suite", runs.suite, "--model", runs.model).done()
    return runs.hold(run)


def execute(runs: Fire, run: Path, shard: str, *more: str) -> support.Ran:
    return call("execute", run, "--model", runs.model, "--shard", shard, *more).done()


@pytest.mark.parametrize("counts", [[1], [2], [3], [7], [7, 3], [2, 2], [3, 1]])
def test_any_number_of_shards_changed_between_or_repeated_gives_the_same_answers(
    runs: Fire, plan: Path, tmp_path: Path, counts: list[int], tell: Tell
) -> None:
    """Of all but the last count only every other shard is done."""
    run = planned(plan, tmp_path)
    for number, count in enumerate(counts):
        last = number == len(counts) - 1
        for index in range(1, count + 1, 1 if last else 2):
            execute(runs, run, f"{index}/{count}")
    assert not (run / ".lock").exists()
    finished(runs, run)
    tell(f"shards: {', then '.join(map(str, counts))}", "the same answers", 1)


def test_overlapping_shards_at_the_same_time_give_the_same_answers(
    runs: Fire, plan: Path, tmp_path: Path, tell: Tell
) -> None:
    run = planned(plan, tmp_path)
    shots = [
        fire.start(
            ("execute", os.fspath(run), "--model", os.fspath(runs.model), "--shard", shard,
             "--workers", "1"), tmp_path / f"log{number}",
        )
        for number, shard in enumerate(["1/1", "1/1", "2/2"])
    ]  # fmt: skip
    assert [shot.end() for shot in shots] == [0, 0, 0], [shot.said for shot in shots]
    names = [json.loads(line)["batch"] for line in fire.lines(run)]
    assert len(set(names)) == runs.batches
    finished(runs, run)
    tell("overlapping shards at the same time", "the same answers", 1)


def test_a_shard_leaves_the_rest_and_finish_says_so(runs: Fire, plan: Path, tmp_path: Path) -> None:
    run = planned(plan, tmp_path)
    ran = execute(runs, run, "2/3")
    assert "shard 2/3: " in ran.err
    done = len(fire.lines(run))
    ran = call("finish", run, "--suite", runs.suite, "--model", runs.model)
    ran.refused(75, f"{runs.batches - done} of {runs.batches} batches have no answer yet")
    assert runs.continued(tmp_path / "out").folder == run


def test_the_task_of_a_job_array_is_a_shard(
    runs: Fire, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(plan, tmp_path)
    names = {"ID": "1", "MIN": "0", "MAX": "2", "COUNT": "3", "STEP": "1"}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    ran = call("execute", run, "--model", runs.model).done()
    assert "shard 2/3: " in ran.err
    monkeypatch.undo()
    assert 0 < len(fire.lines(run)) < runs.batches


def unequal(run: Path) -> tuple[str, str]:
    """Let another segment answer a batch otherwise; the two segments."""
    (path,) = (run / "journal").glob("*.jsonl")
    line = json.loads(path.read_text().splitlines()[0])
    for answer in line["answers"].values():
        if "loglikelihood" in answer:
            answer["loglikelihood"] -= 0.5
        else:
            answer["text"] += " more"
    line["segment"] = "another"
    line["sha256"] = journal.checksum(line)
    canon.write_atomic(run / "journal" / "another.jsonl", canon.dumps(line) + "\n")
    told = "".join(path.read_text() for path in (run / "events").glob("*.jsonl"))
    started = next(line for line in told.splitlines() if "segment.start" in line)
    event = json.loads(started) | {"segment": "another"}
    canon.write_atomic(run / "events" / "another.jsonl", canon.dumps(event) + "\n")
    return path.stem, "another"


def test_unequal_answers_are_refused_until_one_segment_is_preferred_and_the_record_says_so(
    runs: Fire, plan: Path, tmp_path: Path, tell: Tell
) -> None:
    run = planned(plan, tmp_path)
    execute(runs, run, "1/1")
    one, two = unequal(run)
    finish = ("finish", run, "--suite", runs.suite, "--model", runs.model)
    line = call(*finish).refused(1, one, two, "--prefer SEGMENT")
    assert "was answered unequally by segments" in line
    call(*finish, "--prefer", "nobody").refused(2, "no segment 'nobody'", one, two)
    ran = call(*finish, "--prefer", one)
    assert ran.code == 0, ran.err
    record = runs.hold(run)
    assert record["preferred"] == {"segment": one, "batches": 1}
    warned = [line for line in verify(run).lines() if line.startswith("WARN  segments")]
    assert warned and f"the answers of {one} count" in warned[0]
    tell("two segments with unequal answers", "refused naming both, settled by --prefer", 1)


def test_the_other_segment_can_be_preferred_and_gives_its_own_answers(
    runs: Fire, plan: Path, tmp_path: Path
) -> None:
    run = planned(plan, tmp_path)
    execute(runs, run, "1/1")
    _, two = unequal(run)
    call("finish", run, "--suite", runs.suite, "--model", runs.model, "--prefer", two).done()
    record = support.read(run)
    assert record["ids"]["answers"] != runs.answers
    assert record["preferred"] == {"segment": two, "batches": 1}
    assert verify(run).consistent, verify(run).lines()
    record["preferred"]["batches"] = 2
    support.write(run, record)
    assert any("preferred batches" in line for line in verify(run).lines())


def test_a_shard_that_is_still_at_work_can_not_change_a_finished_record(
    runs: Fire, plan: Path, tmp_path: Path
) -> None:
    """It repeats what others have done; its journal stood in the record and then grew."""
    run = planned(plan, tmp_path)
    env = fire.inject(tmp_path / "slow", LATE.format(folder=str(tmp_path)))
    command = ("execute", os.fspath(run), "--model", os.fspath(runs.model), "--shard", "1/1")
    shot = fire.start((*command, "--workers", "1"), tmp_path / "log", env=env)
    shot.wait_for(lambda _: (tmp_path / "waits").exists())
    execute(runs, run, "1/1")
    finished(runs, run)
    (tmp_path / "waits").unlink()
    assert shot.end() == 0
    assert "another process has finished this run meanwhile" in shot.said
    runs.hold(run)


# Answers two batches, and the third once a file is gone.
LATE = """
import time
from pathlib import Path
from evalkit.run.processes import worker
keep, count = worker.Worker._keep, 0
def late(self, *given):
    global count
    count += 1
    if count == 3:
        waits = Path({folder!r}) / "waits"
        waits.touch()
        while waits.exists():
            time.sleep(0.05)
    return keep(self, *given)
worker.Worker._keep = late
"""
