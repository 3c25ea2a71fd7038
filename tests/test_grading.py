"""Programs that a model wrote: they run in an image or not at all, verdicts are looked up, and
verify holds them against the samples. That containers keep programs in: see tests/container."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub as stand_in
import pytest
import support
import yaml

from evalkit.base.errors import EvalkitError
from evalkit.harness import locking, verdicts
from evalkit.harness.data import metrics
from evalkit.host import sandbox
from evalkit.host.launch import runtimes
from evalkit.host.launch.command import OF_SIFS, PLACES, Image, Runtime
from evalkit.host.launch.runtimes import Place
from evalkit.judge.verify.checks.grading import _wrong_rate
from evalkit.record.reading.evidence.samples import Document

pytest.importorskip("lm_eval")
IMAGE = Image("evalkit:test", f"sha256:{'1' * 64}", "config")
LIMITS = sandbox.Limits(7, 1 << 29)


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_program_gets_nothing_of_the_host(name: str) -> None:
    words = sandbox.command_line(Runtime(name, "1"), IMAGE, "one", LIMITS)
    text = " ".join(words)
    for part in ("--network none", "--ipc none", "--cap-drop ALL", "--read-only",
                 "--security-opt no-new-privileges", "--user 65534:65534", "--pids-limit 64",
                 f"--memory {1 << 29}", f"--memory-swap {1 << 29}"):  # fmt: skip
        assert part in text
    assert not {"--mount", "--volume", "-v", "--env", "-e", "--tmpfs", "--privileged"} & {*words}
    assert words[-2:] == ["7", str(1 << 29)]


def test_the_hubs_metrics_are_imported_only_where_somebody_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate"]:
        monkeypatch.delitem(sys.modules, name)
    with metrics.guarded():
        assert "evaluate.loading" not in sys.modules
    assert "evaluate" not in sys.modules
    with metrics.guarded():
        import evaluate

        assert isinstance(evaluate.load("code_eval"), verdicts.Grader)
    assert evaluate.load is sys.modules["evaluate.loading"].load
    with metrics.guarded():  # and where it was imported before
        assert isinstance(evaluate.load("code_eval"), verdicts.Grader)
    assert evaluate.load is sys.modules["evaluate.loading"].load


@pytest.mark.parametrize("name", OF_SIFS)
def test_a_program_gets_nothing_of_the_host_from_apptainer(name: str) -> None:
    text = " ".join(sandbox.command_line(Runtime(name, "1"), IMAGE, "one", LIMITS))
    assert text.startswith(f"{name} --quiet exec ")
    for part in ("--containall", "--cleanenv", "--no-home", "--no-privs", "--network none"):
        assert part in text
    assert "--bind" not in text and "--mount type" not in text


@pytest.mark.parametrize("name", [name for name in PLACES if name != "none"])
def test_a_runtime_that_can_start_no_container_ends_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 255 if name in OF_SIFS else 125, b"", b"no such image")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(EvalkitError, match=f"{name} can't run a program .* no such image"):
        sandbox.run(Runtime(name, "1"), IMAGE, "print()", LIMITS)


@pytest.mark.parametrize(("passed", "count", "k"), [(0, 5, 1), (2, 5, 1), (2, 5, 3), (5, 5, 5)])
def test_pass_at_k_is_one_minus_the_share_of_draws_that_all_fail(
    passed: int, count: int, k: int
) -> None:
    failing = math.comb(count - passed, k) / math.comb(count, k)
    assert math.isclose(verdicts.pass_at_k(passed, count, k), 1 - failing)


def test_a_file_of_verdicts_that_is_none_is_a_line(tmp_path: Path) -> None:
    """A pipe was waited for; the others were tracebacks."""
    path = tmp_path / verdicts.NAME
    assert verdicts.read(tmp_path) == {}
    for make in (os.mkfifo, Path.mkdir, lambda p: p.write_bytes(b"[" * 100_000 + b"\n")):
        make(path)
        with pytest.raises(EvalkitError, match="damaged"):
            verdicts.read(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_no_more_answers_are_drawn_than_there_are() -> None:
    """`pass@64` of one failed program was 1.0, and passed."""
    for key, words in (("pass@64", "pass@64 of 1 programs"), ("pass@0", "of 1"), ("pass@1", "")):
        sample: Any = {"metrics": ["pass_at_k"], "pass_at_k": {key: float(key == "pass@64")}}
        assert words in _wrong_rate(Document("humaneval", 0, [sample]), sample, 0, 1)


@pytest.fixture(scope="module")
def recorded(
    hub: stand_in.Hub, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[Any, ...]]:
    """A run of two questions of HumanEval whose answers are recorded, and how it is meant."""
    place = tmp_path_factory.mktemp("grading")
    suite = place / "programs.yaml"
    body = {"name": "programs", "tasks": ["humaneval"], "limit": 2,
            "gen_kwargs": {"max_gen_toks": 8}}  # fmt: skip
    suite.write_text(yaml.safe_dump(body))
    locking.write_lock(str(suite))
    model = tiny_model(tokenizer="gpt2", max_length=1024)
    out = place / "results"
    support.call("eval", "--model", model, "--suite", suite, "--out", out).refused(
        75, "the answers to 2 documents are programs", "evalkit grade RUN"
    )
    (run,) = out.glob("*/programs.limit2-*")
    return run, ("--suite", suite, "--model", model)


@pytest.fixture
def answered(
    recorded: tuple[Path, tuple[Any, ...]], tmp_path: Path
) -> tuple[Path, tuple[Any, ...]]:
    """The same with a copy of the run, for the test to grade."""
    run, meant = recorded
    return shutil.copytree(run, tmp_path / "results" / run.parent.name / run.name), meant


def test_answers_that_are_programs_wait_for_a_grader(
    answered: tuple[Path, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, meant = answered
    support.call("finish", run, *meant).refused(75, "evalkit grade RUN")
    support.call("grade", run, *meant, "--in", "none").refused(3, "run in the image only")
    ran: list[str] = []

    def fake(runtime: Any, image: Any, program: str, limits: Any) -> str:
        ran.append(program)
        return "passed" if "has_close_elements" in program else "failed"

    place = Place(Runtime("docker", "1"), IMAGE, "in docker")
    monkeypatch.setattr(runtimes, "choose", lambda *_: place)
    monkeypatch.setattr(sandbox, "run", fake)
    support.call("grade", run, *meant).done()
    record = support.read(run)
    assert record["graded"]["passed"] == 1 and record["graded"]["programs"] == len(ran) == 2
    (score,) = record["tasks"]["humaneval"]["metrics"].values()
    assert score["value"] == 0.5
    support.call("verify", run).done()
    support.call("grade", run).done()
    assert len(ran) == 4, "a second grader runs each program again"
    monkeypatch.setattr(sandbox, "run", lambda *_, **__: "failed")
    support.call("grade", run).refused(1, "1 of 2 verdicts come out otherwise", "passed -> failed")


def test_a_changed_verdict_is_seen(
    answered: tuple[Path, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, meant = answered
    place = Place(Runtime("docker", "1"), IMAGE, "in docker")
    monkeypatch.setattr(runtimes, "choose", lambda *_: place)
    monkeypatch.setattr(sandbox, "run", lambda *_, **__: "failed")
    support.call("grade", run, *meant).done()
    file = run / verdicts.NAME
    file.write_text(file.read_text().replace("failed", "passed", 1))
    record = json.loads((run / "record.json").read_text())
    data = file.read_bytes()
    from evalkit.base import canon

    record["files"][verdicts.NAME] = {"size": len(data), "sha256": canon.digest_bytes(data)[7:]}
    support.write(run, record)
    ran = support.call("verify", run)
    assert ran.code == 1
    assert "grading" in ran.out and "should be 1.0" in ran.out
