"""A record's scores as flat rows: one a task or group, metric and filter, with all that a reader of
the number needs. Every format is made from these.
"""

from dataclasses import asdict, dataclass
from typing import Any

from evalkit.record.reading.scores import score_table
from evalkit.record.reading.scores.score_table import Score


@dataclass(frozen=True, slots=True)
class Row:
    """One score. `depth`: how far below the suite's members it stands; `leaf`: not a group; `low`,
    `high`: the interval of 95%; `share`: between 0 and 1, the higher the better; `headline`: the
    metric that stands for its task."""

    model: str
    suite: str
    task: str
    depth: int
    leaf: bool
    metric: str
    filter: str
    value: float
    stderr: float | None
    stderr_method: str | None
    higher_is_better: bool | None
    share: bool
    low: float | None
    high: float | None
    headline: bool
    shots: str
    documents: int
    partial: bool
    dataset: str
    dataset_revision: str
    run: str
    answers: str
    execution: str
    mark: str

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The metric as lm-eval's table names it: the filter only where it is one."""
        return self.metric if self.filter == "none" else f"{self.metric},{self.filter}"


def rows(record: dict[str, Any], mark: str = "") -> list[Row]:
    """Every score of a record: each group with its subgroups and leaf tasks below it; `mark`:
    BROKEN, where the record is."""
    found: dict[tuple[str, str], Row] = {}
    for score in score_table.scores(record, leaves=True):
        found.setdefault((score.task, score.metric), _row(record, score, mark))
    return list(found.values())


def headline(record: dict[str, Any], mark: str = "") -> list[Row]:
    """The scores of the suite's members alone, with all their metrics."""
    return [row for row in rows(record, mark) if row.depth == 0]


def _row(record: dict[str, Any], score: Score, mark: str) -> Row:
    task = record["tasks"].get(score.task) if not score.is_group else None
    dataset = task["dataset"] if task else {"repo": "", "revision": ""}
    revision = dataset["revision"]
    metric, _, filtered = score.metric.partition(",")
    return Row(
        model=score_table.model_name(record), suite=record["suite"]["name"], task=score.task,
        depth=score.depth, leaf=not score.is_group, metric=metric, filter=filtered,
        value=score.value, stderr=score.stderr, stderr_method=score.stderr_method,
        higher_is_better=score.higher_is_better, share=score.share, low=score.low,
        high=score.high, headline=score.headline, shots=score.shots, documents=score.count,
        partial=record["suite"]["partial"], dataset=dataset["repo"],
        dataset_revision="unknown" if isinstance(revision, dict) else revision,
        run=record["ids"]["run"], answers=record["ids"]["answers"],
        execution=record["execution"], mark=mark,
    )  # fmt: skip
