"""Slurm, as far as it is asked anything: jobs are sent, looked for in the queue and cancelled, and
what the cluster has and allows.

Nothing else of evalkit calls it. Its answers are words for people; what is done and what is not is
seen in the journals, never in the queue.
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
    """A task that Slurm knows of: its state, where it runs or why it waits, and for how long it has
    run, as Slurm writes it."""

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
    """Whether this is a machine of a cluster."""
    return shutil.which("sbatch") is not None


def version() -> str:
    """Slurm's version."""
    return ask(["sbatch", "--version"]).split()[-1]


def send(script: Path, *options: str, arguments: tuple[str, ...] = ()) -> str:
    """Give Slurm a batch script; the job's number. EvalkitError (3) with what it says."""
    command = ["sbatch", "--parsable", *options, str(script), *arguments]
    return ask(command).strip().partition(";")[0]


def would_take(options: Iterable[str]) -> None:
    """EvalkitError with what Slurm says where it would not take a job with these options."""
    try:
        ask(["sbatch", "--test-only", "--output=/dev/null", *options, "--wrap", "true"])
    except EvalkitError as error:
        if "busy" not in error.what:  # nodes that are down or full now may not be so later
            raise


def cancel(jobs: Iterable[str]) -> None:
    """Take jobs off the queue and stop what of them runs."""
    for job in jobs:
        ask(["scancel", "--quiet", job])


def partitions() -> list[Partition]:
    """The cluster's partitions, in its order."""
    found: dict[str, Partition] = {}
    for line in ask(["sinfo", "-h", "-o", "%P|%a|%l|%G|%D"]).splitlines():
        name, state, limit, gres, nodes = [*line.split("|"), "", "", "", ""][:5]
        gpus = re.search(r"gpu(?::[^:,()]+)?(?::\d+)?", gres)
        plain, before = name.rstrip("*"), found.get(name.rstrip("*"))
        found[plain] = Partition(
            plain, name.endswith("*"), state == "up" or bool(before and before.is_up), limit,
            (gpus[0] if gpus else "") or (before.gpus if before else ""),
            int(nodes or 0) + (before.nodes if before else 0),
        )  # fmt: skip
    return list(found.values())


def room(account: str = "", qos: str = "") -> tuple[int | None, str]:
    """How many tasks may be sent at once, and why no more; None where Slurm sets no limit, or keeps
    no accounts to ask."""
    found: list[tuple[int, str]] = []
    said = re.search(r"MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]))
    if said:
        most = int(said[1]) - 1
        found.append((most, f"an array may have {most:,} tasks here (MaxArraySize)"))
    submitted = _submitted(account, qos)
    if submitted is not None:
        there = len(ask(["squeue", "-h", "-r", "-u", getpass.getuser()]).splitlines())
        left = max(submitted - there - 1, 0)  # one is the finishing job
        words = f"you may have {submitted:,} jobs in the queue (MaxSubmitJobs)"
        found.append((left, f"{words}, of which {there:,} are there" if there else words))
    return min(found, default=(None, ""), key=lambda each: each[0] or 0)


def _submitted(account: str, qos: str) -> int | None:
    """The jobs that this user may have in the queue, by the accounts that Slurm keeps."""
    user = f"user={getpass.getuser()}"
    asked = [["assoc", user, *([f"account={account}"] if account else []), "format=MaxSubmitJobs"]]
    asked += [["qos", f"name={qos}", "format=MaxSubmitJobsPerUser"]] if qos else []
    limits: list[int] = []
    for words in asked:
        try:
            lines = ask(["sacctmgr", "-n", "-P", "show", *words]).split()
        except EvalkitError:
            continue
        limits += [int(line) for line in lines if line.isdecimal()]
    return min(limits, default=None)


def tasks(jobs: Iterable[str]) -> dict[int, Queued]:
    """The tasks of job arrays that wait or run, by number; none where Slurm has forgotten them, or
    is not there at all."""
    found: dict[int, Queued] = {}
    for job in jobs:
        try:
            said = ask(["squeue", "-h", "-j", job, "-o", "%K|%T|%R|%M"])
        except EvalkitError:
            continue
        for line in said.splitlines():
            numbers, state, where, time = [*line.split("|", 3), "", "", ""][:4]
            queued = Queued(state.lower(), where.strip("()"), time)
            found |= dict.fromkeys(from_ranges(numbers.strip("[]")), queued)
    return found


def waits(job: str) -> bool:
    """Whether a job waits or runs."""
    try:
        return bool(ask(["squeue", "-h", "-j", job]).strip())
    except EvalkitError:
        return False


def absent(program: str) -> EvalkitError:
    """What to say where a program of Slurm's is not there."""
    fix = "submit from a machine of the cluster, or look at the scripts with --dry-run"
    return EvalkitError(f"there is no {program} here", fix=fix, code=Exit.MISSING)


def ask(command: list[str]) -> str:
    """What one of Slurm's programs prints; EvalkitError (3) where it is not there or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise absent(command[0]) from None
    except subprocess.TimeoutExpired:
        what = f"{command[0]} does not answer"
        raise EvalkitError(what, fix="try again later", code=Exit.MISSING) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EvalkitError(
            f"{command[0]} refused: {said}", fix="change the options or the site file",
            code=Exit.MISSING,
        )  # fmt: skip
    return done.stdout
