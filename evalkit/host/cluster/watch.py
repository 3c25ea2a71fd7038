"""Shows how far a submission is: its runs, their shards, and what Slurm says of them.

It reads journals and logs; Slurm adds what is still in its queue. Without Slurm (on a compute node,
on another machine) only that is missing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.host.cluster import slurm, submission
from evalkit.host.cluster.submission import Member, Progress, Submission
from evalkit.record.reading.folder import foreign
from evalkit.run import folder, pace
from evalkit.show import progress

POLL_S = 15.0
TAIL = 2000  # bytes of a log that are read for its last lines
LINES = 10  # of each log that are shown
# What somebody else's odd run may raise; the rest is a bug of ours.
ODD = (AttributeError, LookupError, OSError, OverflowError, RecursionError, TypeError, ValueError)


@dataclass(slots=True)
class Told:
    """What is said of some folders, and the same for programs by folder."""

    text: str
    fields: dict[str, object]


def report(where: Path) -> str:
    """Return the progress of a run or a submission as text."""
    if (where / submission.NAME).is_file():
        return "\n".join(_submission(submission.read(where)))
    sent = submission.of_run(where)
    lines = [str(progress.status(where))]
    if sent is not None and not folder.read(where).finished:
        member = next(member for member in sent.members if member.run == where.absolute())
        lines += _shards(sent, member, _queue(sent))
    return "\n".join(lines)


def fields(where: Path) -> dict[str, object]:
    """Return the same for programs: a run's progress, or that of each run of a submission."""
    if not (where / submission.NAME).is_file():
        return progress.status(where).to_json()
    members = submission.read(where).members
    return {"runs": {str(m.run): progress.status(m.run).to_json() for m in members}}


def several(folders: Sequence[Path], *, with_logs: bool) -> Told:
    """Return the progress of each of several folders, or why there is none to tell: beside
    submissions lies a cache, say, or a colleague's that is nobody else's to read. EvalkitError (3)
    where none of them is a run or a submission."""
    told = Told("", {})
    for where in folders:
        try:
            with foreign(where, ODD):
                text, told.fields[str(where)] = report(where), fields(where)
                text += logs(where) if with_logs and _of(where) else ""
        except EvalkitError as error:
            text = error.what
        told.text += f"{where}\n{text}\n\n"
    if not told.fields:
        raise EvalkitError("there is no run here", where=str(folders[0]), code=Exit.MISSING)
    return told


def follow(where: Path, show: Callable[[str], None], wait: Callable[[float], None]) -> None:
    """Show a report again and again, until none of its jobs is in the queue."""
    while True:
        show(report(where))
        sent = _of(where)
        if sent is None or not (_queue(sent) or any(slurm.waits(last) for _, last in sent.jobs)):
            return
        wait(POLL_S)


def logs(where: Path) -> str:
    """Return the last lines of each log of a submission, or of the one that a run is part of."""
    logs = _submitted(where).folder / "logs"
    paths = sorted(logs.glob("*.log"), key=lambda path: (len(path.stem), path))
    return "".join(f"\n\n== {path}\n" + "\n".join(_last_lines(path, LINES)) for path in paths)


def cancel(where: Path) -> list[str]:
    """Cancel every job of a submission that waits or runs; return their numbers."""
    sent = _submitted(where)
    jobs = [job for pair in sent.jobs for job in pair if job and slurm.waits(job)]
    slurm.cancel(jobs)
    return jobs


def _of(where: Path) -> Submission | None:
    here = (where / submission.NAME).is_file()
    return submission.read(where) if here else submission.of_run(where)


def _submitted(where: Path) -> Submission:
    """Do as `_of`; EvalkitError where there is no submission."""
    sent = _of(where)
    if sent is None:
        what = "this was never submitted"
        raise EvalkitError(what, where=str(where), fix="give a run or results/submissions/...")
    return sent


def _queue(sent: Submission) -> dict[int, slurm.Queued]:
    return slurm.tasks(array for array, _ in sent.jobs if array)


def _submission(sent: Submission) -> Iterator[str]:
    queue = _queue(sent)
    for member in sent.members:
        run = folder.read(member.run)
        name = f"{run.body['model']['reference']} on {run.body['suite']['name']}"
        yield f"{name}: {progress.status(member.run)}"
        if not run.finished:
            yield from _shards(sent, member, queue)


def _shards(sent: Submission, member: Member, queue: dict[int, slurm.Queued]) -> Iterator[str]:
    """Yield a line for each shard, and how long the rest takes."""
    shards = submission.progress(member.run, sent.shards)
    yield f"{'shard':<9}{'batches':>11}  {'slurm':<11}"
    for task in sent.tasks(member):
        yield _shard(sent, task, shards, queue.get(task)).rstrip()
    running = sum(queue[task].state == "running" for task in sent.tasks(member) if task in queue)
    speeds = pace.speeds(member.run)
    if running and speeds:
        seconds = sum(shards.left) / (running * sum(speeds) / len(speeds))
        yield f"about {_time(seconds)} left with {running} running"


def _shard(sent: Submission, task: int, progress: Progress, queued: slurm.Queued | None) -> str:
    _, shard = sent.shard(task)
    index = shard.index - 1
    done, batches = progress.done[index], progress.batches[index]
    head = f"{shard!s:<9}{f'{done}/{batches}':>11}  "
    if done == batches:
        return f"{head}done"
    if queued is not None:
        return f"{head}{queued.state:<11}{queued.where} {queued.time}"
    reason = sent.cause(task) or "".join(_last_lines(sent.log(task), 1))
    return f"{head}{'not queued':<11}{reason or 'it has said nothing'}"


def _last_lines(log: Path, count: int) -> list[str]:
    try:
        with canon.reader(log) as handle:
            handle.seek(max(log.stat().st_size - TAIL, 0))
            lines = handle.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
