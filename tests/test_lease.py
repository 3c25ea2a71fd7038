"""One process works on a run: who holds its lock, and when it may be taken over."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evalkit import lease
from evalkit.errors import EvalkitError, Exit


def lock(folder: Path, pid: int, host: str | None = None) -> Path:
    """Another process's lock."""
    path = folder / ".lock"
    path.write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid}))
    return path


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_lasts_for_the_block_and_names_its_owner(tmp_path: Path) -> None:
    with lease.held(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())
        assert owner == {"host": socket.gethostname(), "pid": os.getpid()}
        assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.iterdir())


def test_a_lock_is_given_back_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lease.held(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_live_owner_is_named_and_keeps_its_lock(tmp_path: Path) -> None:
    path = lock(tmp_path, os.getppid())
    before = path.read_bytes()
    with (
        pytest.raises(EvalkitError, match=f"process {os.getppid()}") as caught,
        lease.held(tmp_path),
    ):
        pass
    assert caught.value.code == Exit.MISSING and str(tmp_path) in str(caught.value)
    assert path.read_bytes() == before


def test_the_lock_of_a_dead_owner_is_taken_over(tmp_path: Path) -> None:
    lock(tmp_path, dead_pid())
    with lease.held(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_is_a_persons_to_remove(tmp_path: Path) -> None:
    path = lock(tmp_path, dead_pid(), "another-host")
    with pytest.raises(EvalkitError, match="on another-host") as caught, lease.held(tmp_path):
        pass
    assert "remove .lock" in str(caught.value) and path.is_file()


def test_a_lock_that_was_never_signed_is_taken_over_after_a_while(tmp_path: Path) -> None:
    """Its maker was killed between making it and writing its name."""
    (tmp_path / ".lock").touch()
    os.utime(tmp_path / ".lock", (0, 0))
    with lease.held(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"host": "x", "pid": "y"}'])
def test_a_lock_that_names_nobody_is_kept_and_told_of(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with pytest.raises(EvalkitError, match=re.escape(".lock")) as caught, lease.held(tmp_path):
        pass
    assert caught.value.code == Exit.MISSING and (tmp_path / ".lock").is_file()


def test_waiting_ends_when_the_other_lets_go(tmp_path: Path) -> None:
    path = lock(tmp_path, os.getpid())
    threading.Timer(0.2, path.unlink).start()
    with lease.held(tmp_path, wait_s=20):
        pass


def test_waiting_ends_when_its_time_is_over(tmp_path: Path) -> None:
    lock(tmp_path, os.getpid())
    started = time.monotonic()
    with pytest.raises(EvalkitError), lease.held(tmp_path, wait_s=0.2):
        pass
    assert 0.2 <= time.monotonic() - started < 5


def test_many_at_once_hold_it_one_after_the_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with lease.held(tmp_path, wait_s=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_folder_that_is_missing_or_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(EvalkitError, match="can't be written") as caught, lease.held(folder):
            pass
        assert caught.value.code == Exit.MISSING


def test_a_full_disk_is_one_line_and_leaves_no_lock_without_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock was made and then could not be written: empty, owned by nobody, there for good."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(EvalkitError, match="No space left"):
        patched.setattr(os, "write", full)
        with lease.held(tmp_path):
            pass
    with lease.held(tmp_path):
        pass


def test_a_stale_lock_goes_to_one_of_two_that_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first looked whether the owner lives, the second took the lock over."""
    lock(tmp_path, dead_pid())
    kill = os.kill

    def slow(pid: int, signal: int) -> None:
        lock(tmp_path, os.getppid())  # what the second, a live process, does meanwhile
        monkeypatch.setattr(os, "kill", kill)
        kill(pid, signal)

    monkeypatch.setattr(os, "kill", slow)
    with pytest.raises(EvalkitError, match=f"process {os.getppid()} on "), lease.held(tmp_path):
        pass
