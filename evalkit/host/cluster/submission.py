"""A submission: which task of a job array is which shard of which run, and the jobs that were sent.

Its folder, `<out>/submissions/<suite>-<12 hex>`, is named after the runs, so that the same command
finds it again. It holds the scripts, logs, `submission.json`, and a line in `jobs.jsonl` whenever
jobs were sent. No record depends on it.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.plan import shards
from evalkit.plan.shards import Shard
from evalkit.record import journal
from evalkit.run import folder

NAME, JOBS = "submission.json", "jobs.jsonl"
FOLDER = "submissions"
MAX_SHARDS = 100_000  # of a run; an array of Slurm's has fewer tasks
MAX_JOBS = 64 << 20  # bytes of its jobs' numbers
MAX_CAUSE = 64 << 10  # bytes of what a task noted of its failure


@dataclass(frozen=True, slots=True)
class Member:
    """A planned run, and its model's folder unless the model is on the Hub."""

    run: Path
    model: str | None


@dataclass(frozen=True, slots=True)
class Submission:
    """Runs of one suite, each in `shards` shards, and the jobs that were sent for them: the numbers
    of the array and of the finishing job, oldest first."""

    folder: Path
    members: tuple[Member, ...]
    shards: int
    jobs: tuple[tuple[str, str], ...] = ()

    def shard(self, task: int) -> tuple[Member, Shard]:
        """Return the run and the shard of an array's task."""
        member, index = divmod(task, self.shards)
        return self.members[member], Shard(index + 1, self.shards)

    def tasks(self, member: Member) -> range:
        """Return the array's tasks for a run."""
        first = self.members.index(member) * self.shards
        return range(first, first + self.shards)

    def log(self, task: int) -> Path:
        """Return the path of a task's log."""
        return self.folder / "logs" / f"{task}.log"

    def cause(self, task: int) -> str:
        """Return why a task failed and on which node, as it noted; empty where it did not fail."""
        for kind in ("failures", "before"):
            path = self.folder / kind / str(task)
            with suppress(OSError):
                said = canon.read_bytes(path, MAX_CAUSE).decode(errors="replace")
                node, cause, *_ = [*said.splitlines(), "", ""]
                return f"{cause} (on {node})"
        return ""

    def write(self) -> None:
        """Write submission.json."""
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
        """Add the numbers of an array and its finishing job to the jobs that were sent."""
        lines = canon.Appender(self.folder / JOBS)
        lines.append([array, last])
        lines.close()


def place(out: Path, suite: str, runs: Iterable[Path]) -> Path:
    """Return the folder of the submission of these runs."""
    key = canon.digest([path.name for path in runs])[7:19]
    return out.absolute() / FOLDER / f"{suite}-{key}"


def read(where: Path) -> Submission:
    """Read the submission in a folder; EvalkitError where it is none."""
    body = canon.read_json(where / NAME)
    try:
        members = tuple(_member(entry, where) for entry in body["members"])
        sent = where / JOBS
        lines = canon.read_bytes(sent, MAX_JOBS).splitlines() if sent.exists() else []
        jobs = tuple((_number(array), _number(last)) for array, last in map(canon.loads, lines))
        if not 1 <= (count := int(body["shards"])) <= MAX_SHARDS:
            raise ValueError("no number of shards")
        return Submission(where, members, count, jobs)
    except (LookupError, TypeError, ValueError, OverflowError, OSError):
        raise EvalkitError(f"{NAME} is not of this evalkit", where=str(where)) from None


def _member(entry: Mapping[str, str], where: Path) -> Member:
    """Return a member; its run must lie in the same results folder as the submission."""
    run, results = Path(entry["run"]), where.absolute().parent.parent
    if ".." in run.parts or not run.is_relative_to(results):
        raise ValueError("a run that lies elsewhere")
    return Member(run, entry["model"])


def _number(job: object) -> str:
    """Return a checked job number; empty where no job was sent."""
    if not re.fullmatch(r"[0-9_]*", str(job), re.ASCII):
        raise ValueError("no job's number")
    return str(job)


def of_run(run: Path) -> Submission | None:
    """Return the newest submission that a run is part of, or None."""
    paths = (run.absolute().parent.parent / FOLDER).glob(f"*/{NAME}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        submission = read(path.parent)
        if any(member.run == run.absolute() for member in submission.members):
            return submission
    return None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, by shard: cost and cost `left` in tokens, batches and those `done`."""

    finished: bool
    costs: list[int]
    left: list[int]
    batches: list[int]
    done: list[int]


def progress(run: Path, count: int) -> Progress:
    """Return how far a run in `count` shards is; EvalkitError where there is none."""
    if not (run / "run.json").is_file():
        raise EvalkitError("there is no run here", where=str(run), code=Exit.MISSING)
    planned, plan = folder.read(run), folder.plan_of(run)
    answered = journal.done(run / "journal", planned.body["ids"]["run"], plan.entries).batches
    names, costs = list(plan.entries), shards.Costs(plan.body)
    dealt = shards.deal(plan.body, count)
    todo = [[index for index in shard if names[index] not in answered] for shard in dealt]
    return Progress(
        planned.finished,
        [costs.of(shard) for shard in dealt],
        [costs.of(shard) for shard in todo],
        [len(shard) for shard in dealt],
        [len(shard) - len(left) for shard, left in zip(dealt, todo, strict=True)],
    )


def missing(submission: Submission) -> list[int]:
    """Return the array's tasks that still have batches to answer."""
    missing: list[int] = []
    for member in submission.members:
        left = progress(member.run, submission.shards).left
        tasks = submission.tasks(member)
        missing += [task for task, cost in zip(tasks, left, strict=True) if cost]
    return missing


def ranges(tasks: Iterable[int]) -> str:
    """Return numbers in the form of sbatch's --array: 0-3,7."""
    spans: list[list[int]] = []
    for task in sorted(tasks):
        if spans and task == spans[-1][1] + 1:
            spans[-1][1] = task
        else:
            spans.append([task, task])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def from_ranges(text: str) -> set[int]:
    """Return the numbers that Slurm means by 0-3,7 or 0-3,7%2."""
    numbers: set[int] = set()
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
