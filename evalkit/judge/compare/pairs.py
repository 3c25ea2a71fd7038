"""Compares two evaluations document by document: differences of scores, their errors and p-values,
and how much of a teacher's score a student kept.

Only tasks whose questions are equal on both sides are paired; the others are named with the reason.
A leaf task of zeros and ones gets McNemar's exact test, others Student's t on paired differences,
clustered by leaf task in a group. A student's share, (student - chance) / (teacher - chance), has
an interval by paired bootstrap over whole clusters, with a recorded seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalkit.base import statistics
from evalkit.base.statistics import Difference
from evalkit.record.reading import score_table, scored
from evalkit.record.reading.scored import Leaf, Metric, Scored

MCNEMAR = "McNemar exact"
BY_LEAF = "paired t, clustered by leaf task"
BY_DOCUMENT = "paired t over documents"
# Fewer leaf tasks give no useful standard error of a group: two that moved alike have one of 0, and
# two that did not hide a difference of 40 points (docs/statistics.md).
MIN_CLUSTERS = 10
DRAWS = 10_000
_AT_ONCE = 1 << 22  # random numbers in memory

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of a task or group on both sides: `difference` is after - before, in points or in
    nats. `headline`: the metric stands for its task; `top`: a task or group of the suite itself;
    `lost` and `gained`: documents that went from 1 to 0 and from 0 to 1; `adjusted`: `p` by Holm,
    over the headline rows of all top-level tasks and all pairs."""

    task: str
    metric: str
    leaves: tuple[str, ...]
    top: bool
    headline: bool
    n: int
    clusters: int
    before: float
    after: float
    chance: float
    difference: Difference
    nats: bool
    higher_is_better: bool
    lost: int | None
    gained: int | None
    test: str
    p: float | None
    adjusted: float | None
    detectable: float | None

    @property
    def is_group(self) -> bool:
        """Whether it stands for more than one leaf task."""
        return self.leaves != (self.task,)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A task, or a metric of it, that was not compared, and why."""

    task: str
    reason: str


def rows(before: Scored, after: Scored) -> tuple[list[Row], list[LeftOut]]:
    """Pair what both sides scored on the same questions; return the rows, and what was left out."""
    paired: list[Row] = []
    left_out: list[LeftOut] = []
    usable: dict[str, list[str]] = {}
    for name in dict.fromkeys([*before.leaves, *after.leaves]):
        problem = _problem(before.leaves.get(name), after.leaves.get(name))
        if problem:
            left_out.append(LeftOut(name, problem))
            continue
        usable[name] = [m for m in before.leaves[name].metrics if m in after.leaves[name].metrics]
        lost = {**before.leaves[name].left_out, **after.leaves[name].left_out}
        left_out += [LeftOut(f"{name} {metric}", reason) for metric, reason in lost.items()]
    tops = [name for name in before.tops if name in after.tops]
    for name in dict.fromkeys([*_tree(before, tops), *usable]):
        members = before.members(name)
        if not members or (members == (name,) and name not in usable):
            continue
        if members != after.members(name) or not all(leaf in usable for leaf in members):
            left_out.append(LeftOut(name, "not all of its leaf tasks can be paired"))
            continue
        metrics = [m for m in usable[members[0]] if all(m in usable[leaf] for leaf in members)]
        main = score_table.headline(metrics)
        for metric in metrics:
            plain = (name, metric) in before.plain
            paired.append(_row(before, after, name, metric, name in tops, metric == main, plain))
    return paired, list(dict.fromkeys(left_out))


def _tree(run: Scored, tops: list[str]) -> Iterator[str]:
    """Yield each top, followed by the groups whose leaf tasks are all its own, then the rest."""
    for top in tops:
        yield top
        inside = set(run.members(top))
        yield from (g for g, leaves in run.groups.items() if leaves and inside.issuperset(leaves))
    yield from run.groups


def _problem(before: Leaf | None, after: Leaf | None) -> str:
    """Say why a leaf task can't be paired; empty if it can."""
    if before is None or after is None:
        return "only one of the runs has it"
    if before.questions == after.questions:
        return ""
    old, new = len(before.doc_ids), len(after.doc_ids)
    if old != new:
        return f"{old:,} documents in one run, {new:,} in the other"
    return "its questions are not the same"


