"""The machine around a run: disks, caches, the environment, the clock, limits."""

from pathlib import Path

from evalkit.base.machine import steering
from evalkit.host.doctor.finding import Finding, failed, passed, warned
from evalkit.host.doctor.host import Host
from evalkit.host.inside import STEERING
from evalkit.host.launch.work import caches
from evalkit.inputs import hub

GB = 1e9
RESULTS_GB = 1  # a full run of the largest shipped suite leaves 0.2
FILES = 10_000  # a run leaves some dozens; the four tasks' datasets some thousands
OPEN_FILES = 1024
SHARED_GB = 1  # what more than one GPU for one model may take
CLOCK_S = 5
# Of those, what changes nothing outside of an image.
HARMLESS = ("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONNOUSERSITE",
            "PYTHONPYCACHEPREFIX", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONUTF8",
            "VIRTUAL_ENV")  # fmt: skip
FIRST_DAY = 1_735_689_600  # 2025: a clock before that was never set


def disk(host: Host, out: Path) -> Finding:
    """Whether results have a place."""
    free = host.free(out) / GB
    if not host.is_writable(out):
        return failed("results", f"{out} can't be written to", "choose another with OUT=")
    if free < RESULTS_GB:
        return failed("results", f"{out} has {free:.1f} GB free", "free space or choose OUT=")
    return passed("results", f"{out} has {free:.0f} GB free")


def inodes(host: Host, out: Path) -> Finding:
    """Whether there is room for files, which clusters count."""
    free = host.free_inodes(out)
    if free is None:
        return passed("inodes", f"{out}'s file system does not count files")
    if free < FILES:
        fix = "delete files there, or choose another place with OUT= and HF_HOME="
        return warned("inodes", f"{out} has room for {free:,} files", fix)
    return passed("inodes", f"{out} has room for {free:,} files")


def cache(host: Host) -> Finding:
    """Whether what is downloaded has a place."""
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
    """Whether there is a token for gated models; it is not shown."""
    place = hub.token_path(host.environment)
    if host.environment.get("HF_TOKEN"):
        return passed("token", "HF_TOKEN is set")
    if place.is_file():
        return passed("token", f"there is one in {place}")
    return warned("token", "there is none", "gated and private models need HF_TOKEN, others don't")


def environment(host: Host) -> Finding:
    """Variables that change what Python loads or how a kernel computes."""
    found = sorted(name for name in host.environment if name.startswith(STEERING))
    cleared = steering.found(host.environment)
    found = [name for name in found if name not in HARMLESS and name not in cleared]
    if cleared and not found:
        names = ", ".join(cleared)
        return warned("environment", f"{names} would choose kernels",
                      "nothing: a run clears it, and its record says so")  # fmt: skip
    if found:
        return warned(
            "environment", f"{', '.join(found)} may change what a run does here",
            "unset them, or run in the image, which they do not reach",
        )  # fmt: skip
    return passed("environment", "no variable steers Python or its kernels")


def clock(host: Host, out: Path) -> Finding:
    """Whether times in records and leases mean something."""
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
    """Limits on open files, address space and file sizes."""
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
    """Room that the processes of one model over several GPUs share."""
    size = host.shared_memory()
    if size is None or size < SHARED_GB * GB:
        shown = "there is none" if size is None else f"{size / GB:.2f} GB"
        return warned("shared memory", shown, "matters for several GPUs only: mount a larger one")
    return passed("shared memory", f"{size / GB:.1f} GB")
