"""What a host may do to a run without touching its files: another hash seed, locale, time zone or
clock; another host that goes on; inputs that changed meanwhile."""

import json
import os
import shutil
from pathlib import Path

import fire
import pytest
import support
from fire import Fire, Tell

from evalkit.base import canon
from evalkit.base.machine import stamp
from evalkit.run import folder

pytestmark = pytest.mark.faults
HABITS = [
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu"},
    {
        "PYTHONHASHSEED": "4294967295",
        "LC_ALL": "C.UTF-8",
        "TZ": "America/St_Johns",
        "OMP_NUM_THREADS": "2",
    },
    {
        "PYTHONHASHSEED": "random",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "",
        "PYTHONUTF8": "0",
        "MKL_NUM_THREADS": "2",
    },
]


@pytest.mark.parametrize(
    "habits",
    [HABITS[-1], *(pytest.param(each, marks=pytest.mark.faults_full) for each in HABITS[:-1])],
    ids=lambda habits: habits["PYTHONHASHSEED"],
)
def test_hash_seed_locale_time_zone_and_thread_variables_change_nothing(
    runs: Fire, tmp_path: Path, habits: dict[str, str], tell: Tell
) -> None:
    cache = {"XDG_CACHE_HOME": os.fspath(tmp_path / "cache")}  # so that it is planned here, too
    ran = support.spawn(*runs.command(tmp_path / "out"), env=habits | cache).done()
    runs.hold(ran.folder)
    tell("another hash seed, locale, time zone, thread variables", "the same answers", 1)


def test_a_clock_that_is_set_back_changes_nothing(runs: Fire, tmp_path: Path, tell: Tell) -> None:
    """The second half of the run is two days before the first."""
    if not shutil.which("faketime"):
        pytest.skip("faketime is not installed")
    out = tmp_path / "out"
    plan = runs.planned(out)
    support.call("execute", plan, "--model", runs.model, "--shard", "1/2").done()
    library = next(Path("/usr/lib").rglob("libfaketime.so.1"))
    past = {
        "LD_PRELOAD": os.fspath(library),
        "FAKETIME": "-2d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    ran = support.spawn(*runs.command(out), env=past).done()
    assert ran.folder == plan
    runs.hold(plan)
    segments = support.read(plan)["segments"]
    assert segments[0]["started"][:10] < segments[-1]["started"][:10]
    tell("a clock set back by two days half-way", "the same answers", 1)


def test_a_run_goes_on_on_another_host_and_names_both(
    runs: Fire, tmp_path: Path, tell: Tell
) -> None:
    out = tmp_path / "out"
    plan = runs.planned(out)
    support.call("execute", plan, "--model", runs.model, "--shard", "1/2").done()
    other = fire.inject(tmp_path / "other", OTHER)
    ran = support.spawn(*runs.command(out), env=other).done()
    record = runs.hold(ran.folder)
    hosts = {segment["host"] for segment in record["segments"]}
    assert len(hosts) == 2 and "elsewhere" in hosts
    assert len({json.dumps(segment["hardware"]) for segment in record["segments"]}) == 2
    from evalkit.judge.verify import verify

    (line,) = [line for line in verify(plan).lines() if "  segments" in line]
    assert line.startswith("WARN") and "2 kinds of hardware" in line
    tell("a run that goes on on unlike hardware", "the same answers here, verify warns", 1)


OTHER = """
import socket
socket.gethostname = lambda: "elsewhere"
from evalkit.base.machine import stamp
stamp.cpu = lambda: "Another Processor"
"""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("weights", "model.model.safetensors"),
        ("adapter", "adapter"),
        ("torch", "versions.torch"),
        ("threads", "run"),
        ("plan", "plan"),
    ],
)
def test_an_input_that_changed_meanwhile_is_named_before_any_batch(
    runs: Fire, tmp_path: Path, change: str, named: str, tell: Tell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = shutil.copytree(runs.model, tmp_path / "model")
    command = ("--model", model, "--suite", runs.suite, "--out", tmp_path / "out")
    run = support.call("plan", *command).done().folder
    body = support.read(run, "run.json")
    if change == "weights":
        path = model / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif change == "torch":
        now = stamp.versions()
        monkeypatch.setattr(stamp, "versions", lambda: now | {"torch": "9.9"})
    elif change == "threads":
        body["inputs"]["numerics"]["threads"] = 2
        canon.write_json(run / "run.json", body)
    elif change == "adapter":
        body["inputs"]["adapter"] = {"adapter_config.json": "0" * 64}
        canon.write_json(run / "run.json", body)
    else:
        plan = support.read(run, "plan.json")
        plan["batches"] = plan["batches"][:-1]
        canon.write_atomic(run / "plan.json", canon.dumps(plan))
    ran = support.call("execute", run, "--model", model)
    assert named in ran.refused(
        2, "another" if "." in named or named == "adapter" else "was changed"
    )
    assert not (run / "journal").exists()
    assert folder.read(run).folder == run
    tell("weights, adapter, torch, threads or plan changed meanwhile", "refused, naming it", 1)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--dtype", "bfloat16"), "numerics.dtype: float32 -> bfloat16"),
        (("--limit", "3"), "suite.limit: None -> 3"),
        (("--threads", "2"), "numerics.threads: 1 -> 2"),
        (("--level", "none"), "engine.level: tree -> none"),
    ],
)
def test_an_option_that_changed_meanwhile_is_named_and_nothing_is_lost(
    runs: Fire, tmp_path: Path, option: tuple[str, ...], named: str, tell: Tell
) -> None:
    out = tmp_path / "out"
    plan = runs.planned(out)
    before = support.contents(plan)
    ran = support.call("eval", *runs.given(out), *option)
    ran.refused(2, "an unfinished run differs in", named)
    assert support.contents(plan) == before
    tell("dtype, limit, threads or level changed meanwhile", "refused, naming it", 1)
