"""Models by tasks: each run's headline score on each member of a suite, the best ones, and which
are within noise of them, as if the runs had answered different documents (`compare` pairs them)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.base import statistics
from evalkit.judge.verify import Report
from evalkit.record.reading import score_table
from evalkit.record.reading.score_table import Score
from evalkit.record.types import AnyRecord
from evalkit.show.report.parts import verdict


@dataclass(frozen=True, slots=True)
class Cell:
    """A score. `best`: of its task; `close`: within noise of the best."""

    score: Score
    best: bool
    close: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A run: its label and model, the address of its page, its verdict, its cells by task."""

    label: str
    model: str
    link: str
    name: str
    verdict: str
    tone: str
    created: str
    partial: bool
    cells: dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The runs of one suite. `shares`: the tasks that are shown in per cent."""

    suite: str
    tasks: list[str]
    shares: frozenset[str]
    lines: list[Line]


@dataclass(frozen=True, slots=True)
class Entry:
    """A run for a matrix. `link`: its page's address; `record`: None where it can't be read."""

    label: str
    link: str
    name: str
    record: AnyRecord | None
    report: Report

    @property
    def verdict(self) -> str:
        """The verdict in one word."""
        return verdict.word(self.report)

    @property
    def tone(self) -> str:
        """The verdict's colour."""
        return verdict.tone(self.report)


def build(suite: str, entries: Sequence[Entry]) -> Matrix:
    """Return the matrix of some runs, in their order."""
    headlines = [_headlines(entry) for entry in entries]
    tasks = list(dict.fromkeys(task for scores in headlines for task in scores))
    best = {task: _best([s[task] for s in headlines if task in s]) for task in tasks}
    shares = {task for task in tasks if all(s[task].share for s in headlines if task in s)}
    lines = [
        Line(
            entry.label,
            score_table.model_name(entry.record) if entry.record else entry.name,
            entry.link, entry.name, entry.verdict, entry.tone,
            str(entry.record["created"] or "") if entry.record else "",
            bool(entry.record and entry.record["suite"]["partial"]),
            {task: _cell(score, best[task]) for task, score in scores.items()},
        )
        for entry, scores in zip(entries, headlines, strict=True)
    ]  # fmt: skip
    return Matrix(suite, tasks, frozenset(shares), lines)


def _headlines(entry: Entry) -> dict[str, Score]:
    if entry.record is None or entry.tone == "broken":  # a broken record is never the best
        return {}
    scores = score_table.scores(entry.record)
    return {s.task: s for s in scores if s.depth == 0 and s.headline and math.isfinite(s.value)}


def _best(scores: Sequence[Score]) -> Score:
    lower = scores[0].higher_is_better is False
    return min(scores, key=lambda score: score.value if lower else -score.value)


def _cell(score: Score, best: Score) -> Cell:
    error = math.hypot(score.stderr or 0.0, best.stderr or 0.0)
    off = abs(score.value - best.value)
    is_best = score.value == best.value
    return Cell(score, is_best, not is_best and error > 0 and off < statistics.Z95 * error)
