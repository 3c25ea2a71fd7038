"""Slurm, as far as it is asked anything: jobs are sent, and looked for in the queue.

Nothing else of evalkit calls it. Its answers are words for people; what is done and what is not is
seen in the journals, never in the queue.
"""

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


def send(script: Path, *options: str, arguments: tuple[str, ...] = ()) -> str:
    """Give Slurm a batch script; the job's number. EvalkitError (3) with what it says."""
    command = ["sbatch", "--parsable", *options, str(script), *arguments]
    return _ask(command).strip().partition(";")[0]


def tasks(jobs: Iterable[str]) -> dict[int, Queued]:
    """The tasks of job arrays that wait or run, by number; none where Slurm has forgotten them, or
    is not there at all."""
    found: dict[int, Queued] = {}
    for job in jobs:
        try:
            said = _ask(["squeue", "-h", "-j", job, "-o", "%K|%T|%R|%M"])
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
        return bool(_ask(["squeue", "-h", "-j", job]).strip())
    except EvalkitError:
        return False


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        what = f"there is no {command[0]} here"
        fix = "submit from a machine of the cluster, or look at the scripts with --dry-run"
        raise EvalkitError(what, fix=fix, code=Exit.MISSING) from None
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
