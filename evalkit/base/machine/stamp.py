"""Where a number came from: software, hardware, source, and whether the harness is untouched.

Reads the machine, never a secret: no environment variable's value is copied but those named here.
What can't be known is `{"unknown": "<reason>"}`.
"""

import base64
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
from typing import Any, TypedDict

import evalkit
from evalkit.base import canon, private
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import steering

VERSIONED = ("torch", "transformers", "tokenizers")
GPU_PARTS = ("driver", "cuda", "cublas", "cudnn")  # versions that decide what a GPU computes
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
         "SLURM_JOB_PARTITION")  # fmt: skip
# What launches a container says of its image, in words: what the digest is of, the digest, the
# runtime and its version. An image can't hold its own digest.
IMAGE = "EVALKIT_IMAGE"
NETWORK = "EVALKIT_NETWORK"  # and whether it gave the container a network: none or open
ASSERTED = re.compile(r"(manifest|config|sif) (sha256:[0-9a-f]{64}) ([a-z]+) (\S{1,60})")
SETUP_NOTE = "evalkit-setup.json"  # what requirements/setup.py leaves in an environment
COMMIT = "EVALKIT_COMMIT"  # evalkit's own commit, set when an image is built


class Unknown(TypedDict):
    """A value that can't be known, and why."""

    unknown: str


def unknown(reason: str) -> Unknown:
    """Return the value that stands for what can't be known."""
    return {"unknown": reason}


def version(package: str) -> str | None:
    """An installed distribution's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The versions that the run id covers."""
    found = {name: version(name) or "not installed" for name in VERSIONED}
    return {"evalkit": evalkit.__version__, **found}


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def code() -> dict[str, Any]:
    """evalkit's own commit, and whether its tracked files differ from it."""
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
    """Whether every installed lm-eval file still has the digest that its RECORD gives."""
    try:
        distribution = metadata.distribution("lm_eval")
    except metadata.PackageNotFoundError:
        return unknown("lm-eval is not installed")
    files = [file for file in distribution.files or [] if file.hash]
    if not files:
        return unknown("lm-eval's installation has no RECORD with digests")
    for file in files:
        try:
            data = Path(str(file.locate())).read_bytes()
        except OSError:
            return False
        assert file.hash is not None, "filtered above"
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, data).digest())
        if digest.rstrip(b"=").decode() != file.hash.value:
            return False
    return True


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def image() -> dict[str, str] | Unknown:
    """The image that this runs in, as its launcher asserts it."""
    said = os.environ.get(IMAGE)
    if not said:
        return unknown("not started from an image by evalkit")
    found = ASSERTED.fullmatch(said)
    if found is None:
        return unknown(f"what {IMAGE} says is not what evalkit's launcher writes")
    of, digest, name, number = found.groups()
    told = {"digest": digest, "of": of, "runtime": f"{name} {number}", "asserted_by": "launcher"}
    network = os.environ.get(NETWORK)
    return told | ({"network": network} if network in ("none", "open") else {})


def _container() -> str:
    """The container runtime, as it shows from inside."""
    for name in ("apptainer", "singularity"):
        if os.environ.get(f"{name.upper()}_CONTAINER"):
            return name
    if os.environ.get("container") == "podman":  # noqa: SIM112  # that is how podman writes it
        return "podman"
    if Path("/.dockerenv").exists():
        return "docker"
    return "none"


def _lock() -> str | Unknown:
    """Digest of the lock that this environment was installed from, as set-up noted it."""
    try:
        note = canon.read_json(Path(sys.prefix) / SETUP_NOTE)
        return f"{note['lock']} sha256:{note['done']['packages']}"
    except (EvalkitError, OSError, KeyError, TypeError):
        return unknown("this environment was not installed by evalkit's set-up")


@cache
def _packages() -> dict[str, str]:
    """Return the version of every installed distribution, by name."""
    names = {found.name for found in metadata.distributions() if found.name}
    # Of a name that stands twice (what pip left behind, a user's own beside the host's) the version
    # is the one that `version` finds.
    return {name: found for name in sorted(names) if (found := version(name))}


def environment(hardware: dict[str, Any]) -> dict[str, Any]:
    """The software and hardware that this process runs on. `hardware`: `engine.hardware`."""
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
        **{part: hardware.get(part) or unknown(_no_part(hardware)) for part in GPU_PARTS},
        "runtime": _container(),
        "cleared": {name: without_paths(value) for name, value in steering.told().items()},
    }


def segment_start(hardware: dict[str, Any]) -> dict[str, Any]:
    """Who runs this stretch: host, hardware (unknown where a server computes) and Slurm's ids."""
    slurm = {name: os.environ[name] for name in SLURM if name in os.environ}
    return {"host": host(), "hardware": machine(hardware), "slurm": slurm or None}


def host() -> str:
    """This host's name; bytes that are no text are replaced."""
    return socket.gethostname().encode("utf-8", "replace").decode()


def machine(hardware: dict[str, Any]) -> Any:
    """What stretches of a run must have in common for equal bits: the kinds of GPU, whatever their
    number, with the versions of what chooses their kernels; else the processor."""
    named = hardware["gpu"]
    if isinstance(named, dict):
        return named
    if not named:
        return f"{cpu()} ({os.cpu_count()} cores)"
    told = {part: hardware[part] for part in GPU_PARTS if hardware.get(part)}
    return {"gpu": ", ".join(sorted(set(named))), **told}


def unlike(one: Any, other: Any) -> str:
    """How two machines (`machine`) differ, in words; empty where they don't."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return "" if one == other else f"{_shown(one)} -> {_shown(other)}"
    parts = [part for part in {**one, **other} if one.get(part) != other.get(part)]
    return ", ".join(f"{part} {one.get(part)} -> {other.get(part)}" for part in parts)


def _shown(machine: Any) -> str:
    return str(machine.get("gpu", machine)) if isinstance(machine, dict) else str(machine)


def _no_part(hardware: dict[str, Any]) -> str:
    return "this torch does not say" if hardware["gpu"] else "not run on a GPU"


def command(argv: list[str]) -> list[str]:
    """The command line as it may be published: paths of this host cut to their last part."""
    return [Path(argv[0]).name if argv else "evalkit", *map(_word, argv[1:])]


def _word(word: str) -> str:
    """A word, or what stands behind its `--option=`, without credentials; where it is one path of
    this machine, its last part."""
    is_option = word.startswith("--") and "=" in word
    option, equals, value = word.partition("=") if is_option else ("", "", word)
    return option + equals + private.words(_place(value))


def _place(value: str) -> str:
    name, equals, rest = value.partition("=")  # --engine-arg KEY=VALUE, or a path with one in it
    if equals and name.isidentifier():
        return name + equals + private.place(rest)
    return private.place(value)


def without_paths(text: str) -> str:
    """An error's text without credentials, and with every absolute path, and every one that leaves
    its folder, cut to its last part."""
    cut = re.sub(r"(?<![\w.~:/-])(?:~|\.\.?)?/(?:[^\s/'\":=,]+/)*(?=[^\s/])", "", text)
    return private.words(cut)


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far.

    Linux's getrusage keeps what the process was before it ran this program: its parent's.
    """
    import resource

    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        told = next(line for line in lines if line.startswith("VmHWM:"))
        return int(told.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
