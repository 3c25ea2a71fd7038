"""Where a run computes: no CPU in silence where there is a GPU, no kernel by the environment."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from support import call

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import gpus, stamp, steering
from evalkit.engine.hardware import device
from evalkit.judge.verify.checks import health

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Aug  1 2023\nGCC version: 12.3.0"


def host(folder: Path, *, driver: str | None = None, devices: int = 0) -> Path:
    """A root folder with a driver of that version in /proc and so many GPUs in /dev."""
    (folder / "dev").mkdir()
    for index in range(devices):
        (folder / f"dev/nvidia{index}").touch()
    if driver:
        (folder / "proc/driver/nvidia").mkdir(parents=True)
        (folder / "proc/driver/nvidia/version").write_text(VERSION.format(driver))
    return folder


def test_a_host_without_a_gpu_has_no_sign_of_one(tmp_path: Path) -> None:
    harmless = {"NVIDIA_VISIBLE_DEVICES": "all", "SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_ID": "7",
                "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    assert gpus.unseen("13.0", "", harmless, host(tmp_path)) is None


@pytest.mark.parametrize(
    ("cuda", "driver", "devices", "environment", "why", "fix"),
    [
        (None, "580.65.06", 1, {}, "the CPU lock is installed", "LOCK=cuda13"),
        (None, "535.104.05", 1, {}, "the CPU lock is installed", "LOCK=cuda12"),
        (None, None, 0, {"SLURM_JOB_GPUS": "0"}, "the CPU lock is installed", "LOCK=cuda13"),
        ("13.0", "535.104.05", 1, {}, "535.104.05 is too old for CUDA 13.0, which needs 580",
         "LOCK=cuda12"),
        ("12.8", "470.82.01", 1, {}, "470.82.01 is too old for CUDA 12.8, which needs 525",
         "have the driver renewed"),
        ("13.0", "580.65.06", 0, {"APPTAINER_CONTAINER": "/x.sif"},
         "the image was started without it", "apptainer with --nv"),
        ("13.0", "580.65.06", 2, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES hides it",
         "unset CUDA_VISIBLE_DEVICES"),
        ("13.0", "580.65.06", 2, {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_ID": "7"},
         "Slurm gave this job no GPU", "--gres=gpu:1"),
        ("13.0", "580.65.06", 0, {"SLURM_JOB_ID": "7"}, "Slurm gave this job no GPU", "GPUS=1"),
        ("13.0", "580.65.06", 1, {}, "CUDA says no", "nvidia-smi"),
        ("13.0", None, 0, {"SLURM_GPUS_ON_NODE": "a100:2"}, "CUDA says no", "nvidia-smi"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cant_see_is_named_with_the_reason(
    tmp_path: Path, cuda: str | None, driver: str | None, devices: int,
    environment: Mapping[str, str], why: str, fix: str,
) -> None:  # fmt: skip
    found = gpus.unseen(cuda, "CUDA says no", environment, host(tmp_path, driver=driver,
                                                                 devices=devices))  # fmt: skip
    assert found is not None and why in found.why and fix in found.fix
    sign = "/dev/nvidia0" if devices else "a driver" if driver else "SLURM"
    assert sign in found.signs


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host has a GPU that torch can't see."""
    found = gpus.Unseen("/dev/nvidia0", "the driver 535 is too old", "make setup LOCK=cuda12")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "unseen", lambda *_: found)


def test_a_run_is_refused_before_anything_else_where_a_gpu_is_not_seen(
    unseen: None, tmp_path: Path
) -> None:
    ran = call("eval", "--model", "no/such-model", "--suite", "demo", "--out", tmp_path)
    ran.refused(Exit.MISSING, "there is a GPU (/dev/nvidia0) that torch can't see: the driver 535",
                "make setup LOCK=cuda12", "DEVICE=cpu")  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_the_cpu_is_taken_where_it_is_asked_for_by_name(unseen: None) -> None:
    assert device.pick("cpu") == "cpu"
    with pytest.raises(EvalkitError, match="the driver 535 is too old"):
        device.pick(None)
    with pytest.raises(EvalkitError, match=r"'cuda' is asked for .* the driver 535 is too old"):
        device.pick("cuda")


def test_a_planned_run_is_not_executed_on_the_cpu_in_silence_and_scored_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, executed = support.planned(tmp_path / "a"), support.executed(tmp_path / "b")
    found = gpus.Unseen("/dev/nvidia0", "it is hidden", "unset it")
    monkeypatch.setattr(gpus, "unseen", lambda *_: found)
    call("execute", planned).refused(Exit.MISSING, "it is hidden")
    call("finish", executed).done()  # scoring needs no GPU


