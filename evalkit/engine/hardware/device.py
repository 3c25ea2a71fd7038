"""The device that a run computes on: which one, and its hardware.

evalkit computes on NVIDIA GPUs and on CPUs. Where there is a GPU that torch can't see, evalkit does
not take the CPU in silence: that would cost days, and give the answers of another device.
"""

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import gpus, stamp
from evalkit.base.machine.types import Hardware
from evalkit.plan.shards import available_cores

AUTO = "auto"  # the device that stands for all the visible GPUs
CPU_FIX = "or DEVICE=cpu (--device cpu) to compute on the CPU"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_MAX
PLAIN: Hardware = {
    "device": "cpu",
    "gpu": [],
    "cuda": None,
    "driver": None,
    "cublas": None,
    "cudnn": None,
}


def pick(device: str | None) -> str:
    """Return the requested device; without one, "cuda" for a worker on every GPU, or else the CPU.

    Raises EvalkitError where the device isn't there. Raises it too where there is a GPU that can't
    be used, unless the CPU was requested by name.
    """
    _refuse_rocm(device)
    is_seen = torch.cuda.is_available()
    if device is None and not is_seen:
        _refuse_unseen()
    chosen = device or ("cuda" if is_seen else "cpu")
    try:
        kind = "cuda" if chosen == AUTO else torch.device(chosen).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise EvalkitError(
            f"unknown device '{chosen}'",
            fix="use cpu, cuda or cuda:N (NVIDIA only), or auto for all GPUs",
        )
    if kind == "cuda" and not is_seen:
        unseen = _unseen()
        raise EvalkitError(
            f"device '{chosen}' is asked for but torch sees no GPU"
            + (f": {unseen.why}" if unseen else ""),
            fix=unseen.fix if unseen else "run nvidia-smi; evalkit computes on NVIDIA GPUs only",
            code=Exit.MISSING,
        )
    return chosen


def _refuse_rocm(device: str | None) -> None:
    """Raise EvalkitError for a ROCm build of torch, which calls its GPUs `cuda`: evalkit was never
    tried there."""
    if device == "cpu" or getattr(torch.version, "hip", None) is None:
        return
    raise EvalkitError(
        f"torch is built for ROCm {torch.version.hip}, and evalkit computes on NVIDIA GPUs only",
        fix=f"install a CUDA lock on a host with an NVIDIA GPU, {CPU_FIX}",
        code=Exit.MISSING,
    )


def _unseen() -> gpus.Unseen | None:
    return gpus.unseen(torch.version.cuda, _cuda_error(), os.environ)


def _refuse_unseen() -> None:
    unseen = _unseen()
    if unseen is not None:
        raise EvalkitError(
            f"there is a GPU ({unseen.signs}) that torch can't see: {unseen.why}",
            fix=f"{unseen.fix}, {CPU_FIX}",
            code=Exit.MISSING,
        )


def _cuda_error() -> str:
    """Return torch's message on why CUDA does not start; empty where it starts or is not there."""
    if torch.version.cuda is None:
        return ""
    untyped: Any = torch.cuda
    try:
        untyped.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().split("\n")[0]
    return ""


def usable(chosen: str, weight_bytes: int) -> list[str]:
    """Return the devices that may have a worker. Of "cuda", these are the GPUs that the weights fit
    into with a tenth to spare. Raises EvalkitError where they fit into none."""
    if chosen != "cuda":
        return [chosen]
    sizes = memories(chosen)
    fitting = [f"cuda:{index}" for index, size in enumerate(sizes) if weight_bytes < 0.9 * size]
    if not fitting:
        raise EvalkitError(
            f"{weight_bytes / 1e9:.0f} GB of weights do not fit into a GPU of"
            f" {max(sizes, default=0) / 1e9:.0f} GB",
            fix="--device auto spreads the model over all GPUs",
            code=Exit.MISSING,
        )
    return fitting


def memories(chosen: str) -> list[int]:
    """Return the bytes of memory of each GPU of a device; none for a CPU."""
    return [torch.cuda.get_device_properties(index).total_memory for index in _indices(chosen)]


def _indices(chosen: str) -> list[int]:
    if chosen in (AUTO, "cuda"):
        return list(range(torch.cuda.device_count()))
    place = torch.device(chosen)
    return [] if place.type == "cpu" else [place.index or 0]


def hardware(device: str) -> Hardware:
    """Return what a device is: for GPUs, their names and the versions of the software that chooses
    their kernels. "auto" and "cuda" mean all visible GPUs."""
    indices = _indices(device)
    if not indices:
        return PLAIN.copy()
    return {
        "device": device,
        "gpu": [torch.cuda.get_device_name(index) for index in indices],
        "cuda": torch.version.cuda,
        "driver": gpus.driver(),
        "cublas": cublas_version(),
        "cudnn": cudnn_version(),
    }


def cudnn_version() -> str | None:
    """Return the version of the cuDNN that torch uses; None where there is none."""
    cudnn: Any = torch.backends.cudnn  # untyped
    version = cudnn.version() if cudnn.is_available() else None
    return None if version is None else str(version)


def cublas_version(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Return the version of the cuBLAS that this process has loaded. The library itself is called
    for it: a search path of the host may have put another one before torch's."""
    loaded = re.search(r"(/\S*/libcublas\.so[.\d]*)$", maps.read_text(), re.M)
    if loaded is None:
        return None
    library, numbers = ctypes.CDLL(loaded[1]), []
    for part in range(3):  # major, minor, patch
        value = ctypes.c_int(-1)
        library.cublasGetProperty(part, ctypes.byref(value))
        numbers.append(str(value.value))
    return ".".join(numbers)


def described(device: str) -> str:
    """Return a line that says what a run computes on."""
    kinds = [torch.cuda.get_device_name(index) for index in _indices(device)]
    if not kinds:
        return f"computes on the CPU: {stamp.cpu()}, {available_cores()} cores"
    names = [f"{kinds.count(name)} x {name}" for name in dict.fromkeys(kinds)]
    sizes = "/".join(dict.fromkeys(f"{size / 2**30:.0f}" for size in memories(device)))
    spread = ", one model over all" if device == AUTO and len(kinds) > 1 else ""
    return (
        f"computes on {', '.join(names)} ({sizes} GiB{spread}), driver"
        f" {gpus.driver() or 'unknown'}, CUDA {torch.version.cuda}"
    )


def keep_freed_memory() -> None:
    """Let a process that computes on the CPU keep the memory that it frees. Without glibc nothing
    happens.

    glibc returns a large block to the system when it is freed, and the next forward pass gets it
    back page by page, set to zero: about a thirtieth of the CPU's time.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
