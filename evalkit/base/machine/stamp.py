"""Reads where a number comes from: software, hardware, source code, and whether the harness is
unchanged.

It reads no secret: of environment variables, only the values of those named here are copied. What
can't be known is `{"unknown": "<reason>"}`.
"""

import base64
import csv
import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import evalkit
from evalkit.base import canon, private
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import steering
from evalkit.base.machine.types import (
    Code,
    Environment,
    Hardware,
    Image,
    Machine,
    Stretch,
    Unknown,
    Versions,
)

GPU_PARTS: tuple[Literal["driver", "cuda", "cublas", "cudnn"], ...] = (
    "driver", "cuda", "cublas", "cudnn",
)  # fmt: skip  # versions that decide what a GPU computes
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
         "SLURM_JOB_PARTITION")  # fmt: skip
# Set by what launches a container, since an image can't hold its own digest: what the digest is of,
# the digest, the runtime and its version.
IMAGE = "EVALKIT_IMAGE"
NETWORK = "EVALKIT_NETWORK"  # whether the container has a network: none or open
ASSERTED = re.compile(r"(manifest|config|sif) (sha256:[0-9a-f]{64}) ([a-z]+) (\S{1,60})")
SETUP_NOTE = "evalkit-setup.json"  # requirements/setup.py writes it into an environment
COMMIT = "EVALKIT_COMMIT"  # evalkit's own commit, set when an image is built


def unknown(reason: str) -> Unknown:
    """Return the value that stands for what can't be known."""
    return {"unknown": reason}


@cache
def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> Versions:
    """Return the versions that the run id covers."""
    absent = "not installed"
    return {
        "evalkit": evalkit.__version__,
        "torch": version("torch") or absent,
        "transformers": version("transformers") or absent,
        "tokenizers": version("tokenizers") or absent,
    }


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def code() -> Code:
    """Return evalkit's own commit, and whether its tracked files differ from it."""
    source = Path(evalkit.__file__).resolve().parent
    if os.environ.get(COMMIT):
        return {"commit": os.environ[COMMIT], "dirty": False}
    if not (source.parent / ".git").exists():
        reason = unknown("evalkit is not run from a checkout")
        return {"commit": reason, "dirty": reason}
    commit = _run("git", "-C", str(source), "rev-parse", "HEAD")
    status = _run("git", "-C", str(source.parent), "status", "--porcelain", "-uno")
    if commit is None or status is None:
        reason = unknown("git does not answer in evalkit's checkout")
        return {"commit": reason, "dirty": reason}
    return {"commit": commit, "dirty": bool(status)}


@cache  # 14,000 files; what a process has imported does not change after
def harness_intact() -> bool | Unknown:
    """Return whether every file of the installed lm-eval still has the digest in its RECORD."""
    try:
        folder, digests = harness_record()
    except metadata.PackageNotFoundError:
        return unknown("lm-eval is not installed")
    if not digests:
        return unknown("lm-eval's installation has no RECORD with digests")
    try:
        return all(is_recorded(Path(folder, n).read_bytes(), digests[n]) for n in digests)
    except OSError:
        return False


@cache
def harness_record() -> tuple[str, dict[str, str]]:
    """Return the folder that the installed lm-eval lies in, and the digest of each of its files, by
    its name there, as lm-eval's RECORD has them. Raises PackageNotFoundError."""
    distribution = metadata.distribution("lm_eval")
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    digests = {row[0]: row[1] for row in rows if len(row) > 1 and row[1]}
    return str(distribution.locate_file("")), digests


def is_recorded(data: bytes, digest: str) -> bool:
    """Return whether a file has this digest, which is as a RECORD writes it: `sha256=...`."""
    kind, _, value = digest.partition("=")
    actual = base64.urlsafe_b64encode(hashlib.new(kind, data).digest())
    return actual.rstrip(b"=").decode() == value


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def image() -> Image | Unknown:
    """Return the image that this process runs in, as its launcher asserts it."""
    assertion = os.environ.get(IMAGE)
    if not assertion:
        return unknown("not started from an image by evalkit")
    match = ASSERTED.fullmatch(assertion)
    if match is None:
        return unknown(f"what {IMAGE} says is not what evalkit's launcher writes")
    of, digest, name, number = match.groups()
    asserted: Image = {
        "digest": digest, "of": of, "runtime": f"{name} {number}", "asserted_by": "launcher",
    }  # fmt: skip
    network = os.environ.get(NETWORK)
    if network in ("none", "open"):
        asserted["network"] = network
    return asserted


