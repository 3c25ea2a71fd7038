"""How far what was submitted is: shards, and what Slurm says of them.

Seen from the journals and the logs; Slurm adds what is still in its queue, and where there is no
Slurm (a compute node, another machine) nothing else is missing.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.host.cluster import slurm, submission
from evalkit.host.cluster.submission import Member, Progress, Submission
from evalkit.run import folder, pace
from evalkit.show import progress

POLL_S = 15.0
TAIL = 2000  # bytes of a log that are looked at for its last lines
LINES = 10  # of each log that are shown


def report(where: Path) -> str:
    """What there is to say of a run or a submission."""
    if (where / submission.NAME).is_file():
        return "\n".join(_submission(submission.read(where)))
    found = submission.of_run(where)
    told = [str(progress.status(where))]
    if found is not None and not folder.read(where).finished:
        member = next(each for each in found.members if each.run == where.absolute())
        told += _shards(found, member, _queue(found))
    return "\n".join(told)


def fields(where: Path) -> dict[str, Any]:
    """The same for programs: a run's standing, or that of each of a submission's runs."""
    if not (where / submission.NAME).is_file():
        return progress.status(where).to_json()
    members = submission.read(where).members
    return {"runs": {str(m.run): progress.status(m.run).to_json() for m in members}}


def follow(where: Path, show: Callable[[str], None], wait: Callable[[float], None]) -> None:
    """Show a report again and again, until nothing of it is in the queue any more."""
    while True:
        show(report(where))
        found = submission.read(where) if (where / submission.NAME).is_file() else None
        found = found or submission.of_run(where)
        if found is None or not (_queue(found) or any(slurm.waits(last) for _, last in found.jobs)):
            return
        wait(POLL_S)


def logs(where: Path) -> str:
    """The last lines of each log of a submission, or of the one that a run is part of."""
    found = _found(where)
    paths = sorted((found.folder / "logs").glob("*.log"), key=lambda path: (len(path.stem), path))
    return "".join(f"\n\n== {path}\n" + "\n".join(_last_lines(path, LINES)) for path in paths)


def cancel(where: Path) -> list[str]:
    """Take every job of a submission that waits or runs off the queue; their numbers."""
    found = _found(where)
    jobs = [job for pair in found.jobs for job in pair if job and slurm.waits(job)]
    slurm.cancel(jobs)
    return jobs


def _found(where: Path) -> Submission:
    """The submission in a folder, or the one that a run is part of; EvalkitError without any."""
    here = (where / submission.NAME).is_file()
    found = submission.read(where) if here else submission.of_run(where)
    if found is None:
        what = "this was never submitted"
        raise EvalkitError(what, where=str(where), fix="give a run or results/submissions/...")
    return found


def _queue(found: Submission) -> dict[int, slurm.Queued]:
    """What Slurm has of every job that was sent."""
    return slurm.tasks(array for array, _ in found.jobs if array)


def _submission(found: Submission) -> Iterator[str]:
    queue = _queue(found)
    for member in found.members:
        name = submission.described(folder.read(member.run).body)
        yield f"{name}: {progress.status(member.run)}"
        if not folder.read(member.run).finished:
            yield from _shards(found, member, queue)


def _shards(found: Submission, member: Member, queue: dict[int, slurm.Queued]) -> Iterator[str]:
    """A line a shard, and how long the rest takes."""
    shards = submission.progress(member.run, found.shards)
    yield f"{'shard':<9}{'batches':>11}  {'slurm':<11}"
    for task in found.tasks(member):
        yield _shard(found, task, shards, queue.get(task)).rstrip()
    running = sum(queue[task].state == "running" for task in found.tasks(member) if task in queue)
    speeds = pace.speeds(member.run)
    if running and speeds:
        seconds = sum(shards.left) / (running * sum(speeds) / len(speeds))
        yield f"about {_time(seconds)} left with {running} running"


def _shard(
    found: Submission, task: int, progress: Progress, queued: slurm.Queued | None
) -> str:  # fmt: skip
    _, shard = found.shard(task)
    index = shard.index - 1
    done, batches = progress.done[index], progress.batches[index]
    head = f"{shard!s:<9}{f'{done}/{batches}':>11}  "
    if done == batches:
        return f"{head}done"
    if queued is not None:
        return f"{head}{queued.state:<11}{queued.where} {queued.time}"
    said = found.cause(task) or "".join(_last_lines(found.log(task), 1))
    return f"{head}{'not queued':<11}{said or 'it has said nothing'}"


def _last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that say something; none where there is none."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(log.stat().st_size - TAIL, 0))
            lines = handle.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
