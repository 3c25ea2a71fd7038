"""`evalkit.load`: frames with a record's own numbers, and pandas only when one is asked for."""

import gzip
import sys
from pathlib import Path

import pytest
import support
from runs import Run
from support import spawn

import evalkit
from evalkit.base.errors import EvalkitError


def test_scores_and_samples_are_the_records(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    run = support.finished(tmp_path)
    loaded, record = evalkit.load(str(run)), support.read(run)
    assert loaded.record == record and "demo on demo, 6 leaf tasks" in repr(loaded)
    scores = loaded.scores().set_index(["task", "metric", "filter"])
    assert scores.loc[("demo_qa", "acc", "none"), "value"] == pytest.approx(
        record["tasks"]["demo_qa"]["metrics"]["acc,none"]["value"], abs=0
    )
    samples = loaded.samples()
    assert len(samples) == 210 and samples.groupby("task").size()["demo_qa"] == 42
    qa = loaded.samples("demo_qa")
    assert qa["acc"].mean() == pytest.approx(scores.loc[("demo_qa", "acc", "none"), "value"])
    assert len(loaded.samples(limit=3)) == 3
    with pytest.raises(EvalkitError, match="no leaf task 'qa'"):
        loaded.samples("qa")


def test_an_unfinished_run_and_a_missing_pandas_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EvalkitError, match="no finished run"):
        evalkit.load(support.executed(tmp_path / "a"))
    loaded = evalkit.load(support.finished(tmp_path / "b"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EvalkitError, match="pandas is not installed"):
        loaded.scores()


@pytest.mark.parametrize("line", [b"[1]", b"5", b'"x"', b"{}", b'{"task":[]}'])
def test_lines_that_are_no_samples_are_an_error_and_not_a_crash(
    tmp_path: Path, line: bytes
) -> None:
    """Let through as broken, they were a TypeError."""
    run = Run().write(tmp_path / "run")
    (run / "samples.jsonl.gz").write_bytes(gzip.compress(line + b"\n"))
    with pytest.raises(EvalkitError, match="line 1 is no sample"):
        evalkit.load(run, unverified=True).samples("arc_challenge")


def test_loading_imports_nothing_heavy_and_nothing_else_is_public(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    told = spawn("--version", before=f"import evalkit, sys; evalkit.load({str(run)!r});"
                 "print(*{'torch', 'transformers'} & {*sys.modules})")  # fmt: skip
    assert told.done().out.splitlines()[0] == ""
    assert evalkit.__all__ == ["load"]


def test_a_models_name_controls_no_terminal(tmp_path: Path) -> None:
    run = Run()
    run.record["model"]["reference"] = "\x1b[2Jmodel"
    assert repr(evalkit.load(run.write(tmp_path / "run"), unverified=True)).count("\\x1b[2J") == 1
