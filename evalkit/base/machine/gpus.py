"""This host's NVIDIA driver, the lock whose CUDA it can run, and why torch does not see a GPU.

Set-up, the build of the image, the doctor and the engine's choice of a device use this module. It
needs the standard library only and uses no GPU.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LOCKS = ("base", "cpu", "cuda12", "cuda13")
DRIVERS = {"12": 525, "13": 580}  # the oldest that runs a CUDA of that major version
# Variables by which Slurm and NVIDIA's tools give GPUs to a process: their number, or their names.
COUNTS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK")
NAMES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")
IMAGES = ("EVALKIT_IMAGE", "APPTAINER_CONTAINER")  # one of them is set in an image
ROOT = Path("/")


class Choice(NamedTuple):
    """A lock, and the reason for it."""

    lock: str
    why: str


def pick_lock(gpus: str | None, machine: str) -> Choice:
    """Return the lock for nvidia-smi's output (driver, compute capability; None without it)."""
    if gpus is None:
        return Choice("cpu", "there is no nvidia-smi here")
    rows = _rows(gpus)
    if not rows:
        first = (gpus.strip().splitlines() or ["nothing"])[0]
        return Choice("cpu", f"nvidia-smi names no GPU, it says: {first}")
    driver = min(int(row[0]) for row in rows)
    capability = min((int(row[1]), int(row[2])) for row in rows)
    host = f"driver {driver}, compute capability {capability[0]}.{capability[1]}"
    if driver >= 580 and capability >= (7, 5):
        return Choice("cuda13", host)
    if driver < 525 or capability < (7, 0):
        return Choice("cpu", f"{host}: too old for CUDA 12.8 (525 and 7.0)")
    if machine != "x86_64":
        return Choice("cpu", f"{host}: torch for CUDA 12.8 is for x86_64 only, not {machine}")
    return Choice("cuda12", host)


def _rows(output: str) -> list[tuple[str, str, str]]:
    """Return the driver's major version and the compute capability of each GPU in the output."""
    return re.findall(r"^(\d+)\.[\d.]+,\s*(\d+)\.(\d+)\s*$", output, re.M)


def ask(*fields: str) -> str | None:
    """Return nvidia-smi's output, a line for each GPU; None where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ran.stdout + ran.stderr


def ask_for_lock() -> str | None:
    """Return the output that `pick_lock` reads."""
    return ask("driver_version", "compute_cap")


class Unseen(NamedTuple):
    """A GPU that is there but can't be used: the signs of it, the reason, and what to do."""

    signs: str
    why: str
    fix: str


def signs(environment: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Return the signs that this host has an NVIDIA GPU, or that this process should have one.

    `root`: where /dev and /proc are. A driver shows in /proc from inside a container as well.
    """
    seen = [f"/dev/{path.name}" for path in sorted((root / "dev").glob("nvidia[0-9]*"))[:1]]
    if (root / "proc/driver/nvidia/version").is_file():
        seen.append("a driver in /proc/driver/nvidia")
    for name in (*COUNTS, *NAMES):
        value = environment.get(name, "")
        # an image requests all GPUs on every host
        nothing = ("0", *HIDDEN) if name in COUNTS else ("all", *HIDDEN)
        if value not in nothing:
            seen.append(f"{name}={value}")
    if not seen and root == ROOT and _rows(ask_for_lock() or ""):
        seen.append("nvidia-smi names it")  # where devices have other names
    return seen


def driver(root: Path = ROOT) -> str | None:
    """Return the driver's version from the kernel or from nvidia-smi; None without a driver."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        text = (ask("driver_version") or "") if root == ROOT else ""
    version = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", text)
    return version[1] if version else None


def unseen(
    cuda: str | None, reason: str, environment: Mapping[str, str], root: Path = ROOT
) -> Unseen | None:
    """Return why torch does not see a GPU that is there; None where there is no sign of one.

    `cuda`: the CUDA version of torch's build, None without CUDA; `reason`: torch's own.
    """
    seen = signs(environment, root)
    if not seen:
        return None
    why, fix = _why(cuda, reason, environment, root)
    return Unseen(", ".join(seen), why, fix)


def _why(
    cuda: str | None, reason: str, environment: Mapping[str, str], root: Path
) -> tuple[str, str]:
    """Return the first reason that holds, and what to do: the lock, the driver, what hides the GPU,
    the image, then torch's own reason."""
    version = driver(root)
    number = int(version.split(".")[0]) if version else DRIVERS["13"]
    if cuda is None:
        lock = "cuda12" if number < DRIVERS["13"] else "cuda13"
        return "the CPU lock is installed, whose torch has no CUDA", f"make setup LOCK={lock}"
    needed = DRIVERS.get(cuda.split(".")[0], 0)
    if number < needed:
        runs_12 = number >= DRIVERS["12"]
        fix = "make setup LOCK=cuda12" if runs_12 else "have the driver renewed"
        return f"the driver {version} is too old for CUDA {cuda}, which needs {needed}", fix
    has_device = any((root / "dev").glob("nvidia[0-9]*"))
    in_slurm = "SLURM_JOB_ID" in environment
    ask_slurm = "ask for one: GPUS=1 make submit, or sbatch --gres=gpu:1"
    if environment.get("CUDA_VISIBLE_DEVICES", "0") in HIDDEN:
        if in_slurm:
            return "Slurm gave this job no GPU", ask_slurm
        return "CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES"
    if not has_device and any(name in environment for name in IMAGES):
        fix = "start it with `evalkit launch`, apptainer with --nv, docker with --gpus all"
        return "the image was started without it", fix
    if not has_device and in_slurm:
        return "Slurm gave this job no GPU", ask_slurm
    return reason or "CUDA does not start", "run nvidia-smi and `evalkit doctor`"
