"""What would be measured on a GPU runs on a CPU, with less installed, and keeps what it has."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import support

from bench import gpu, gpu_memory, gpu_model, report_gpu
from bench.gpu import Session

# What a bare GPU machine need not have, and what evalkit has for people and for judging.
ABSENT = ("lm_eval", "datasets", "click", "jsonschema", "rich", "cryptography", "peft", "pynvml")
RUN = """
import sys
for name in {absent!r}: sys.modules[name] = None
from bench import gpu
gpu.main(["--smoke", "--out", {out!r}])
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What it prints and where it left its results, in a process of its own."""
    out = tmp_path_factory.mktemp("bench") / "results"
    code = RUN.format(absent=ABSENT, out=str(out))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=support.ROOT
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, out


def kept(out: Path) -> list[dict[str, Any]]:
    """The results on the disk."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.oracle
def test_all_of_it_runs_without_what_a_gpu_machine_need_not_have(smoke: tuple[str, Path]) -> None:
    shown, out = smoke
    results = kept(out)
    assert [one["part"] for one in results if one["name"] == "part"] == list(gpu.PARTS)
    assert sum(one["name"] == "build" for one in results) == 1, "one model is built"
    assert shown.splitlines() == [report_gpu.line(one) for one in results]
    assert shown.count("equal bits") == 6 and "DIFFERS" not in shown
    assert "**all three**" in (out / "results.md").read_text("utf-8")


@pytest.mark.oracle
def test_the_first_minute_tells_what_the_device_is_and_does(smoke: tuple[str, Path]) -> None:
    names = [one["name"] for one in kept(smoke[1])]
    first = names[: names.index("part")]
    order = [
        "build",
        "device",
        "matmul",
        "attention",
        "writes",
        "step",
        "pass",
        "repeats",
        "memory",
    ]
    assert list(dict.fromkeys(first)) == order


def test_a_result_is_on_the_disk_before_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that goes away takes only what it was measuring."""

    def one(session: Session) -> None:
        session.tell("first", value=1)

    def two(session: Session) -> None:
        assert [each["name"] for each in kept(tmp_path)] == ["first", "part"]
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "PARTS", {"check": one, "decode": two})
    monkeypatch.setattr(Session, "build", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(Session(gpu.SMOKE, tmp_path), ["check", "decode"])
    assert len(kept(tmp_path)) == 2


def test_a_part_for_which_no_time_is_left_is_left_out_and_said_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "build", lambda _: None)
    gpu.run(Session(gpu.SMOKE, None, until=time.monotonic() - 1), ["bbh"])
    assert capsys.readouterr().out == "left out   part bbh\n"


def test_an_h200_is_measured_by_its_own_policy() -> None:
    scale = replace(gpu.SMOKE, shape=replace(gpu.SMOKE.shape, config=gpu.shapes.LLAMA_8B))
    policy = Session(replace(scale, memory=141), None).policy
    assert (policy.memory, policy.max_slots, policy.max_tokens) == (141, 256, 32768)


# The simulator


def test_the_modelled_table_in_the_docs_is_what_the_command_makes_and_says_so() -> None:
    text = gpu_model.text(gpu_model.work(), gpu_model.STATED, "stated")
    page = gpu_memory.PAGE.read_text("utf-8")
    assert text in page and "Modelled, not measured" in text
    assert "**Nothing here has run on a GPU yet.**" in page.splitlines()[2]


def test_more_gpus_never_take_longer_and_cheaper_steps_never_either() -> None:
    work = gpu_model.work()
    for name in gpu_model.MODELS:
        found = [gpu_model.minutes(name, n, work, gpu_model.STATED) for n in gpu_model.COUNTS]
        fitting = [each for each in found if each is not None]
        assert fitting == sorted(fitting, reverse=True)
        slow = gpu_model.minutes(name, 8, work, replace(gpu_model.STATED, step=0.1))
        assert slow is not None and slow > fitting[-1]
    assert gpu_model.minutes("Llama-3.1-70B", 1, work, gpu_model.STATED) is None


def test_what_was_measured_takes_the_place_of_what_was_stated() -> None:
    results = [
        {"name": "matmul", "peak_flops": 6e14},
        {"name": "pass", "share_of_peak": 0.5},
        {"name": "step", "slots": 64, "seconds": 0.5},
        {"name": "step", "slots": 256, "seconds": 0.0137},
    ]
    found = gpu_model.measured(results, gpu_model.STATED)
    assert (found.peak, found.share, found.slots) == (6e14, 0.5, 256)
    assert abs(found.step - (0.0137 - 16.06e9 / found.bandwidth)) < 1e-4
    assert "measured" in gpu_model.text(gpu_model.work(), found, "measured")
