"""A record's scores as rows to show: value, interval, chance, and where it stands among others.

Everything is what the record says; only the intervals and what guessing would score are computed.
An interval of 95% is Wilson's where a leaf task's score is a share of right answers, else the value
and 1.96 standard errors to both sides.
"""

from dataclasses import dataclass
from typing import Any

from evalkit import canon, statistics, summary
from evalkit.report.leaves import Leaf


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of a task or group. `share`: it lies between 0 and 1, and higher is better."""

    name: str
    depth: int
    alias: str
    shots: str
    metric: str
    value: float
    stderr: float | None
    low: float | None
    high: float | None
    chance: float | None
    share: bool
    count: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class Family:
    """A member of the suite with all its leaf tasks."""

    name: str
    leaves: list[Leaf]
    scores: list[Score]  # of the leaf tasks, best first

    @property
    def num_documents(self) -> int:
        """Documents of all its leaf tasks."""
        return sum(len(leaf.ids) for leaf in self.leaves)

    @property
    def prefix(self) -> int:
        """How many characters all its leaf tasks' names begin with, up to an underscore."""
        names = [leaf.name for leaf in self.leaves]
        first, last = min(names), max(names)  # what these two share, all share
        alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
        return first[:alike].rfind("_") + 1


def headline(record: dict[str, Any], leaves: dict[str, Leaf]) -> list[Score]:
    """The suite's members with all their metrics, a group's subgroups below it."""
    return [
        score
        for depth, name in summary.rows(record)
        for score in _scores(record, name, depth, leaves)
    ]


def families(record: dict[str, Any], leaves: dict[str, Leaf]) -> list[Family]:
    """The suite's members, in order, with their leaf tasks from best to worst."""
    found = []
    for depth, name in summary.rows(record):
        members = [leaf for leaf in summary.below(record, name) if leaf in leaves]
        if depth or not members:
            continue
        scores = [next(iter(_scores(record, leaf, 0, leaves)), None) for leaf in members]
        ordered = sorted(filter(None, scores), key=lambda score: -score.value)
        found.append(Family(name, [leaves[leaf] for leaf in members], ordered))
    return found


def _scores(record: dict[str, Any], name: str, depth: int, leaves: dict[str, Leaf]) -> list[Score]:
    result = record["groups"].get(name) or record["tasks"][name]
    members = summary.below(record, name)
    found = []
    for index, (metric, entry) in enumerate(sorted(result["metrics"].items())):
        value = canon.number(entry["value"])
        stderr = None if entry["stderr"] is None else canon.number(entry["stderr"])
        share = 0 <= value <= 1 and entry["higher_is_better"] is True
        low, high = _interval(value, stderr, result["n"], leaves.get(name), metric)
        found.append(
            Score(
                name, depth, result["alias"], summary.shots(record, name),
                metric.removesuffix(",none"), value, stderr, low, high,
                _chance(members, leaves) if share else None, share, result["n"], not index,
            )
        )  # fmt: skip
    return found


def _interval(
    value: float, stderr: float | None, count: int, leaf: Leaf | None, metric: str
) -> tuple[float | None, float | None]:
    if leaf is not None and leaf.binary and leaf.metric == metric and count and 0 <= value <= 1:
        return statistics.wilson(value, count)
    if not stderr or stderr != stderr:  # none, or 0: that says nothing of how far off it may be
        return None, None
    return value - statistics.Z95 * stderr, value + statistics.Z95 * stderr


def _chance(members: list[str], leaves: dict[str, Leaf]) -> float | None:
    """What guessing would score on some leaf tasks together."""
    found = [leaves[name] for name in members if name in leaves]
    chances = [leaf.chance for leaf in found]
    if not found or any(chance is None for chance in chances):
        return None
    sizes = [len(leaf.ids) for leaf in found]
    return statistics.weighted_mean([chance or 0.0 for chance in chances], sizes)


def chosen(family: Family) -> tuple[list[float], list[float], list[float]]:
    """Of a family's documents with choices: confidences, margins, and whether each was right."""
    sure, margins, rights = [], [], []
    for leaf in family.leaves:
        pairs = zip(leaf.margins, leaf.scores, strict=True)
        asked = [(margin, score) for margin, score in pairs if margin is not None]
        for confidence, (margin, score) in zip(leaf.confidences, asked, strict=True):
            if score is not None:
                sure.append(confidence)
                margins.append(margin)
                rights.append(score)
    return sure, margins, rights
