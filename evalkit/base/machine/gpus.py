"""This host's NVIDIA driver, the lock whose CUDA it can run, and why a GPU is there and not seen.

Set-up, the image's build, the doctor and the engine's choice of a device ask here; standard library
only, and no GPU is touched.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LOCKS = ("base", "cpu", "cuda12", "cuda13")
DRIVERS = {"12": 525, "13": 580}  # the oldest that runs a CUDA of that major version
# What Slurm and NVIDIA's tools set where a process is to have GPUs: numbers of them, and names.
COUNTS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK")
NAMES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")
IMAGES = ("EVALKIT_IMAGE", "APPTAINER_CONTAINER")  # one of them is set in an image
ROOT = Path("/")


class Choice(NamedTuple):
    """A lock, and why this one."""

    lock: str
    why: str


def pick_lock(gpus: str | None, machine: str) -> Choice:
    """The lock for what `nvidia-smi` printed (driver, compute capability; None: there is none)."""
    if gpus is None:
        return Choice("cpu", "there is no nvidia-smi here")
    rows = _rows(gpus)
    if not rows:
        said = (gpus.strip().splitlines() or ["nothing"])[0]
        return Choice("cpu", f"nvidia-smi names no GPU, it says: {said}")
    driver = min(int(row[0]) for row in rows)
    capability = min((int(row[1]), int(row[2])) for row in rows)
    found = f"driver {driver}, compute capability {capability[0]}.{capability[1]}"
    if driver >= 580 and capability >= (7, 5):
        return Choice("cuda13", found)
    if driver < 525 or capability < (7, 0):
        return Choice("cpu", f"{found}: too old for CUDA 12.8 (525 and 7.0)")
    if machine != "x86_64":
        return Choice("cpu", f"{found}: torch for CUDA 12.8 is for x86_64 only, not {machine}")
    return Choice("cuda12", found)


def _rows(said: str) -> list[tuple[str, str, str]]:
    """The driver's major version and the compute capability of each GPU that nvidia-smi named."""
    return re.findall(r"^(\d+)\.[\d.]+,\s*(\d+)\.(\d+)\s*$", said, re.M)


def ask(*fields: str) -> str | None:
    """What nvidia-smi says of each GPU, a line each; None without one."""
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
    """What `pick_lock` is to read."""
    return ask("driver_version", "compute_cap")


class Unseen(NamedTuple):
    """A GPU that is there and can't be computed on: what says that it is there, why it can't, and
    what to do."""

    signs: str
    why: str
    fix: str


def signs(environment: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """What says that this host has an NVIDIA GPU, or that this process was to have one, in words.

    `root`: where /dev and /proc are. A driver shows in /proc from inside a container as well.
    """
    found = [f"/dev/{path.name}" for path in sorted((root / "dev").glob("nvidia[0-9]*"))[:1]]
    if (root / "proc/driver/nvidia/version").is_file():
        found.append("a driver in /proc/driver/nvidia")
    asked = {name: environment.get(name, "") for name in (*COUNTS, *NAMES)}
    for name, value in asked.items():
        # an image says that it takes all there are, on whatever host
        nothing = ("0", *HIDDEN) if name in COUNTS else ("all", *HIDDEN)
        if value not in nothing:
            found.append(f"{name}={value}")
    if not found and root == ROOT and _rows(ask_for_lock() or ""):
        found.append("nvidia-smi names it")  # where devices have other names
    return found


def driver(root: Path = ROOT) -> str | None:
    """The driver's version: from the kernel, else from nvidia-smi; None where there is none."""
    try:
        said = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        said = (ask("driver_version") or "") if root == ROOT else ""
    found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", said)
    return found[1] if found else None


def unseen(
    cuda: str | None, said: str, environment: Mapping[str, str], root: Path = ROOT
) -> Unseen | None:
    """Why torch sees no GPU where there is one; None where nothing says that there is.

    `cuda`: the version that torch is built for, None where for none; `said`: torch's own reason.
    """
    found = signs(environment, root)
    if not found:
        return None
    why, fix = _why(cuda, said, environment, root)
    return Unseen(", ".join(found), why, fix)


def _why(
    cuda: str | None, said: str, environment: Mapping[str, str], root: Path
) -> tuple[str, str]:
    """The first reason that holds, and what to do: the lock, the driver, the image, who hides it,
    then torch's own words."""
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
    return said or "CUDA does not start", "run nvidia-smi and `evalkit doctor`"
