"""What a run says while it works, where there is no terminal."""

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from evalkit.base import events


def test_a_phase_speaks_up_even_when_nothing_is_done_for_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scoring a full suite said nothing for over a minute: progress was only told on progress."""
    monkeypatch.setattr(events, "QUIET_INTERVAL_S", 0.02)
    with events.Events(Console(force_terminal=False)).phase("score", 10, "answers") as phase:
        time.sleep(0.2)
        phase.advance(4)
        time.sleep(0.2)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) >= 5
    assert lines[0]["done"] == 0 and lines[-1]["done"] == 4
    assert all(line["phase"] == "score" and line["unit"] == "answers" for line in lines)
    said = len(lines)
    time.sleep(0.1)
    assert len(capsys.readouterr().err.splitlines()) == 0, f"silent after its end ({said} before)"


def test_what_is_said_before_a_run_has_a_folder_is_kept(tmp_path: Path) -> None:
    log = events.Events(Console(force_terminal=False, quiet=True))
    log.log("started", argv=["evalkit"])
    log.open(tmp_path / "events" / "one.jsonl")
    log.log("stopped")
    log.close()
    text = (tmp_path / "events" / "one.jsonl").read_text()
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["started", "stopped"]
