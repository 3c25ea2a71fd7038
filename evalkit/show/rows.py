"""A record's scores as flat rows, with all that a reader of a number needs: every export is made
from these.
"""

from dataclasses import dataclass
from typing import Any

from evalkit.record.reading.scores import score_table
from evalkit.record.reading.scores.score_table import Score

COLUMNS = (
    *("model", "suite", "task", "depth", "leaf", "metric", "filter", "value", "stderr"),
    *("stderr_method", "higher_is_better", "share", "low", "high", "headline", "shots"),
    *("documents", "partial", "dataset", "dataset_revision", "run", "answers", "execution", "mark"),
)
Cell = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """A score of a record. `mark`: BROKEN or DISPUTED, where the record is."""

    score: Score
    record: dict[str, Any]
    mark: str

    def to_json(self) -> dict[str, Cell]:
        """Return the row's cells by COLUMNS."""
        score, record = self.score, self.record
        task = None if score.is_group else record["tasks"].get(score.task)
        dataset = task["dataset"] if task else {"repo": "", "revision": ""}
        revision = dataset["revision"]
        cells = (
            *(score_table.model_name(record), record["suite"]["name"], score.task, score.depth),
            *(not score.is_group, score.metric_name, score.filter, score.value, score.stderr),
            *(score.stderr_method, score.higher_is_better, score.share, score.low, score.high),
            *(score.headline, score.shots, score.count, record["suite"]["partial"]),
            *(dataset["repo"], "unknown" if isinstance(revision, dict) else revision),
            *(record["ids"]["run"], record["ids"]["answers"], record["execution"], self.mark),
        )
        return dict(zip(COLUMNS, cells, strict=True))


def rows(record: dict[str, Any], mark: str = "") -> list[Row]:
    """Return every score of a record: each group with its subgroups and leaf tasks below it."""
    scores: dict[tuple[str, str], Score] = {}
    for score in score_table.scores(record, leaves=True):
        scores.setdefault((score.task, score.metric), score)
    return [Row(score, record, mark) for score in scores.values()]


def headline(record: dict[str, Any], mark: str = "") -> list[Row]:
    """Return the scores of the suite's members alone, with all their metrics."""
    return [row for row in rows(record, mark) if row.score.depth == 0]
