"""What the doctor asks of this machine. Tests replace it by machines of their own."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import gpus, stamp
from evalkit.host.cluster import slurm
from evalkit.host.launch import runtimes

WEIGHTS = "*.safetensors"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Slurm cluster: version, partitions in words, and how many tasks may be sent at once."""

    version: str
    partitions: dict[str, list[str]]
    limit: str


@dataclass(frozen=True, slots=True)
class Host:
    """This machine. Each method asks it anew."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    machine: str = field(default_factory=platform.machine)

    def gpus(self) -> str | None:
        """Driver and compute capability of each GPU, as `gpus.pick_lock` reads them."""
        return gpus.ask_for_lock()

    def gpu_signs(self) -> list[str]:
        """Signs that there is an NVIDIA GPU, or that this process should have one."""
        return gpus.signs(self.environment)

    def gpu_memory(self) -> list[int]:
        """Bytes of each GPU's memory."""
        lines = (gpus.ask("memory.total") or "").splitlines()
        return [int(line) << 20 for line in lines if line.strip().isdigit()]

    def memory(self) -> int:
        """Bytes of this machine's memory."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def lock(self) -> str | None:
        """The lock that set-up installed this evalkit from; None for another installation."""
        with suppress(EvalkitError):
            return str(canon.read_json(Path(sys.prefix) / stamp.SETUP_NOTE)["lock"])
        return None

    def weights(self, folder: Path) -> int:
        """Bytes of the weight files in a model's folder."""
        return sum(path.stat().st_size for path in folder.glob(WEIGHTS))

    def free(self, folder: Path) -> int:
        """Free bytes on a folder's disk."""
        return shutil.disk_usage(_existing(folder)).free

    def free_inodes(self, folder: Path) -> int | None:
        """The number of further files allowed there; None where the file system has no limit."""
        status = os.statvfs(_existing(folder))
        return status.f_favail if status.f_files else None

    def is_writable(self, folder: Path) -> bool:
        """Whether a folder, or the nearest existing one above it, is writable."""
        return os.access(_existing(folder), os.W_OK | os.X_OK)

    def runtime(self, name: str, reference: str) -> str:
        """A runtime and its image in words; raises runtimes.Unusable where it can't be used."""
        version = runtimes.runtime(name).version
        image, _ = runtimes.image(name, reference)
        return f"{version} has {Path(image.reference).name} {image.digest[:19]}"

    def slurm(self) -> Cluster | None:
        """The cluster of this machine, or None; EvalkitError where Slurm does not answer."""
        if not slurm.is_here():
            return None
        partitions: dict[str, list[str]] = {}
        for part in slurm.partitions():
            facts = [part.gpus or "no GPU", f"{part.nodes} nodes", f"at most {part.limit}"]
            partitions[part.name] = facts if part.is_up else ["down"]
        return Cluster(slurm.version(), partitions, slurm.room()[1])

    def namespaces(self) -> tuple[bool, bool]:
        """Whether this user may make namespaces of users, and of networks in them."""
        tried = []
        for words in (["--user"], ["--user", "--net"]):
            try:
                ran = subprocess.run(["unshare", *words, "true"], capture_output=True, timeout=10)
            except (OSError, subprocess.TimeoutExpired):
                return False, False
            tried.append(ran.returncode == 0)
        return tried[0], tried[1]

    def clock_apart_s(self, folder: Path) -> float:
        """By how many seconds a folder's file server is ahead of this machine."""
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"x")
            file.flush()
            return os.fstat(file.fileno()).st_mtime - time.time()

    def clock_is_kept(self) -> bool | None:
        """Whether the clock is synchronised; None where that is unknown."""
        if shutil.which("timedatectl") is None:
            return None
        command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except subprocess.TimeoutExpired:
            return None
        return {"yes": True, "no": False}.get(ran.stdout.strip())

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def limit(self, name: str) -> int | None:
        """A limit of this process (`NOFILE`, `AS`, ...); None: there is none."""
        soft, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        return None if soft == resource.RLIM_INFINITY else soft

    def shared_memory(self) -> int | None:
        """Bytes of shared memory; None where there is none."""
        place = Path("/dev/shm")
        return shutil.disk_usage(place).total if place.is_dir() else None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