def _row(
    before: Scored, after: Scored, name: str, metric: str, top: bool, main: bool, plain: bool
) -> Row:
    leaves = before.members(name)
    old = [before.leaves[leaf].metrics[metric] for leaf in leaves]
    new = [after.leaves[leaf].metrics[metric] for leaf in leaves]
    pairs = [_differences(a, b, plain) for a, b in zip(old, new, strict=True)]
    documents = [[pair] for cluster in pairs for pair in cluster]
    by_leaf = len(leaves) >= MIN_CLUSTERS
    difference = statistics.clustered(pairs if by_leaf else documents)
    if by_leaf and difference.error == 0:
        # leaf tasks that moved alike to the last digit: that is chance, not certainty
        difference, by_leaf = statistics.clustered(documents), False
    n = len(documents)
    lost = gained = None
    if all(m.binary for m in [*old, *new]):
        moved = [b[0] - a[0] for x, y in zip(old, new, strict=True)
                 for a, b in zip(x.values, y.values, strict=True)]  # fmt: skip
        lost, gained = sum(d < 0 for d in moved), sum(d > 0 for d in moved)
    test, p = BY_LEAF if by_leaf else BY_DOCUMENT, difference.p
    detectable = difference.detectable or None  # no document moved: no error to go by
    if lost is not None and gained is not None:
        if len(leaves) == 1:
            test, p = MCNEMAR, statistics.mcnemar(lost, gained)
        if len(leaves) == 1 or detectable is None:
            detectable = statistics.mcnemar_detectable(lost + gained, n)
    sizes = [len(m.values) for m in old]
    chances = [before.leaves[leaf].chance for leaf in leaves]
    return Row(
        name, metric, leaves, top, main, n, len(pairs) if by_leaf else n,
        _score(old, sizes, plain), _score(new, sizes, plain),
        statistics.mean(chances) if plain else statistics.weighted_mean(chances, sizes),
        difference, all(m.nats for m in old), all(m.higher_is_better for m in old),
        lost, gained, test, p, None, detectable,
    )  # fmt: skip


def _differences(before: Metric, after: Metric, plain: bool) -> list[scored.Value]:
    """Return (difference, weight) of each document. `plain`: each leaf task has the weight 1."""
    share = len(before.values) if plain else 1
    return [
        (b - a, weight / share)
        for (a, weight), (b, _) in zip(before.values, after.values, strict=True)
    ]


def _score(members: Sequence[Metric], sizes: Sequence[int], plain: bool) -> float:
    scores = [member.score for member in members]
    return statistics.mean(scores) if plain else statistics.weighted_mean(scores, sizes)


@dataclass(frozen=True, slots=True)
class Kept:
    """The share of the teacher's score above chance that a student kept, with its 95% interval;
    None where the teacher is within two standard errors of chance: then it has nothing to keep."""

    task: str
    metric: str
    share: float | None
    low: float | None
    high: float | None
    chance: float
    clusters: int
    seed: int


def kept(teacher: Scored, student: Scored, row: Row, seed: int) -> Kept:
    """Return the share that a student kept in a row's task and metric."""
    plain, few = (row.task, row.metric) in teacher.plain, len(row.leaves) < MIN_CLUSTERS
    # Of each cluster: its weight, and the weighted sums of the teacher, the student and chance.
    sums: list[tuple[float, ...]] = []
    for leaf in row.leaves:
        old, new = teacher.leaves[leaf], student.leaves[leaf]
        pairs = zip(old.metrics[row.metric].values, new.metrics[row.metric].values, strict=True)
        weight = 1 / len(old.doc_ids) if plain else 1.0
        chance = weight * old.chance
        part = [(weight, weight * a, weight * b, chance) for (a, _), (b, _) in pairs]
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


def _above(sums: Array) -> Array:
    """Return the teacher's and the student's mean scores above chance. sums: [..., clusters, 4]
    (weight, teacher, student, chance); returns [..., 2]."""
    total = sums.sum(axis=-2)
    above: Array = (total[..., 1:3] - total[..., 3:4]) / total[..., 0:1]
    return above


def shares(table: Array, seed: int) -> Array:
    """Return the shares kept in DRAWS draws of as many clusters, with replacement: infinite where
    the teacher is not above chance. table: [clusters, 4] (weight, teacher, student, chance);
    returns [DRAWS]."""
    source, count = np.random.default_rng(seed), len(table)
    parts: list[Array] = []
    for start in range(0, DRAWS, step := max(1, _AT_ONCE // count)):
        draws = source.integers(0, count, size=(min(step, DRAWS - start), count))
        above = _above(table[draws])
        positive = above[:, 0] > 0
        parts.append(np.where(positive, above[:, 1] / np.where(positive, above[:, 0], 1), np.inf))
    return np.concatenate(parts)
