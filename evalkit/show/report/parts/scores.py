"""A record's scores as the report shows them: `score_table`'s, with what guessing would score by
the samples, and each member of the suite with its leaf tasks.
"""

from dataclasses import dataclass, replace
from typing import Any

from evalkit.base import statistics
from evalkit.record.reading.scores import score_table
from evalkit.record.reading.scores.score_table import Score
from evalkit.show.report.parts.leaves import Leaf


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
    return [_with_chance(record, score, leaves) for score in score_table.scores(record)]


def families(record: dict[str, Any], leaves: dict[str, Leaf]) -> list[Family]:
    """The suite's members, in order, with their leaf tasks from best to worst."""
    found = []
    for depth, name in score_table.rows(record):
        members = [leaf for leaf in score_table.below(record, name) if leaf in leaves]
        if depth or not members:
            continue
        scores = [
            _with_chance(record, score, leaves)
            for leaf in members
            for score in score_table.of(record, leaf)
            if score.headline
        ]
        ordered = sorted(scores, key=_worst_last)
        found.append(Family(name, [leaves[leaf] for leaf in members], ordered))
    return found


def _worst_last(score: Score) -> float:
    return score.value if score.higher_is_better is False else -score.value


def _with_chance(record: dict[str, Any], score: Score, leaves: dict[str, Leaf]) -> Score:
    if not score.share:
        return score
    return replace(score, chance=_chance(score_table.below(record, score.task), leaves))


def _chance(members: list[str], leaves: dict[str, Leaf]) -> float | None:
    """What guessing would score on some leaf tasks together."""
    found = [leaves[name] for name in members if name in leaves and leaves[name].ids]
    if not found:
        return None
    sizes = [len(leaf.ids) for leaf in found]
    return statistics.weighted_mean([leaf.chance for leaf in found], sizes)


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
