"""Killed at any instant, stopped in any phase: the same command goes on to the same answers."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import fire
import pytest
import support
from fire import Fire, Tell

from evalkit.base import lease

pytestmark = pytest.mark.faults
IN_CI = ("build", "start", "execute", "score")
KILLED = "SIGKILL at a random instant, of the run or of it and its workers"


def shoot(runs: Fire, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill runs at random instants, each time continuing, and starting another when one finishes;
    how many kills hit each phase."""
    source = random.Random(seed)
    out, hit = folder / "results", Counter[str]()
    while hit.total() < kills:
        cache = {"XDG_CACHE_HOME": os.fspath(folder / f"cache{source.randrange(3)}")}
        shot = fire.start(runs.command(out, "--again", workers=2), folder / "log", env=cache)
        try:
            shot.process.wait(source.uniform(0.0, runs.seconds))
        except fire.subprocess.TimeoutExpired:
            hit[shot.phase] += 1
            if source.random() < 0.5:
                os.killpg(shot.session, signal.SIGKILL)
            else:
                shot.process.kill()
        assert shot.end() in (0, -signal.SIGKILL), shot.said
    return hit


def ends(runs: Fire, out: Path) -> int:
    """Finish what is unfinished, and hold every record that there is; how many."""
    support.call("eval", *runs.given(out)).done()
    folders = [path.parent for path in out.glob("*/*/run.json")]
    for folder in folders:
        if not (folder / "record.json").is_file():
            support.call("execute", folder, "--model", runs.model).done()
            support.call("finish", folder, "--suite", runs.suite, "--model", runs.model).done()
        runs.hold(folder)
        assert not (folder / lease.NAME).exists()
    return len(folders)


@pytest.mark.timeout(900)  # ten kills and the rest of each run: minutes on a busy machine
def test_a_run_killed_at_random_instants_has_the_uninterrupted_runs_answers(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    hit = shoot(runs, tmp_path, kills=10, seed=1)
    ends(runs, tmp_path / "results")
    for phase, times in hit.items():
        tell(f"{KILLED}: {phase}", "the same answers", times)


@pytest.mark.faults_full
def test_a_run_killed_a_hundred_times_has_the_uninterrupted_runs_answers(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    hit = shoot(runs, tmp_path, kills=100, seed=2)
    assert set(hit) >= {"import", "prepare", "start", "execute", "score"}, hit
    ends(runs, tmp_path / "results")
    for phase, times in hit.items():
        tell(f"{KILLED}: {phase}", "the same answers", times)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, marks=() if phase in IN_CI else pytest.mark.faults_full)
        for phase in fire.PHASES
    ],
)
def test_a_run_that_is_terminated_in_a_phase_ends_75_and_goes_on(
    runs: Fire, tmp_path: Path, phase: str, tell: Tell
) -> None:
    cache = {"XDG_CACHE_HOME": os.fspath(tmp_path / "cache")}  # else it is planned before
    shot = fire.start(runs.command(tmp_path / "out"), tmp_path / "log", env=cache)
    shot.wait_for(lambda said: f'"phase":"{phase}"' in said)
    number = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[fire.PHASES.index(phase) % 3]
    shot.process.send_signal(number)
    assert shot.end() == 75, shot.said
    last = shot.said.strip().splitlines()[-1]
    assert (
        last.startswith("evalkit: stopped; what is done is kept") and "Traceback" not in shot.said
    )
    assert not list(tmp_path.glob("out/*/*/record.json"))
    runs.continued(tmp_path / "out")
    tell(
        f"{signal.Signals(number).name} while it is in phase {phase}",
        "75, then the same answers",
        1,
    )


def test_batches_in_hand_are_finished_within_the_grace_and_dropped_after_it(
    runs: Fire, tmp_path: Path
) -> None:
    """Each batch takes four seconds here; a grace of 60 keeps two of them, one of 0.5 none."""
    slow = fire.slow(tmp_path / "slow", 4.0)
    for grace, kept in (("60", True), ("0.5", False)):
        out = tmp_path / grace
        shot = fire.start(
            runs.command(out, "--grace", grace, workers=2), tmp_path / "log", env=slow
        )
        shot.wait_for(lambda said: '"phase":"execute"' in said)
        time.sleep(1.0)
        os.killpg(shot.session, signal.SIGTERM)  # as Slurm does: the workers get it too
        assert shot.end() == 75, shot.said
        assert "stopping: the batches in hand have" in shot.said
        (folder,) = [path.parent for path in out.glob("*/*/run.json")]
        assert bool(fire.lines(folder)) == kept and len(fire.lines(folder)) < runs.batches
        runs.continued(out)


@pytest.mark.faults_full
def test_a_second_interrupt_drops_the_batches_in_hand_at_once(runs: Fire, tmp_path: Path) -> None:
    slow = fire.slow(tmp_path / "slow", 4.0)
    shot = fire.start(runs.command(tmp_path / "out"), tmp_path / "log", env=slow)
    shot.wait_for(lambda said: '"phase":"execute"' in said)
    shot.process.send_signal(signal.SIGINT)
    shot.wait_for(lambda said: "stopping: the batches in hand" in said)
    shot.process.send_signal(signal.SIGINT)
    assert shot.end() == 75, shot.said
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/run.json")]
    assert not fire.lines(folder)


def test_the_same_command_started_twice_at_once_is_run_once(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    command = runs.command(tmp_path / "out")
    cache = {"XDG_CACHE_HOME": os.fspath(tmp_path / "cache")}
    shots = [fire.start(command, tmp_path / f"log{n}", env=cache) for n in range(2)]
    returned = sorted(shot.end() for shot in shots)
    assert returned == [0, 3], [shot.said for shot in shots]
    (refused,) = [shot for shot in shots if shot.process.returncode == 3]
    first = next(shot for shot in shots if shot is not refused).process.pid
    assert f"process {first} on" in refused.said and "is already working here" in refused.said
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/run.json")]
    runs.hold(folder)
    tell("the same command started twice at once", "one runs, the other ends 3 naming it", 1)
