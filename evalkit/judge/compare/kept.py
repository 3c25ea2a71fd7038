"""How much of a teacher a student kept: (student - chance) / (teacher - chance), with an interval
by paired bootstrap.

Whole clusters are drawn: a group's leaf tasks, or the documents where it has few leaf tasks;
teacher and student are scored on the same draw. A seed fixes the draws and stands in the result.
No share is given where the teacher is not clearly above chance: then it has nothing to keep.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.base import statistics
from evalkit.judge.compare.pairs import MIN_CLUSTERS, Row
from evalkit.record.reading.scored import Scored

DRAWS = 10_000
_AT_ONCE = 1 << 22  # random numbers in memory


@dataclass(frozen=True, slots=True)
class Kept:
    """A share of the teacher's score above chance, with its 95% interval; None where the teacher
    is within two standard errors of chance."""

    task: str
    metric: str
    share: float | None
    low: float | None
    high: float | None
    chance: float
    clusters: int
    seed: int


def kept(teacher: Scored, student: Scored, row: Row, seed: int) -> Kept:
    """The share that a row's task and metric kept."""
    plain = (row.task, row.metric) in teacher.plain
    sums: list[
        tuple[float, ...]
    ] = []  # of each cluster: weight, teacher's and student's weighted sums, chance's
    for leaf in row.leaves:
        old, new = teacher.leaves[leaf], student.leaves[leaf]
        pairs = zip(old.metrics[row.metric].values, new.metrics[row.metric].values, strict=True)
        weight = 1 / len(old.doc_ids) if plain else 1.0
        chance = weight * old.chance
        part = [(weight, weight * a, weight * b, chance) for (a, _), (b, _) in pairs]
        few = len(row.leaves) < MIN_CLUSTERS
        sums += part if few else [tuple(map(sum, zip(*part, strict=True)))]
    table = np.array(sums, dtype=np.float64)
    above = _above(table)
    error = statistics.clustered([[(a / w - c / w, w)] for w, a, _, c in sums]).error
    empty = Kept(row.task, row.metric, None, None, None, row.chance, len(table), seed)
    if error is None or above[0] <= 2 * error:
        return empty
    drawn = shares(table, seed)
    low, high = np.quantile(drawn, [statistics.ALPHA / 2, 1 - statistics.ALPHA / 2])
    share = float(above[1] / above[0])
    return Kept(row.task, row.metric, share, float(low), float(high), row.chance, len(table), seed)


def _above(sums: Any) -> Any:
    """Teacher's and student's mean scores above chance, of rows (weight, teacher, student, chance)
    summed over the last axis but one."""
    total = sums.sum(axis=-2)
    return (total[..., 1:3] - total[..., 3:4]) / total[..., 0:1]


def shares(table: Any, seed: int) -> Any:
    """The shares kept of DRAWS draws of as many clusters, with replacement. A draw in which the
    teacher is not above chance has no share, and counts as keeping without bound."""
    source, count = np.random.default_rng(seed), len(table)
    found = []
    for start in range(0, DRAWS, step := max(1, _AT_ONCE // count)):
        draws = source.integers(0, count, size=(min(step, DRAWS - start), count))
        above = _above(table[draws])
        positive = above[:, 0] > 0
        found.append(np.where(positive, above[:, 1] / np.where(positive, above[:, 0], 1), np.inf))
    return np.concatenate(found)
