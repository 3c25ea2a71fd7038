"""Where a run computes: the device that was asked for or is there, and what it is.

evalkit computes on NVIDIA GPUs and on CPUs. A CPU is never taken in silence where there is a GPU
that torch can't see: that costs days, and the answers are another device's.
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
from evalkit.plan.shards import available_cores

AUTO = "auto"  # the device that stands for all the visible GPUs
CPU_FIX = "or DEVICE=cpu (--device cpu) to compute on the CPU"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_MAX
PLAIN: dict[str, Any] = {
    "device": "cpu",
    "gpu": [],
    "cuda": None,
    "driver": None,
    "cublas": None,
    "cudnn": None,
}


def pick(device: str | None) -> str:
    """The device asked for, or "cuda" for a worker on every GPU, or the CPU.

    Raises EvalkitError when it isn't there, and for a GPU that is there and can't be computed on
    unless the CPU is asked for by name.
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
        found = _unseen()
        raise EvalkitError(
            f"device '{chosen}' is asked for but torch sees no GPU"
            + (f": {found.why}" if found else ""),
            fix=found.fix if found else "run nvidia-smi; evalkit computes on NVIDIA GPUs only",
            code=Exit.MISSING,
        )
    return chosen


def _refuse_rocm(device: str | None) -> None:
    """A ROCm build of torch calls its GPUs CUDA's; no kernel of ours was ever tried there."""
    if device == "cpu" or getattr(torch.version, "hip", None) is None:
        return
    raise EvalkitError(
        f"torch is built for ROCm {torch.version.hip}, and evalkit computes on NVIDIA GPUs only",
        fix=f"install a CUDA lock on a host with an NVIDIA GPU, {CPU_FIX}",
        code=Exit.MISSING,
    )


def _unseen() -> gpus.Unseen | None:
    return gpus.unseen(torch.version.cuda, _said(), os.environ)


def _refuse_unseen() -> None:
    found = _unseen()
    if found is not None:
        raise EvalkitError(
            f"there is a GPU ({found.signs}) that torch can't see: {found.why}",
            fix=f"{found.fix}, {CPU_FIX}",
            code=Exit.MISSING,
        )


def _said() -> str:
    """Why CUDA does not start, in torch's words; empty where torch has none or it does."""
    if torch.version.cuda is None:
        return ""
    untyped: Any = torch.cuda
    try:
        untyped.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().split("\n")[0]
    return ""


def usable(chosen: str, weight_bytes: int) -> list[str]:
    """Where workers may be: of "cuda", each GPU that the weights fit into, with a tenth to spare.

    Raises EvalkitError where they fit into none.
    """
    if chosen != "cuda":
        return [chosen]
    sizes = memories(chosen)
    found = [f"cuda:{index}" for index, size in enumerate(sizes) if weight_bytes < 0.9 * size]
    if not found:
        raise EvalkitError(
            f"{weight_bytes / 1e9:.0f} GB of weights do not fit into a GPU of"
            f" {max(sizes, default=0) / 1e9:.0f} GB",
            fix="--device auto spreads the model over all GPUs",
            code=Exit.MISSING,
        )
    return found


def memories(chosen: str) -> list[int]:
    """Bytes of memory of each GPU that a device stands for; none for a CPU."""
    return [torch.cuda.get_device_properties(index).total_memory for index in _indices(chosen)]


def _indices(chosen: str) -> list[int]:
    if chosen in (AUTO, "cuda"):
        return list(range(torch.cuda.device_count()))
    place = torch.device(chosen)
    return [] if place.type == "cpu" else [place.index or 0]


def hardware(device: str) -> dict[str, Any]:
    """What the answers were computed on: the device and, for GPUs, their names (of "auto" and
    "cuda", those of all that are visible) and the versions of what chooses their kernels."""
    found = _indices(device)
    if not found:
        return dict(PLAIN)
    return {
        "device": device,
        "gpu": [torch.cuda.get_device_name(index) for index in found],
        "cuda": torch.version.cuda,
        "driver": gpus.driver(),
        "cublas": _cublas(),
        "cudnn": _cudnn(),
    }


def _cudnn() -> str | None:
    cudnn: Any = torch.backends.cudnn  # untyped
    found = cudnn.version() if cudnn.is_available() else None
    return None if found is None else str(found)


def _cublas(maps: Path = Path("/proc/self/maps")) -> str | None:
    """The version of the cuBLAS that this process has loaded, asked of itself: a path of the host's
    may have put another before the one that came with torch."""
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
    """What a run computes on, in a line."""
    found = hardware(device)
    if not found["gpu"]:
        return f"computes on the CPU: {stamp.cpu()}, {available_cores()} cores"
    names = [f"{found['gpu'].count(name)} x {name}" for name in dict.fromkeys(found["gpu"])]
    sizes = "/".join(dict.fromkeys(f"{size / 2**30:.0f}" for size in memories(device)))
    spread = ", one model over all" if device == AUTO and len(found["gpu"]) > 1 else ""
    return (
        f"computes on {', '.join(names)} ({sizes} GiB{spread}), driver"
        f" {found['driver'] or 'unknown'}, CUDA {found['cuda']}"
    )


def keep_freed_memory() -> None:
    """Let a CPU engine's process keep memory that it frees; without glibc nothing happens.

    glibc gives a large block back to the system as soon as it is freed, and the next forward pass
    asks for it again, page by page, zeroed: about a thirtieth of a CPU's time.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
