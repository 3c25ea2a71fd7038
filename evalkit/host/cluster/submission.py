"""What was sent to Slurm for some runs: which task of a job array is which shard of which run.

A folder beside the runs, `<out>/submissions/<suite>-<12 hex>`, named after the runs, so that the
same command finds it again: the two scripts, the logs of every task, `submission.json`, and a line
in `jobs.jsonl` whenever jobs were sent. It is the cluster's matter: no record depends on it, and it
may be deleted.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.plan import shards
from evalkit.plan.shards import Shard
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.run import folder

NAME, JOBS = "submission.json", "jobs.jsonl"
FOLDER = "submissions"


@dataclass(frozen=True, slots=True)
class Member:
    """A planned run, and its model's folder where it is none of the Hub's."""

    run: Path
    model: str | None


@dataclass(frozen=True, slots=True)
class Submission:
    """Some runs of one suite, each in as many shards, and the jobs that were sent for them: the
    array's and the finishing one's numbers, oldest first."""

    folder: Path
    members: tuple[Member, ...]
    shards: int
    jobs: tuple[tuple[str, str], ...] = ()

    def shard(self, task: int) -> tuple[Member, Shard]:
        """What an array's task does."""
        member, index = divmod(task, self.shards)
        return self.members[member], Shard(index + 1, self.shards)

    def tasks(self, member: Member) -> range:
        """The array's tasks for a run."""
        first = self.members.index(member) * self.shards
        return range(first, first + self.shards)

    def log(self, task: int) -> Path:
        """Where a task writes what it says."""
        return self.folder / "logs" / f"{task}.log"

    def cause(self, task: int) -> str:
        """Why a task failed and on which node, as it noted itself; empty where it did not."""
        for kind in ("failures", "before"):
            path = self.folder / kind / str(task)
            if path.is_file():
                node, cause, *_ = [*path.read_text().splitlines(), "", ""]
                return f"{cause} (on {node})"
        return ""

    def write(self) -> None:
        """Put it on the disk."""
        canon.write_json(
            self.folder / NAME,
            {
                "members": [
                    {"run": str(member.run), "model": member.model} for member in self.members
                ],
                "shards": self.shards,
            },
        )

    def note(self, array: str, last: str) -> None:
        """Note that an array and its finishing job were sent, as the finishing job does itself."""
        lines = canon.Appender(self.folder / JOBS)
        lines.append([array, last])
        lines.close()


def place(out: Path, suite: str, runs: Iterable[Path]) -> Path:
    """Where the submission of these runs lies."""
    key = canon.digest([path.name for path in runs])[7:19]
    return out.absolute() / FOLDER / f"{suite}-{key}"


def read(where: Path) -> Submission:
    """The submission in a folder; EvalkitError where it is none."""
    body = canon.read_json(where / NAME)
    try:
        members = tuple(_member(each, where) for each in body["members"])
        lines = (where / JOBS).read_bytes().splitlines() if (where / JOBS).is_file() else []
        jobs = tuple((_number(array), _number(last)) for array, last in map(canon.loads, lines))
        return Submission(where, members, int(body["shards"]), jobs)
    except (LookupError, TypeError, ValueError):
        raise EvalkitError(f"{NAME} is not of this evalkit", where=str(where)) from None


def _member(entry: dict[str, Any], where: Path) -> Member:
    """A member whose run lies in the results folder that the submission does, and nowhere else."""
    run, results = Path(entry["run"]), where.absolute().parent.parent
    if ".." in run.parts or not run.is_relative_to(results):
        raise ValueError("a run that lies elsewhere")
    return Member(run, entry["model"])


def _number(job: object) -> str:
    """A job's number, as Slurm is asked for it; empty where none was sent."""
    if not re.fullmatch(r"[0-9_]*", str(job), re.ASCII):
        raise ValueError("no job's number")
    return str(job)


def of_run(run: Path) -> Submission | None:
    """The newest submission that a run is part of, or None."""
    found = (run.absolute().parent.parent / FOLDER).glob(f"*/{NAME}")
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        submission = read(path.parent)
        if any(member.run == run.absolute() for member in submission.members):
            return submission
    return None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `costs` and `left`: each shard's cost in all and what of it has no answer,
    in tokens; `batches` and `done` likewise, in batches."""

    finished: bool
    costs: list[int]
    left: list[int]
    batches: list[int]
    done: list[int]


def progress(run: Path, count: int) -> Progress:
    """How far a run in `count` shards is; EvalkitError where there is none."""
    if not (run / "run.json").is_file():
        raise EvalkitError("there is no run here", where=str(run), code=Exit.MISSING)
    found, plan = folder.read(run), Plan(run)
    answered = journal.done(run / "journal", _id(found), plan.entries).batches
    names, costs = list(plan.entries), shards.Costs(plan.body)
    dealt = shards.deal(plan.body, count)
    todo = [[index for index in mine if names[index] not in answered] for mine in dealt]
    return Progress(
        found.finished,
        [costs.of(mine) for mine in dealt],
        [costs.of(mine) for mine in todo],
        [len(mine) for mine in dealt],
        [len(mine) - len(left) for mine, left in zip(dealt, todo, strict=True)],
    )


def _id(run: folder.Run) -> str:
    return str(run.body["ids"]["run"])


def missing(submission: Submission) -> list[int]:
    """The array's tasks that still have batches to answer."""
    found: list[int] = []
    for member in submission.members:
        left = progress(member.run, submission.shards).left
        tasks = submission.tasks(member)
        found += [task for task, cost in zip(tasks, left, strict=True) if cost]
    return found


def ranges(tasks: Iterable[int]) -> str:
    """Numbers as sbatch's --array has them: 0-3,7."""
    found: list[list[int]] = []
    for task in sorted(tasks):
        if found and task == found[-1][1] + 1:
            found[-1][1] = task
        else:
            found.append([task, task])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def from_ranges(text: str) -> set[int]:
    """The numbers that Slurm means by 0-3,7 or 0-3,7%2."""
    found: set[int] = set()
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def described(body: dict[str, Any]) -> str:
    """A run's model and suite in words. `body`: run.json's."""
    return f"{body['model']['reference']} on {body['suite']['name']}"
