"""Two evaluations held against each other, document by document: the differences, their errors and
what they are worth.

Only tasks whose questions are the same on both sides are paired; any other is left out by name,
with the reason. Which test a row gets follows from its scores: McNemar's exact test for a leaf task
of zeros and ones, else Student's t on paired differences, clustered by leaf task in a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of a task or group on both sides.

    `before`, `after`: the scores as reported; `difference` is after - before, in points of the
    score, or in nats per word, byte or document where `nats`. `headline`: the metric that stands
    for its task. `top`: a task or group that was asked for, not one below it. `lost`, `gained`:
    documents that went from 1 to 0 and from 0 to 1, where scores are zeros and ones. `p` is raw;
    `adjusted` is Holm's, over the headline rows of all top-level tasks and all pairs.
    """

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
    """Every task, group and leaf task that both sides scored on the same questions."""
    found: list[Row] = []
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
            weighting = (name, metric) in before.plain
            found.append(_row(before, after, name, metric, name in tops, metric == main, weighting))
    return found, list(dict.fromkeys(left_out))


def _tree(run: Scored, tops: list[str]) -> Iterator[str]:
    """The tops, each followed by the groups whose leaf tasks are all its own, then the rest."""
    for top in tops:
        yield top
        inside = set(run.members(top))
        yield from (g for g, leaves in run.groups.items() if leaves and inside.issuperset(leaves))
    yield from run.groups


def _problem(one: Leaf | None, other: Leaf | None) -> str:
    if one is None or other is None:
        return "only one of the runs has it"
    if one.questions == other.questions:
        return ""
    if len(one.doc_ids) != len(other.doc_ids):
        return f"{len(one.doc_ids):,} documents in one run, {len(other.doc_ids):,} in the other"
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
    """(difference, weight) of each document; in a plain mean of leaf tasks each task weighs 1."""
    share = len(before.values) if plain else 1
    return [
        (b - a, weight / share)
        for (a, weight), (b, _) in zip(before.values, after.values, strict=True)
    ]


def _score(members: Sequence[Metric], sizes: Sequence[int], plain: bool) -> float:
    scores = [member.score for member in members]
    return statistics.mean(scores) if plain else statistics.weighted_mean(scores, sizes)