def _container() -> str:
    """Return the name of the container runtime, as far as the container shows it."""
    for name in ("apptainer", "singularity"):
        if os.environ.get(f"{name.upper()}_CONTAINER"):
            return name
    if os.environ.get("container") == "podman":  # noqa: SIM112  # that is how podman writes it
        return "podman"
    if Path("/.dockerenv").exists():
        return "docker"
    return "none"


def _lock() -> str | Unknown:
    """Return the lock that this environment was installed from and its digest, as set-up noted
    them."""
    try:
        note = canon.read_json(Path(sys.prefix) / SETUP_NOTE)
        return f"{note['lock']} sha256:{note['done']['packages']}"
    except (EvalkitError, OSError, KeyError, TypeError):
        return unknown("this environment was not installed by evalkit's set-up")


@cache
def _packages() -> dict[str, str]:
    """Return the version of every installed distribution, by name."""
    names = {package.name for package in metadata.distributions() if package.name}
    # Of a name that is installed twice (a leftover of pip, the user's own beside the host's), the
    # version is the one that `version` finds.
    return {name: number for name in sorted(names) if (number := version(name))}


def environment(hardware: Hardware) -> Environment:
    """Return the software and hardware that this process runs on. `hardware`: `engine.hardware`."""
    no_part = unknown("this torch does not say" if hardware["gpu"] else "not run on a GPU")
    return {
        "versions": versions(),
        "packages": _packages(),
        "image": image(),
        "lock": _lock(),
        "harness_intact": harness_intact(),
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": cpu(),
        "gpu": hardware["gpu"],
        "driver": hardware.get("driver") or no_part,
        "cuda": hardware.get("cuda") or no_part,
        "cublas": hardware.get("cublas") or no_part,
        "cudnn": hardware.get("cudnn") or no_part,
        "runtime": _container(),
        "cleared": {name: without_paths(value) for name, value in steering.told().items()},
    }


def segment_start(hardware: Hardware) -> Stretch:
    """Return the host of this stretch of a run, its hardware (unknown where a server computes) and
    Slurm's ids."""
    slurm = {name: os.environ[name] for name in SLURM if name in os.environ}
    return {"host": host(), "hardware": machine(hardware), "slurm": slurm or None}


def host() -> str:
    """Return this host's name, with bytes replaced that are no text."""
    return socket.gethostname().encode("utf-8", "replace").decode()


def machine(hardware: Hardware) -> Machine:
    """Return the hardware that stretches of a run must share for equal bits: the kinds of GPU,
    whatever their number, with the versions of the software that chooses their kernels; or the
    processor."""
    kinds = hardware["gpu"]
    if isinstance(kinds, dict):
        return kinds
    if not kinds:
        return f"{cpu()} ({os.cpu_count()} cores)"
    parts: dict[str, object] = {"gpu": ", ".join(sorted(set(kinds)))}
    return parts | {part: hardware[part] for part in GPU_PARTS if hardware.get(part)}


def unlike(before: Machine, after: Machine) -> str:
    """Return how two machines (`machine`) differ, in words; empty where they are equal."""
    if isinstance(before, str) or isinstance(after, str):
        return "" if before == after else f"{_shown(before)} -> {_shown(after)}"
    parts = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    return ", ".join(f"{part} {before.get(part)} -> {after.get(part)}" for part in parts)


def _shown(machine: Machine) -> str:
    return machine if isinstance(machine, str) else str(machine.get("gpu", machine))


def command(argv: list[str]) -> list[str]:
    """Return a command line as it may be published: of a path of this host only the last part."""
    return [Path(argv[0]).name if argv else "evalkit", *map(_word, argv[1:])]


def _word(word: str) -> str:
    """Return a word, or the value after its `--option=`, without credentials; of a path of this
    machine only the last part."""
    is_option = word.startswith("--") and "=" in word
    option, equals, value = word.partition("=") if is_option else ("", "", word)
    return option + equals + private.words(_place(value))


def _place(value: str) -> str:
    name, equals, rest = value.partition("=")  # --engine-arg KEY=VALUE, or a path with one in it
    if equals and name.isidentifier():
        return name + equals + private.place(rest)
    return private.place(value)


def without_paths(text: str) -> str:
    """Return an error's text without credentials, and with only the last part of every path that is
    absolute or leaves its folder."""
    cut = re.sub(r"(?<![\w.~:/-])(?:~|\.\.?)?/(?:[^\s/'\":=,]+/)*(?=[^\s/])", "", text)
    return private.words(cut)


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far.

    On Linux, getrusage is only the fallback: it counts the memory of the parent before `exec` too.
    """
    import resource

    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak_line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak_line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
