"""A disk that fills up, a folder that turns read-only: what is written stays, and the same command
goes on when that is mended."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import fire
import pytest
import support
from fire import Fire, Tell

from evalkit.run.preparing import prepare

pytestmark = pytest.mark.faults
# 200 MB are asked for otherwise.
NO_FLOOR = "from evalkit.run.preparing import prepare; prepare.FREE_BYTES = 0"
# The process waits before the first call of a function, until a file is gone.
PAUSED = """
import time
from pathlib import Path
from evalkit.{room} import {module}
inner = {module}.{name}
def paused(*given, **named):
    here = Path({folder!r}) / "paused"
    if not here.exists() and not (here.parent / "went-on").exists():
        here.touch()
        while here.exists():
            time.sleep(0.02)
        (here.parent / "went-on").touch()
    return inner(*given, **named)
{module}.{name} = paused
"""


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", os.fspath(folder)):
        pytest.skip("no file system can be mounted here")
    yield folder
    run("umount", os.fspath(folder))


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system but for so many bytes."""
    free = shutil.disk_usage(folder).free
    with (folder / "filler").open("wb", buffering=0) as filler:
        filler.write(bytes(max(0, free - leave)))
    return folder / "filler"


def paused(folder: Path, module: str, name: str) -> tuple[dict[str, str], Path]:
    """An environment in which a run waits before a function; the file that says that it does."""
    room, _, module = module.rpartition(".")
    code = PAUSED.format(room=room, module=module, name=name, folder=os.fspath(folder))
    return fire.inject(folder / f"pause-{name}", code), folder / "paused"


MOMENTS = {
    "the journal": ("run.processes.worker", "Worker.answer", 0),
    "the samples": ("record.record", "write_samples", 0),
    "the record": ("record.record", "write", 4096),
}


@pytest.mark.parametrize(
    "moment",
    ["the journal", "the record", pytest.param("the samples", marks=pytest.mark.faults_full)],
)
def test_a_disk_that_is_full_loses_nothing_and_the_run_goes_on_when_space_is_freed(
    runs: Fire, tmp_path: Path, small_disk: Path, moment: str, tell: Tell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    module, name, leave = MOMENTS[moment]
    env, waits = paused(tmp_path, module, name)
    command = runs.command(small_disk / "out")
    shot = fire.start(command, tmp_path / "log", before=NO_FLOOR, env=env)
    shot.wait_for(lambda _: waits.exists())
    filler = fill(small_disk, leave)
    waits.unlink()
    assert shot.end() == 3, shot.said
    (told,) = [line for line in shot.said.splitlines() if line.startswith("evalkit: ")]
    assert "No space left on device" in told and "free space or" in told
    (folder,) = [path.parent for path in small_disk.glob("out/*/*/run.json")]
    assert not (folder / "record.json").exists()
    done = len(support.read_journal(folder).batches)
    assert done == runs.batches or moment == "the journal"
    monkeypatch.setattr(prepare, "FREE_BYTES", 0)
    again = support.call("eval", *runs.given(small_disk / "out"))  # still full: a line again
    assert again.code in (3, 0), again.err
    filler.unlink()
    assert runs.continued(small_disk / "out").folder == folder
    assert not list(folder.rglob("*.part"))
    tell(f"a full disk at {moment}", "3 and a line, the same answers when space is freed", 1)


@pytest.fixture
def frozen() -> Iterator[Callable[[Path, bool], None]]:
    """Makes a folder one in which nothing can be made or removed, even by root; or not any more."""
    done: list[Path] = []

    def freeze(folder: Path, on: bool) -> None:
        if os.geteuid():
            folder.chmod(0o500 if on else 0o700)
        elif not run("chattr", "+i" if on else "-i", os.fspath(folder)):
            pytest.skip("root can write everywhere here, and chattr does not work")
        done.append(folder)

    yield freeze
    for folder in list(done):
        freeze(folder, False)


@pytest.mark.parametrize(
    "moment", ["the record", pytest.param("the samples", marks=pytest.mark.faults_full)]
)
def test_a_results_folder_made_read_only_half_way_is_one_line_and_loses_nothing(
    runs: Fire, tmp_path: Path, frozen: Callable[[Path, bool], None], moment: str, tell: Tell
) -> None:
    module, name, _ = MOMENTS[moment]
    env, waits = paused(tmp_path, module, name)
    shot = fire.start(runs.command(tmp_path / "out"), tmp_path / "log", env=env)
    shot.wait_for(lambda _: waits.exists())
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/run.json")]
    frozen(folder, True)
    waits.unlink()
    assert shot.end() == 3, shot.said
    (told,) = [line for line in shot.said.splitlines() if line.startswith("evalkit: ")]
    assert "can't write" in told and os.fspath(folder) in told
    frozen(folder, False)
    assert runs.continued(tmp_path / "out").folder == folder
    tell(f"a folder made read-only before {moment}", "3 and a line, then the same answers", 1)


def test_a_read_only_folder_is_told_before_anything_is_computed(
    runs: Fire, tmp_path: Path, frozen: Callable[[Path, bool], None]
) -> None:
    folder = runs.planned(tmp_path / "out")
    frozen(folder, True)
    ran = support.call("execute", folder, "--model", runs.model)
    ran.refused(3, "can't be written", os.fspath(folder))
    frozen(folder, False)
    runs.continued(tmp_path / "out")
