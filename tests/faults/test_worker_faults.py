"""Workers that die, hang, run out of memory or stumble over one batch: the others go on."""

import json
import math
import os
import signal
from pathlib import Path

import fire
import pytest
import support
from fire import Fire, Tell

from evalkit.judge.verify import verify

pytestmark = pytest.mark.faults
SOON = "from evalkit.run.processes import workers; workers.WATCHDOG_S = 4.0"
FOREVER = """
import os, sys
if "worker" in sys.argv:
    os.kill(os.getpid(), 9)
"""
ALONE = """
import os, sys
if "--template" in sys.argv:
    os.kill(os.getpid(), 9)
"""
# In every process: the worker that comes to this batch dies in it.
POISONED = """
import os
from evalkit.run.processes import worker
read = worker.Worker._read
def poisoned(self, batch):
    if batch.startswith({batch!r}):
        print("a line of a library's", flush=True)
        os.kill(os.getpid(), 9)
    return read(self, batch)
worker.Worker._read = poisoned
"""
# A device on which no forward pass of more than so many rows fits.
SMALL = """
from evalkit.engine import core
import torch
answers = core.Engine._answers
def small(self, batch):
    if len(batch.rows) > {rows}:
        raise torch.OutOfMemoryError("a small device")
    return answers(self, batch)
core.Engine._answers = small
"""


def executing(runs: Fire, folder: Path, *more: str, before: str = "") -> fire.Shot:
    """A run that has begun with its batches."""
    shot = fire.start(runs.command(folder / "out", *more, workers=2), folder / "log", before=before)
    shot.wait_for(lambda said: '"phase":"execute"' in said)
    return shot


def first_at_work(shot: fire.Shot, out: Path) -> int:
    """The worker that answers a batch first: it has the next one in hand, and there is work left,
    however long the other one takes to load."""

    def begun() -> list[Path]:
        return [path for path in out.glob("*/*/journal/*.jsonl") if path.stat().st_size]

    shot.wait_for(lambda _: bool(begun()))
    return int(begun()[0].stem.split("-")[-2])  # time, host, process, a random part


def test_a_worker_that_is_killed_is_started_again(runs: Fire, tmp_path: Path, tell: Tell) -> None:
    slow = fire.slow(tmp_path / "slow", 0.5)
    shot = fire.start(runs.command(tmp_path / "out", workers=2), tmp_path / "log", env=slow)
    assert fire.kill(first_at_work(shot, tmp_path / "out"))
    assert shot.end() == 0, shot.said
    assert "died (killed, perhaps for lack of memory); it is started again" in shot.said
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/record.json")]
    record = runs.hold(folder)
    assert sum(segment["batches"] for segment in record["segments"]) == runs.batches
    tell("a worker killed", "started again, the same answers", 1)


