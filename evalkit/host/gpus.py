"""This host's NVIDIA driver, and the lock whose CUDA it can run.

Set-up, the image's build and the doctor ask here; standard library only, and no GPU is touched.
"""

import re
import shutil
import subprocess
from typing import NamedTuple

LOCKS = ("base", "cpu", "cuda12", "cuda13")


class Choice(NamedTuple):
    """A lock, and why this one."""

    lock: str
    why: str


def pick_lock(gpus: str | None, machine: str) -> Choice:
    """The lock for what `nvidia-smi` printed (driver, compute capability; None: there is none)."""
    if gpus is None:
        return Choice("cpu", "there is no nvidia-smi here")
    rows = re.findall(r"^(\d+)\.[\d.]+,\s*(\d+)\.(\d+)\s*$", gpus, re.M)
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
