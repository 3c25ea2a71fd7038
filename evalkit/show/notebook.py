"""A record in a notebook: its scores and its samples as pandas frames.

Reads as a stranger's record is read, and judges nothing: `evalkit verify` does. pandas is imported
when a frame is asked for, so that nobody else pays for it.
"""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading import read
from evalkit.show.rows import rows

if TYPE_CHECKING:
    import pandas


class Loaded:
    """A finished run: `record` is record.json's content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = read.record(path)

    def __repr__(self) -> str:
        model, suite = self.record["model"]["reference"], self.record["suite"]["name"]
        return f"<{model} on {suite}, {len(self.record['tasks'])} leaf tasks, {self.path}>"

    def scores(self) -> "pandas.DataFrame":
        """A row for each task or group, metric and filter: value, standard error, documents, and
        where it comes from."""
        return _pandas().DataFrame([row.to_json() for row in rows(self.record)])

    def samples(self, task: str | None = None, limit: int | None = None) -> "pandas.DataFrame":
        """A row for each document and filter, as lm-eval has them, of all leaf tasks or of one, at
        most `limit`. EvalkitError (2) where there is no such leaf task."""
        tasks = self.record["tasks"]
        if task is not None and task not in tasks:
            raise EvalkitError(f"no leaf task '{task}'", fix="one of " + ", ".join(sorted(tasks)))
        found = (s for s in read.samples(self.path) if task is None or s["task"] == task)
        return _pandas().DataFrame(list(islice(found, limit)))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise EvalkitError(
            "pandas is not installed", fix="run `pip install pandas`", code=Exit.MISSING
        ) from None
    return pandas
