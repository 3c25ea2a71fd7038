"""What the tests of verify share: a written run's report, and careful changes to its files.

Two kinds of change. A careless one alters a file and leaves its digest. A careful one also puts
every digest right that it can: then what the parts say of each other must give it away.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import runs
from runs import Run

from evalkit.judge.verify import Report, Status, verify

JOURNAL = f"journal/{runs.SEGMENT}.jsonl"


def failed(report: Report) -> set[str]:
    """The names of the failing checks."""
    return {check.name for check in report.checks if check.status is Status.FAIL}


def line(report: Report, name: str, status: Status) -> str:
    """The detail of the first check of that name and status."""
    return next(c.detail for c in report.checks if c.name == name and c.status is status)


def judged(run: Run, path: Path) -> Report:
    """Write a run and verify it."""
    return verify(run.write(path / "run"))


def resealed(path: Path, name: str, data: bytes) -> Path:
    """Replace a file of a written run and put its entry in record.json right."""
    (path / name).write_bytes(data)
    record = runs.read_record(path)
    record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
    runs.write_record(path, record)
    return path


def scalars(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every scalar in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from scalars(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from scalars(item, (*path, index))
    else:
        yield path


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if value is None:
        return "something"
    for old, new in (("0", "1"), ("1", "0"), ("a", "b"), ("e", "a"), ("i", "a")):
        if old in value:
            return value.replace(old, new, 1)
    return f"{value}x"


def set_score(run: Run, metric: str, value: float) -> None:
    """Give one sample a score, and put every aggregate right that follows from it."""
    sample = next(s for s in run.samples if s.get(metric, value) != value)
    sample[metric] = value
    run.aggregate()


def nan_in(part: str) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """An `answer` for Run that makes one answer NaN."""
    return lambda name, answer: answer | {"loglikelihood": "nan"} if name == part else answer


def made_by(run: Run, engine: dict[str, Any], numerics: dict[str, Any] | None = None) -> Run:
    """The run as if another engine had answered it, with the ids that follow."""
    run.record["engine"] |= engine
    run.record["numerics"] |= numerics or {}
    run.record["ids"]["run"] = runs.run_id(run.record)
    run.lines = [run.line(batch) for batch in run.plan["batches"]]
    return run