def test_rocm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for asked in (None, "cuda", "auto"):
        with pytest.raises(EvalkitError, match=r"ROCm 6\.4, and evalkit computes on NVIDIA GPUs"):
            device.pick(asked)
    assert device.pick("cpu") == "cpu"


def test_auto_is_for_gpus_and_says_so_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked in ("auto", "cuda", "cuda:1"):
        with pytest.raises(EvalkitError, match=f"'{asked}' is asked for but torch sees no GPU"):
            device.pick(asked)
    with pytest.raises(EvalkitError, match=r"use cpu, cuda or cuda:N .*or auto"):
        device.pick("gpu")
    assert device.pick("cpu") == device.pick(None) == "cpu"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs that are seen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    memory = type("Properties", (), {"total_memory": 141 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "driver", lambda: "580.65.06")
    monkeypatch.setattr(device, "cublas_version", lambda: "13.0.2")
    monkeypatch.setattr(device, "cudnn_version", lambda: "91400")


def test_the_hardware_of_a_run_names_every_gpu_and_what_chooses_its_kernels(two: None) -> None:
    assert device.pick("auto") == "auto" and device.pick(None) == "cuda"
    versions = {"cuda": "13.0", "driver": "580.65.06", "cublas": "13.0.2", "cudnn": "91400"}
    both = {"device": "auto", "gpu": ["NVIDIA H200"] * 2, **versions}
    assert device.hardware("auto") == both
    assert device.hardware("cuda:1") == {**both, "device": "cuda:1", "gpu": ["NVIDIA H200"]}
    assert device.hardware("cpu") == {**dict.fromkeys(both), "device": "cpu", "gpu": []}
    line = "computes on 2 x NVIDIA H200 (141 GiB, one model over all), driver 580.65.06, CUDA 13.0"
    assert device.described("auto") == line


def test_the_device_is_told_first_and_stands_in_status(tmp_path: Path) -> None:
    ran = call("eval", *support.DEMO, "--out", tmp_path, "--limit", "1").done()
    line = next(line for line in ran.err.splitlines() if not line.startswith("{"))
    assert re.fullmatch(r"computes on the CPU: .+, \d+ cores", line)
    assert call("status", ran.folder).done().out.splitlines()[1:] == [line]


# Like hardware


def machine(**parts: str) -> Any:
    told = {"gpu": ["NVIDIA H200"], "driver": "580.65.06", "cuda": "13.0", "cublas": "13.0.2"}
    return stamp.machine({**told, "cudnn": "91400", **parts})


def test_like_hardware_is_the_kind_of_gpu_and_the_versions_and_not_their_number() -> None:
    assert machine() == machine(gpu=["NVIDIA H200"] * 4)  # type: ignore[arg-type]
    for part in stamp.GPU_PARTS:
        assert stamp.unlike(machine(), machine(**{part: "other"})).startswith(f"{part} ")
    record = {"preferred": None, "segments": [
        {"segment": name, "hardware": machine(driver=driver)}
        for name, driver in (("a", "580.65.06"), ("b", "580.82.07"))
    ]}  # fmt: skip
    assert "2 kinds of hardware in one run" in health.segments(record).detail


def test_cublas_is_asked_for_the_version_that_is_loaded(tmp_path: Path) -> None:
    """A path of the host's may have put another before the one that came with torch."""
    source = tmp_path / "cublas.c"
    source.write_text("int cublasGetProperty(int at, int *value) { *value = 13 - at; return 0; }")
    library = tmp_path / "libcublas.so.13"
    assert not os.system(f"cc -shared -fPIC -o {library} {source}")
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 00:00 0   {library}\n")
    assert device.cublas_version(maps) == "13.12.11"
    assert device.cublas_version(source) is None


# The environment


def test_every_variable_that_an_image_refuses_for_its_kernels_is_cleared_outside_of_one() -> None:
    from evalkit.host import inside

    for prefix in steering.KERNELS:
        assert prefix in inside.STEERING
        assert steering.found({f"{prefix}X": "1"})
    kept = {"MKL_NUM_THREADS": "1", "OMP_PLACES": "cores", "TRITON_CACHE_DIR": "/x"}
    assert not steering.found({**kept, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


def test_clearing_sets_what_cublas_and_the_allocator_need_and_keeps_a_users_allocator() -> None:
    here = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "HOME": "/x"}
    steering.clear(here)
    assert here == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HOME": "/x",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
    own = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    steering.clear(own)
    assert "PYTORCH_ALLOC_CONF" not in own
