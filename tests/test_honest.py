"""No honest run is called BROKEN, whatever host it came from."""

import itertools
import os
import shutil
import socket
import sys
from pathlib import Path

import honest
import pytest
import support
import yaml
from runs import Run
from support import call
from verifying import JOURNAL

from evalkit.base import events
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import stamp
from evalkit.harness.scoring import rescore
from evalkit.inputs import suite
from evalkit.judge.verify import verify
from evalkit.judge.verify.checks import completeness
from evalkit.run.processes import worker


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return honest.shipped_suite(tmp_path_factory.mktemp("suites"))


@pytest.mark.parametrize("what", honest.VARIATIONS)
def test_what_happens_to_honest_runs_is_consistent(
    what: str, tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completeness, "SUITES", [shipped])
    monkeypatch.setattr(rescore, "installed", lambda: None)
    report = verify(honest.VARIATIONS[what](tmp_path / "run"))
    assert report.verdict.startswith("CONSISTENT"), "\n".join(report.lines())


def test_a_run_on_a_strange_host_and_what_power_loss_leaves_of_it_are_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host has no ASCII name, its clock jumps by hours at every look, and of what it said of
    itself only that is left which is synced at once."""
    run = call("plan", *support.DEMO, "--limit", "2", "--out", tmp_path).done().folder
    ticks = itertools.count()

    def now() -> str:
        return f"2026-03-29T{next(ticks) * 7 % 24:02}:59:59.999Z"

    monkeypatch.setattr(socket, "gethostname", lambda: "bücher-計")
    monkeypatch.setattr(worker, "now", now)
    monkeypatch.setattr(events, "now", now)
    call("execute", run).done()
    call("finish", run).done()
    report = verify(run)
    assert report.verdict.startswith("CONSISTENT"), "\n".join(report.lines())
    (run / "record.json").unlink()
    for path in (run / "events").glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if b'"segment.start"' not in line))
    call("finish", run).done()
    report = verify(run)
    assert report.verdict.startswith("CONSISTENT"), "\n".join(report.lines())
    assert support.read(run)["segments"][0]["started"] == {"unknown": "its events were lost"}


def test_a_colleagues_file_that_one_may_not_read_says_nothing_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run().write(tmp_path / "run")
    theirs = run / JOURNAL
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != theirs)
    with pytest.raises(EvalkitError, match="no right to read") as caught:
        verify(run)
    assert (caught.value.code, caught.value.where) == (Exit.MISSING, str(theirs))


def test_of_a_package_that_is_installed_twice_the_version_is_the_one_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip leaves of a torch that it could not remove; a user's own beside the host's."""
    for name in ("~umpy-0.0.1.dist-info", "nameless-1.0.dist-info"):
        (tmp_path / name).mkdir()
    (tmp_path / "~umpy-0.0.1.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 0.0.1\n")
    (tmp_path / "nameless-1.0.dist-info" / "METADATA").write_text("Version: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.path.append(sys.path.pop(0))  # behind the installed ones
    stamp._packages.cache_clear()
    try:
        assert stamp._packages()["numpy"] == stamp.version("numpy") != "0.0.1"
        assert None not in stamp._packages()
    finally:
        stamp._packages.cache_clear()


def test_a_suite_of_ones_own_is_not_called_like_a_shipped_one(tmp_path: Path) -> None:
    """Its record would be held against the shipped lock, and be BROKEN."""
    own = tmp_path / "demo.yaml"
    for name in ("demo.yaml", "demo.lock.yaml", "demo.lock.rows"):
        shutil.copy(completeness.SUITES[0] / name, tmp_path / name)
    ours = suite.load(str(own))
    suite.check_name(ours, suite.lock_of(ours))
    lock = yaml.safe_load((tmp_path / "demo.lock.yaml").read_text())
    next(iter(lock["datasets"].values()))["licence"] = "another"
    (tmp_path / "demo.lock.yaml").write_text(yaml.safe_dump(lock))
    with pytest.raises(EvalkitError, match="evalkit ships a suite 'demo'"):
        suite.check_name(ours, suite.lock_of(ours))