def test_a_worker_that_hangs_is_killed_and_started_again(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    slow = fire.slow(tmp_path / "slow", 0.5)
    command = runs.command(tmp_path / "out", workers=2)
    shot = fire.start(command, tmp_path / "log", before=SOON, env=slow)
    assert fire.kill(first_at_work(shot, tmp_path / "out"), signal.SIGSTOP)
    assert shot.end() == 0, shot.said
    assert "hangs, 4 s: it is killed" in shot.said
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/record.json")]
    runs.hold(folder)
    tell("a worker stopped in the middle of a batch", "killed by the watchdog, the same answers", 1)


def test_a_worker_that_hangs_while_it_loads_holds_nobody_up(runs: Fire, tmp_path: Path) -> None:
    env = fire.inject(tmp_path / "stuck", STUCK.format(folder=os.fspath(tmp_path)))
    shot = fire.start(runs.command(tmp_path / "out", workers=2), tmp_path / "log", env=env)
    assert shot.end() == 0, shot.said
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/record.json")]
    assert len(runs.hold(folder)["segments"]) == 1


# Of two workers the second to load waits for ever.
STUCK = """
import time
from pathlib import Path
from evalkit.run.preparing.engines import Engine
load = Engine.load
def stuck(*given):
    try:
        (Path({folder!r}) / "first").mkdir()
    except FileExistsError:
        time.sleep(3600)
    return load(*given)
Engine.load = stuck
"""


def test_workers_that_always_die_end_the_run_75_with_what_it_has(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    env = fire.inject(tmp_path / "forever", FOREVER)
    ran = support.spawn(*runs.command(tmp_path / "out", workers=2), env=env)
    ran.refused(75, "workers died too often", "the same command continues", "--workers N")
    assert ran.err.count("died") >= 2 * 4
    runs.continued(tmp_path / "out")
    tell("workers that die at every start", "75, then the same answers", 1)


def test_workers_that_can_not_be_forked_are_started_by_themselves(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    env = fire.inject(tmp_path / "alone", ALONE)
    support.spawn(*runs.command(tmp_path / "out", workers=2), env=env).done()
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/record.json")]
    runs.hold(folder)
    tell("the process that workers are forked from killed", "the same answers", 1)


def test_a_batch_in_which_every_worker_dies_is_left_out_and_the_rest_is_answered(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    folder = runs.planned(tmp_path / "out")
    batch = support.read(folder, "plan.json")["batches"][3]["id"]
    env = fire.inject(tmp_path / "poison", POISONED.format(batch=batch))
    ran = support.spawn(*runs.command(tmp_path / "out"), env=env)
    ran.refused(75, "1 batches have no answer, and in 1 of them each worker died")
    assert len(fire.lines(folder)) == runs.batches - 1
    runs.continued(tmp_path / "out")
    tell("a batch that kills every worker", "75 with all others answered, then the same answers", 1)


@pytest.mark.parametrize(
    "workers", [3, *(pytest.param(n, marks=pytest.mark.faults_full) for n in (1, 5))]
)
def test_any_number_of_workers_gives_the_same_answers(
    runs: Fire, tmp_path: Path, workers: int, tell: Tell
) -> None:
    ran = support.spawn(*runs.command(tmp_path, workers=workers)).done()
    record = runs.hold(ran.folder)
    segments = record["segments"]
    assert 1 <= len(segments) <= workers, "one that loads for longer than the rest needs is let go"
    assert sum(segment["batches"] for segment in segments) == runs.batches
    tell("1, 3 or 5 workers", "the same answers", 1)


def test_workers_end_when_their_parent_is_killed(runs: Fire, tmp_path: Path) -> None:
    shot = executing(runs, tmp_path)
    assert shot.workers()
    shot.process.kill()
    shot.end()
    assert not shot.workers()
    runs.continued(tmp_path / "out")


@pytest.mark.faults_full
def test_a_bug_in_a_worker_is_told_and_does_not_end_in_a_traceback_on_the_screen(
    runs: Fire, tmp_path: Path
) -> None:
    buggy = "from evalkit.run.processes import worker\n"
    buggy += "def broken(*_): raise RuntimeError('CUDA error')\n"
    env = fire.inject(tmp_path / "bug", buggy + "worker.Worker.answer = broken")
    ran = support.spawn(*runs.command(tmp_path / "out"), env=env)
    ran.refused(75, "workers died too often")
    assert "exit code 70: evalkit: a bug in evalkit" in ran.err and "Traceback" not in ran.err


def test_a_run_short_of_memory_is_split_marked_and_within_a_ten_thousandth(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    env = fire.inject(tmp_path / "small", SMALL.format(rows=2))
    at = ("--level", "none")  # a row for each sequence: several a batch
    ran = support.spawn(*runs.command(tmp_path / "split", *at), env=env).done()
    whole = support.call("eval", *runs.given(tmp_path / "whole"), *at).done().folder
    record = support.read(ran.folder)
    assert record["health"]["split_batches"] > 0
    assert any(line.startswith("WARN  health") and "batches split" in line
               for line in verify(ran.folder).lines())  # fmt: skip
    found, wanted = (support.read_journal(f).answers() for f in (ran.folder, whole))
    assert found.keys() == wanted.keys()
    for part, answer in wanted.items():
        if "text" in answer:
            assert found[part]["text"] == answer["text"]
        else:
            one, two = found[part]["loglikelihood"], answer["loglikelihood"]
            assert math.isclose(one, two, rel_tol=0, abs_tol=1e-4)
    for task, entry in support.read(whole)["tasks"].items():
        found_metrics = record["tasks"][task]["metrics"]
        if entry["output_type"] == "multiple_choice":
            assert found_metrics == entry["metrics"], "no choice changed"
    tell(
        "memory for two rows at a time only", "split and marked, within 1e-4, no choice changed", 1
    )


@pytest.mark.faults_full
def test_memory_for_not_even_one_row_is_one_line_and_keeps_what_is_done(
    runs: Fire, tmp_path: Path
) -> None:
    folder = runs.planned(tmp_path / "out")
    env = fire.inject(tmp_path / "none", SMALL.format(rows=0))
    ran = support.spawn(*runs.command(tmp_path / "out"), env=env)
    ran.refused(3, "out of memory in a batch of", "use a GPU with more memory")
    (line,) = (tmp_path / "out" / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "failed"
    assert not (folder / "record.json").exists()
    runs.continued(tmp_path / "out")


LOUD = """
import os
from evalkit.run.processes import worker
answer = worker.Worker.answer
def loud(self, batch, *lane):
    print("loud")
    os.write(1, b"louder\\n")
    return answer(self, batch, *lane)
worker.Worker.answer = loud
"""


@pytest.mark.faults_full
def test_nothing_that_a_library_prints_is_taken_for_a_message(runs: Fire, tmp_path: Path) -> None:
    env = fire.inject(tmp_path / "loud", LOUD)
    ran = support.spawn(*runs.command(tmp_path / "out"), env=env).done()
    assert ran.out.splitlines() == [os.fspath(ran.folder)]
    runs.hold(ran.folder)
