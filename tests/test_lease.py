"""One process works on a run: who holds its lock, and when it may be taken over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import lock

from evalkit.base import canon, lease
from evalkit.base.errors import EvalkitError, Exit


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_names_its_owner(tmp_path: Path) -> None:
    with lease.held(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())["owner"]
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
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
        assert owner_of(tmp_path).pid == os.getpid()


def test_a_number_that_another_process_has_now_is_not_the_owner(tmp_path: Path) -> None:
    """A reboot or a long night later, the dead owner's number may be anybody's."""
    path = lock(tmp_path, os.getppid())
    body = json.loads(path.read_text())
    body["owner"]["started"] = "1"
    path.write_text(json.dumps(body))
    with lease.held(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks beat and go stale within tenths of a second."""
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "STALE_S", 0.4)


def owner_of(folder: Path) -> lease.Owner:
    return lease.Owner(**json.loads((folder / ".lock").read_text())["owner"])


@pytest.mark.usefixtures("hurried")
def test_a_lock_that_does_not_beat_is_taken_over_wherever_its_owner_was(tmp_path: Path) -> None:
    lock(tmp_path, 1, seen=False)
    said: list[str] = []
    started = time.monotonic()
    with lease.held(tmp_path, say=said.append):
        assert owner_of(tmp_path).pid == os.getpid()
    assert time.monotonic() - started > 0.4
    assert len(said) == 1 and "process 1 on elsewhere holds" in said[0]


@pytest.mark.usefixtures("hurried")
def test_a_lock_that_beats_is_a_live_owners_wherever_it_is(tmp_path: Path) -> None:
    """What stands in the lock says so, not the time of the file: clocks of two hosts differ."""
    path = lock(tmp_path, 1, seen=False)
    body = json.loads(path.read_text())
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(0.05):
            count += 1
            path.write_text(json.dumps(body | {"beat": count}))
            os.utime(path, (0, 0))

    thread = threading.Thread(target=beat)
    thread.start()
    with (
        pytest.raises(EvalkitError, match="process 1 on elsewhere is already"),
        lease.held(tmp_path),
    ):
        pass
    over.set()
    thread.join()
    assert path.is_file()


@pytest.mark.usefixtures("hurried")
def test_a_lock_beats_while_it_is_held_and_its_length_never_changes(tmp_path: Path) -> None:
    with lease.held(tmp_path) as held:
        first = (tmp_path / ".lock").read_bytes()
        time.sleep(0.3)
        later = (tmp_path / ".lock").read_bytes()
        held.check()
    assert first != later and len(first) == len(later)


@pytest.mark.usefixtures("hurried")
def test_an_owner_that_stood_still_and_lost_its_lock_is_told_and_leaves_the_others_alone(
    tmp_path: Path,
) -> None:
    with lease.held(tmp_path) as held:
        other = lock_bytes(tmp_path)
        (tmp_path / ".lock").write_bytes(other)
        time.sleep(0.3)
        with pytest.raises(EvalkitError, match="taken this over") as caught:
            held.check()
        assert caught.value.code == Exit.STOPPED
    assert (tmp_path / ".lock").read_bytes() == other


def lock_bytes(folder: Path) -> bytes:
    """What another process's lock of the folder would hold."""
    body = json.loads((folder / ".lock").read_text())
    body["owner"] |= {"mark": "another"}
    return canon.dumps(body).encode()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": {"pid": 1}}', '{"host":"x","pid":1}'])
def test_a_lock_that_names_nobody_is_taken_over_after_a_while(tmp_path: Path, text: str) -> None:
    """Its maker was killed between making it and signing it, or was of another evalkit."""
    (tmp_path / ".lock").write_text(text)
    with lease.held(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()


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
