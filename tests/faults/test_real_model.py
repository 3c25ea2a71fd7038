"""A real model's run, killed, by one worker or two, in one shard or seven: the same answers."""

import os
import signal
from pathlib import Path

import fire
import pytest
import support
from fire import Fire

pytestmark = pytest.mark.real
LIMIT = "6"  # documents of each of the demo's leaf tasks


class Real(Fire):
    """The demo's suite, its first documents."""

    def given(self, out: Path) -> tuple[str, ...]:
        """The options that say what a run is."""
        return (*super().given(out), "--limit", LIMIT)


@pytest.fixture(scope="module")
def whole(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Real:
    """A run by two workers that nothing happened to."""
    run = Real(Path(smollm2), Path("demo"), "", 0.0, 0)
    out = tmp_path_factory.mktemp("whole") / "out"
    folder = support.spawn(*run.command(out, workers=2)).done().folder
    run.answers = support.read(folder)["ids"]["answers"]
    run.batches = support.num_batches(folder)
    return run


def folder_of(out: Path) -> Path:
    """The folder of the one run."""
    (path,) = out.glob("*/*/run.json")
    return path.parent


def test_one_worker_gives_two_workers_answers(whole: Real, tmp_path: Path) -> None:
    whole.hold(support.spawn(*whole.command(tmp_path / "out", workers=1)).done().folder)


def test_a_run_whose_worker_and_then_itself_is_killed_goes_on_to_the_same_answers(
    whole: Real, tmp_path: Path
) -> None:
    out, slow = tmp_path / "out", fire.slow(tmp_path / "slow", 2.0)  # work is left when they die
    shot = fire.start(whole.command(out, workers=2), tmp_path / "log", env=slow)

    def answered(count: int) -> bool:
        return any(out.glob("*/*/journal")) and len(fire.lines(folder_of(out))) >= count

    shot.wait_for(lambda _: answered(1), timeout_s=240)
    (first, *_) = (path for path in folder_of(out).glob("journal/*.jsonl") if path.stat().st_size)
    assert fire.kill(int(first.stem.split("-")[-2]))  # time, host, process, a random part
    shot.wait_for(lambda said: "it is started again" in said)
    shot.wait_for(lambda _: answered(2), timeout_s=240)
    os.killpg(shot.session, signal.SIGKILL)
    assert shot.end() == -signal.SIGKILL, shot.said
    assert 2 <= len(fire.lines(folder_of(out))) < whole.batches
    assert whole.continued(out).folder == folder_of(out)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_any_number_of_shards_gives_the_same_answers(
    whole: Real, tmp_path: Path, count: int
) -> None:
    run = whole.planned(tmp_path / "out")
    for index in range(1, count + 1):
        shard = f"{index}/{count}"
        support.call("execute", run, "--model", whole.model, "--shard", shard).done()
    support.call("finish", run, "--suite", whole.suite, "--model", whole.model).done()
    whole.hold(run)
