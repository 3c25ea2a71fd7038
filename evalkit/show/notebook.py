"""A record in a notebook: its scores and its samples as pandas frames.

It takes a run or lm-eval's own results, and refuses a record that contradicts itself. pandas is
imported when the first frame is made, so that nothing else waits for it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.base.errors import EvalkitError, not_installed, printable
from evalkit.show.source import rows, source

if TYPE_CHECKING:
    import pandas


class Loaded:
    """A finished run: `record` is record.json's content, or lm-eval's results in its form; `mark`
    is BROKEN where it contradicts itself and `unverified` let it through."""

    def __init__(self, path: Path, *, unverified: bool = False) -> None:
        self.path = path
        self._source = source(path, unverified=unverified)
        self.record = self._source.record
        self.mark = self._source.mark

    def __repr__(self) -> str:
        model, suite = self.record["model"]["reference"], self.record["suite"]["name"]
        mark = f"{self.mark}: " if self.mark else ""
        count = len(self.record["tasks"])
        return printable(f"<{mark}{model} on {suite}, {count} leaf tasks, {self.path}>")

    def scores(self) -> "pandas.DataFrame":
        """Return a row for each task or group, metric and filter, with the record's ids."""
        return _pandas().DataFrame([row.to_json() for row in rows(self.record, self.mark)])

    def samples(self, task: str | None = None, limit: int | None = None) -> "pandas.DataFrame":
        """Return a row for each document and filter, of all leaf tasks or of one, at most `limit`.
        EvalkitError (2) where there is no such leaf task."""
        tasks = self.record["tasks"]
        if task is not None and task not in tasks:
            raise EvalkitError(f"no leaf task '{task}'", fix="one of " + ", ".join(sorted(tasks)))
        return _pandas().DataFrame(list(self._source.samples(task, limit)))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise not_installed("pandas") from None
    return pandas
