"""Calls Slurm's programs: send a job, look for jobs in the queue, cancel them, and ask what the
cluster has and allows.

No other module calls Slurm. Its answers are shown to people only: which work is done follows from
the journals, never from the queue.
"""

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit
from evalkit.host.cluster.submission import from_ranges

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Queued:
    """A task in the queue: its state, its place or why it waits, and its time, in Slurm's words."""

    state: str
    where: str
    time: str


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: the longest time of a job as Slurm writes it, its nodes, and the GPUs of one of
    them, `gpu:a100:4`, empty where it has none."""

    name: str
    is_default: bool
    is_up: bool
    limit: str
    gpus: str
    nodes: int


def is_here() -> bool:
    """Return whether this machine belongs to a Slurm cluster."""
    return shutil.which("sbatch") is not None


def version() -> str:
    """Return Slurm's version."""
    return ask(["sbatch", "--version"]).split()[-1]


def send(script: Path, *options: str, arguments: tuple[str, ...] = ()) -> str:
    """Send a batch script; return the job's number. EvalkitError (3) with Slurm's message."""
    command = ["sbatch", "--parsable", *options, str(script), *arguments]
    return ask(command).strip().partition(";")[0]


def would_take(options: Iterable[str]) -> None:
    """Raise EvalkitError with Slurm's message if it would refuse a job with these options."""
    try:
        ask(["sbatch", "--test-only", "--output=/dev/null", *options, "--wrap", "true"])
    except EvalkitError as error:
        if "busy" not in error.what:  # nodes that are busy now may be free later
            raise


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs, whether they wait or run."""
    for job in jobs:
        ask(["scancel", "--quiet", job])


def partitions() -> list[Partition]:
    """Return the cluster's partitions, in its order."""
    by_name: dict[str, Partition] = {}
    for line in ask(["sinfo", "-h", "-o", "%P|%a|%l|%G|%D"]).splitlines():
        name, state, limit, gres, nodes = [*line.split("|"), "", "", "", ""][:5]
        gpus = re.search(r"gpu(?::[^:,()]+)?(?::\d+)?", gres)
        plain, before = name.rstrip("*"), by_name.get(name.rstrip("*"))
        by_name[plain] = Partition(
            plain, name.endswith("*"), state == "up" or bool(before and before.is_up), limit,
            (gpus[0] if gpus else "") or (before.gpus if before else ""),
            int(nodes or 0) + (before.nodes if before else 0),
        )  # fmt: skip
    return list(by_name.values())


def room(account: str = "", qos: str = "") -> tuple[int | None, str]:
    """Return how many tasks may be sent at once, and why; None for no limit, or no accounts."""
    limits: list[tuple[int, str]] = []
    config = re.search(r"MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]))
    if config:
        most = int(config[1]) - 1
        limits.append((most, f"an array may have {most:,} tasks here (MaxArraySize)"))
    submitted = _submitted(account, qos)
    if submitted is not None:
        queued = len(ask(["squeue", "-h", "-r", "-u", getpass.getuser()]).splitlines())
        left = max(submitted - queued - 1, 0)  # one is the finishing job
        words = f"you may have {submitted:,} jobs in the queue (MaxSubmitJobs)"
        limits.append((left, f"{words}, of which {queued:,} are there" if queued else words))
    return min(limits, default=(None, ""), key=lambda limit: limit[0] or 0)


def _submitted(account: str, qos: str) -> int | None:
    """Return how many jobs this user may have in the queue, by Slurm's accounts."""
    user = f"user={getpass.getuser()}"
    of_account = [f"account={account}"] if account else []
    queries = [["assoc", user, *of_account, "format=MaxSubmitJobs"]]
    queries += [["qos", f"name={qos}", "format=MaxSubmitJobsPerUser"]] if qos else []
    limits: list[int] = []
    for words in queries:
        try:
            lines = ask(["sacctmgr", "-n", "-P", "show", *words]).split()
        except EvalkitError:
            continue
        limits += [int(line) for line in lines if line.isdecimal()]
    return min(limits, default=None)


def tasks(jobs: Iterable[str]) -> dict[int, Queued]:
    """Return the waiting or running tasks of job arrays, by number; none without Slurm."""
    queue: dict[int, Queued] = {}
    for job in jobs:
        try:
            lines = ask(["squeue", "-h", "-j", job, "-o", "%K|%T|%R|%M"]).splitlines()
        except EvalkitError:
            continue
        for line in lines:
            numbers, state, where, time = [*line.split("|", 3), "", "", ""][:4]
            queued = Queued(state.lower(), where.strip("()"), time)
            queue |= dict.fromkeys(from_ranges(numbers.strip("[]")), queued)
    return queue


def waits(job: str) -> bool:
    """Return whether a job waits or runs."""
    try:
        return bool(ask(["squeue", "-h", "-j", job]).strip())
    except EvalkitError:
        return False


def absent(program: str) -> EvalkitError:
    """Return the error for a program of Slurm that isn't here."""
    fix = "submit from a machine of the cluster, or look at the scripts with --dry-run"
    return EvalkitError(f"there is no {program} here", fix=fix, code=Exit.MISSING)


def ask(command: list[str]) -> str:
    """Return what a program of Slurm prints; EvalkitError (3) where it isn't here or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise absent(command[0]) from None
    except subprocess.TimeoutExpired:
        what = f"{command[0]} does not answer"
        raise EvalkitError(what, fix="try again later", code=Exit.MISSING) from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EvalkitError(
            f"{command[0]} refused: {reason}", fix="change the options or the site file",
            code=Exit.MISSING,
        )  # fmt: skip
    return done.stdout
