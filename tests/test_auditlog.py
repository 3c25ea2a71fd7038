"""results/audit.jsonl: a line for every run, each bound to the one before."""

import json
import threading
from pathlib import Path

import pytest

from evalkit.base import canon
from evalkit.record import auditlog


def log(folder: Path, count: int = 4) -> Path:
    """A log of some lines."""
    for number in range(count):
        auditlog.append(folder, "finished", {"number": number})
    return folder / "audit.jsonl"


def test_a_line_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    lines = log(tmp_path).read_bytes().splitlines()
    befores = [json.loads(line)["before"] for line in lines]
    assert befores == [auditlog.FIRST, *map(canon.digest_bytes, lines[:-1])]
    assert auditlog.broken_at(tmp_path / "audit.jsonl") is None
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [lines[0].replace(b'"number":0', b'"number":9'), *lines[1:]], 2),
        (lambda lines: [*lines[:2], b"", *lines[2:]], 3),
        (lambda lines: [*lines[:2], b"[]", *lines[2:]], 3),
        (lambda lines: [*lines[:2], lines[2][:20], lines[3]], 3),
    ],
    ids=["first removed", "removed", "swapped", "altered", "blank", "not a line", "torn"],
)
def test_what_is_done_to_the_log_shows(tmp_path: Path, change: object, line: int) -> None:
    path = log(tmp_path)
    assert callable(change)
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    assert auditlog.broken_at(path) == line


def test_many_at_once_make_one_chain(tmp_path: Path) -> None:
    threads = [threading.Thread(target=log, args=(tmp_path, 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == 12
    assert auditlog.broken_at(tmp_path / "audit.jsonl") is None


def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path: Path) -> None:
    """It was glued to the fragment that a full disk had left, and the run's entry was lost."""
    path = log(tmp_path, 2)
    with path.open("ab") as handle:
        handle.write(b'{"number": 2, "bef')
    auditlog.append(tmp_path, "finished", {"number": 3})
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert last["number"] == 3


def test_a_torn_line_breaks_no_chain(tmp_path: Path) -> None:
    """Its writer lost power; `verify RESULTS` called the log BROKEN for ever."""
    path = log(tmp_path, 2)
    with path.open("ab") as handle:
        handle.write(b'{"number": 2, "bef')
    assert auditlog.broken_at(path) is None
    for number in range(2):
        auditlog.append(tmp_path, "finished", {"number": number})
    lines = path.read_bytes().splitlines()
    whole = [line for line in lines if line.endswith(b"}")]
    assert auditlog.broken_at(path) is None
    assert len(whole) == 4 and json.loads(whole[-1])["before"] == canon.digest_bytes(whole[-2])
