"""The checks of `doctor`: each is a function of what `Host` answers, and returns one finding.

In the order in which a run would fail: GPUs and what is installed for them, the model's size, disks
and caches, container runtimes, the cluster, the environment of the process.
"""

from dataclasses import dataclass
from pathlib import Path

import evalkit
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import steering
from evalkit.base.machine.gpus import pick_lock
from evalkit.host.doctor.host import Host
from evalkit.host.inside import STEERING
from evalkit.host.launch.command import OF_SIFS, PLACES
from evalkit.host.launch.runtimes import Unusable
from evalkit.host.launch.work import caches
from evalkit.inputs import hub
from evalkit.record.reading.findings import Status

GB = 1e9
ROOM = 1.2  # weights, and a fifth more for activations and caches
RESULTS_GB = 1  # a full run of the largest shipped suite leaves 0.2
FILES = 10_000  # a run leaves dozens; the datasets of four tasks thousands
OPEN_FILES = 1024
SHARED_GB = 1  # that one model over several GPUs may take
CLOCK_S = 5
# Variables of STEERING that change nothing outside of an image.
HARMLESS = ("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONNOUSERSITE",
            "PYTHONPYCACHEPREFIX", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONUTF8",
            "VIRTUAL_ENV")  # fmt: skip
FIRST_DAY = 1_735_689_600  # 2025: a clock before that was never set
FIXES = {
    "not installed": "nothing, where another runtime works",
    "no image": "make image, or make image-load FILE=",
    "there is no": "make sif, or make image-load FILE=",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a check: with WARN a run may fail or be slow, with FAIL it will fail. `fix`
    says what to do; only PASS needs none."""

    name: str
    status: Status
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.status is Status.PASS, f"{self.name} says nothing to do"

    def __str__(self) -> str:
        line = f"{self.status}  {self.name:<13} {self.found}"
        return f"{line}: {self.fix}" if self.fix else line


def passed(name: str, found: str) -> Finding:
    """Return a finding of PASS."""
    return Finding(name, Status.PASS, found)


def warned(name: str, found: str, fix: str) -> Finding:
    """Return a finding of WARN."""
    return Finding(name, Status.WARN, found, fix)


def failed(name: str, found: str, fix: str) -> Finding:
    """Return a finding of FAIL."""
    return Finding(name, Status.FAIL, found, fix)


def driver(host: Host) -> Finding:
    """Say which lock this host's driver can run."""
    gpus = host.gpus()
    choice = pick_lock(gpus, host.machine)
    if choice.lock != "cpu":
        return passed("driver", f"{choice.why}: the lock to use is {choice.lock}")
    if gpus is None and (signs := host.gpu_signs()):
        return failed(
            "driver", f"there is no nvidia-smi, but {', '.join(signs)}: a run is refused here",
            "have the driver mended, start the image with --nv, or ask Slurm for a GPU; DEVICE=cpu"
            " computes on the CPU",
        )  # fmt: skip
    if gpus is None:
        return warned(
            "driver",
            "there is no nvidia-smi, so runs are on the CPU (GPUs are NVIDIA's only)",
            "LOCK=cpu; for an image or a set-up that others with GPUs will use, LOCK=cuda13 or"
            " cuda12",
        )
    return warned("driver", choice.why, "have the driver mended or renewed; until then LOCK=cpu")


def installed(host: Host) -> Finding:
    """Check that what is installed fits this host."""
    lock, fitting = host.lock(), pick_lock(host.gpus(), host.machine).lock
    if lock is None:
        return warned(
            "installed", "this evalkit was not installed by its set-up",
            "`make setup` installs exactly what is locked",
        )  # fmt: skip
    if lock == "base":
        return passed("installed", "base lock: it judges records and starts images")
    if lock == fitting:
        return passed("installed", f"{lock} lock")
    if host.gpus() is None:
        return warned(
            "installed", f"{lock} lock, and no GPU here: runs are on the CPU",
            "LOCK=cpu is smaller, and as good for that",
        )  # fmt: skip
    if lock == "cpu":
        return warned("installed", "cpu lock, on a host with a GPU", f"make setup LOCK={fitting}")
    return failed(
        "installed", f"{lock} lock, which this host can't run", f"make setup LOCK={fitting}"
    )


def memory(host: Host, model: str | None) -> Finding:
    """Check that the model fits into one GPU, or into memory where there is none."""
    gpus = host.gpu_memory()
    most, where = (min(gpus), "a GPU") if gpus else (host.memory(), "memory")
    have = f"{len(gpus)} GPUs, the smallest of {most / GB:.0f} GB" if gpus else (
        f"{most / GB:.0f} GB of memory, no GPU"
    )  # fmt: skip
    folder = _folder(host, model)
    needed = ROOM * host.weights(folder) if folder else 0
    if not needed:
        note = f"; there are no weights of {model} here" if model else "; MODEL=... compares"
        return passed("memory", f"{have}{note}")
    found = f"{have}; {model} needs about {needed / GB:.1f} GB"
    if needed <= most:
        return passed("memory", found)
    if gpus and needed <= sum(gpus):
        return warned("memory", found, "more than one GPU is needed: DEVICE=auto")
    return failed("memory", found, f"a host with more room in {where}, or a smaller model")


def _folder(host: Host, model: str | None) -> Path | None:
    """Return a model's folder, or its newest snapshot in the Hub's cache."""
    if model is None or Path(model).is_dir():
        return Path(model) if model else None
    kept = caches(host.environment)["HF_HUB_CACHE"] / f"models--{model.replace('/', '--')}"
    return max(kept.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, default=None)


def disk(host: Host, out: Path) -> Finding:
    """Check that results can be written and have room."""
    free = host.free(out) / GB
    if not host.is_writable(out):
        return failed("results", f"{out} can't be written to", "choose another with OUT=")
    if free < RESULTS_GB:
        return failed("results", f"{out} has {free:.1f} GB free", "free space or choose OUT=")
    return passed("results", f"{out} has {free:.0f} GB free")


def inodes(host: Host, out: Path) -> Finding:
    """Check the room for further files, which clusters limit."""
    free = host.free_inodes(out)
    if free is None:
        return passed("inodes", f"{out}'s file system does not count files")
    if free < FILES:
        fix = "delete files there, or choose another place with OUT= and HF_HOME="
        return warned("inodes", f"{out} has room for {free:,} files", fix)
    return passed("inodes", f"{out} has room for {free:,} files")


def cache(host: Host) -> Finding:
    """Check that downloads can be written and have room."""
    folder = caches(host.environment)["HF_HUB_CACHE"]
    free = host.free(folder) / GB
    if not host.is_writable(folder):
        return warned(
            "cache", f"{folder} can't be written to",
            "OFFLINE=1 if all is staged there, else set HF_HOME to a folder of yours",
        )  # fmt: skip
    if free < 20:
        return warned("cache", f"{folder} has {free:.0f} GB free", "set HF_HOME to a larger disk")
    return passed("cache", f"{folder} has {free:.0f} GB free")


def token(host: Host) -> Finding:
    """Check that there is a token for gated models, without showing it."""
    place = hub.token_path(host.environment)
    if host.environment.get("HF_TOKEN"):
        return passed("token", "HF_TOKEN is set")
    if place.is_file():
        return passed("token", f"there is one in {place}")
    return warned("token", "there is none", "gated and private models need HF_TOKEN, others don't")


def runtimes(host: Host) -> list[Finding]:
    """Check each container runtime that evalkit can use."""
    return [_runtime(host, name) for name in PLACES if name != "none"]


def _runtime(host: Host, name: str) -> Finding:
    default = "evalkit.sif" if name in OF_SIFS else f"evalkit:{evalkit.__version__}"
    try:
        return passed(name, host.runtime(name, default))
    except Unusable as reason:
        fixes = [fix for words, fix in FIXES.items() if words in str(reason)]
        return warned(name, str(reason), fixes[0] if fixes else "mend that, or use another")


def slurm(host: Host) -> Finding:
    """Say what the Slurm cluster of this machine has."""
    try:
        cluster = host.slurm()
    except EvalkitError as error:
        return warned("slurm", str(error), "ask the cluster's people, or try again later")
    if cluster is None:
        return passed("slurm", "not here")
    shown = [f"{name} ({', '.join(facts)})" for name, facts in cluster.partitions.items()]
    limit = f"; {cluster.limit}" if cluster.limit else ""
    return passed("slurm", f"{cluster.version}: partitions {', '.join(shown)}{limit}")


def namespaces(host: Host) -> Finding:
    """Check that an ordinary user may make namespaces, which rootless images need."""
    user, network = host.namespaces()
    if not user:
        return warned(
            "namespaces", "this user may make none",
            "rootless images can't start: user.max_user_namespaces, AppArmor's"
            " unprivileged_userns, or an Apptainer installed with setuid",
        )  # fmt: skip
    if not network:
        return warned(
            "namespaces", "no network namespaces",
            "nothing: a SIF runs with this host's network then, which its record says",
        )  # fmt: skip
    return passed("namespaces", "of users and networks")


def environment(host: Host) -> Finding:
    """Look for variables that change what Python loads or how a kernel computes."""
    cleared = steering.found(host.environment)
    harmless = {*HARMLESS, *cleared}
    steering_names = sorted(
        name for name in host.environment if name.startswith(STEERING) and name not in harmless
    )
    if cleared and not steering_names:
        names = ", ".join(cleared)
        return warned("environment", f"{names} would choose kernels",
                      "nothing: a run clears it, and its record says so")  # fmt: skip
    if steering_names:
        return warned(
            "environment", f"{', '.join(steering_names)} may change what a run does here",
            "unset them, or run in the image, which they do not reach",
        )  # fmt: skip
    return passed("environment", "no variable steers Python or its kernels")


def clock(host: Host, out: Path) -> Finding:
    """Check the clock, which records and leases depend on."""
    if host.now() < FIRST_DAY:
        return failed("clock", "it was never set", "set it: downloads and records need the time")
    apart = host.clock_apart_s(out) if host.is_writable(out) else 0.0
    if abs(apart) > CLOCK_S:
        return warned(
            "clock", f"{out}'s file server is {apart:+.0f} s apart from this host",
            "have both clocks kept (NTP): records will show times out of order",
        )  # fmt: skip
    if host.clock_is_kept() is False:
        return warned("clock", "nobody keeps it in time", "switch NTP on (timedatectl)")
    return passed("clock", f"within {CLOCK_S} s of {out}'s")


def limits(host: Host) -> Finding:
    """Check the limits of open files, address space and file sizes."""
    files = host.limit("NOFILE")
    if files is not None and files < OPEN_FILES:
        return warned("limits", f"only {files} open files", f"ulimit -n {OPEN_FILES}")
    for name, letter, words in (("AS", "v", "address space"), ("FSIZE", "f", "the size of a file")):
        limit = host.limit(name)
        if limit is not None:
            fix = f"ulimit -{letter} unlimited: torch maps far more than it uses"
            return warned("limits", f"{words} is limited to {limit / GB:.1f} GB", fix)
    return passed("limits", f"{files or 'any number of'} open files, no limit of space")


def shared_memory(host: Host) -> Finding:
    """Check the shared memory, which one model over several GPUs needs."""
    size = host.shared_memory()
    if size is None or size < SHARED_GB * GB:
        shown = "there is none" if size is None else f"{size / GB:.2f} GB"
        return warned("shared memory", shown, "matters for several GPUs only: mount a larger one")
    return passed("shared memory", f"{size / GB:.1f} GB")
