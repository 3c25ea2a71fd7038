"""Whether compare's and reproduce's tests are as often wrong as they say, by simulation:
`python -m bench.calibration` writes its tables into docs/statistics.md.

Documents have a difficulty, leaf tasks a shift of their own, and two runs answer the same documents
with correlated luck; so the truth is known. A test at 5% should call 5% of equal runs different,
and find a difference of the size that it calls detectable four times of five.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bench import data
from bench.tables import table
from evalkit.base import canon, statistics
from evalkit.inputs import suite
from evalkit.judge.compare import pairs as pairing
from evalkit.judge.compare.pairs import MIN_CLUSTERS
from evalkit.judge.reproduce import verdicts

DOC = data.ROOT / "docs" / "statistics.md"
OPENING, CLOSING = "<!-- made by bench.calibration -->", "<!-- end of bench.calibration -->"
DRAWS = 1000
SEED = 0
AGREEMENT = 0.8  # correlation of two runs' luck on a document
LEAF_SPREAD = 0.25  # of a leaf task's own shift between two runs, in points of a probit


def sizes(group: str) -> list[int]:
    """Documents of each leaf task, from the shipped lock of `core`."""
    lock = suite.lock_of(suite.load("core"))
    pending, found = [group], []
    while pending:
        name = pending.pop(0)
        if name in lock.tasks:
            found.append(lock.tasks[name]["documents"])
        else:
            pending += lock.groups[name]
    return found


@dataclass(frozen=True)
class World:
    """A task as it is: leaf sizes, the first run's level, and how much leaf tasks move alike."""

    name: str
    leaves: list[int]
    level: float = 0.6
    spread: float = 0.0  # how unlike the leaf tasks' true differences are
    agreement: float = AGREEMENT

    def runs(self, shift: float, source: Any) -> tuple[list[Any], list[Any]]:
        """Two runs' zeros and ones by leaf task, the second better by `shift` in probits."""
        before, after = [], []
        start = NormalDist().inv_cdf(self.level)
        for count in self.leaves:
            own = self.spread * source.normal()
            common = math.sqrt(self.agreement) * source.normal(size=count)
            rest = math.sqrt(1 - self.agreement)
            first = common + rest * source.normal(size=count) + start
            second = common + rest * source.normal(size=count) + start + shift + own
            before.append((first > 0).astype(float))
            after.append((second > 0).astype(float))
        return before, after

    def shift_for(self, difference: float) -> float:
        """The probit shift that moves the score by that much."""
        level = min(self.level + difference, 0.999)
        return NormalDist().inv_cdf(level) - NormalDist().inv_cdf(self.level)


def tested(before: list[Any], after: list[Any]) -> tuple[float, float]:
    """p and the detectable difference, as compare has them."""
    if len(before) == 1:
        moved = after[0] - before[0]
        lost, gained = int((moved < 0).sum()), int((moved > 0).sum())
        detectable = statistics.mcnemar_detectable(lost + gained, len(moved))
        return statistics.mcnemar(lost, gained), detectable
    found = clustered(before, after)
    assert found.p is not None and found.detectable is not None, "several documents"
    return found.p, found.detectable


def clustered(before: list[Any], after: list[Any]) -> statistics.Difference:
    """The paired difference, clustered by leaf task, or over the documents of few of them. A
    cluster's documents come as their mean and number, which gives the same."""
    moved = [b - a for a, b in zip(before, after, strict=True)]
    found = statistics.clustered([[(float(d.mean()), float(len(d)))] for d in moved])
    if len(moved) < MIN_CLUSTERS or found.error == 0:  # as compare does
        return statistics.clustered([[(float(d), 1.0)] for d in np.concatenate(moved)])
    return found


def worlds() -> Iterator[World]:
    """What is simulated: core's own sizes, and small ones."""
    yield World("1 task, 100 documents", [100])
    yield World("arc_challenge, 1,172", sizes("arc_challenge"))
    yield World("2 tasks of 50", [50, 50])
    yield World("5 tasks of 50, unlike", [50] * 5, spread=LEAF_SPREAD)
    yield World("10 tasks of 100", [100] * 10)
    yield World("bbh, 27 tasks", sizes("bbh"))
    yield World("mmlu, 57 tasks", sizes("mmlu"))
    yield World("mmlu, tasks move unlike", sizes("mmlu"), spread=LEAF_SPREAD)


def differences() -> str:
    """False alarms and power of compare's tests."""
    rows = []
    for world in worlds():
        source = np.random.default_rng(SEED)
        equal = [tested(*world.runs(0.0, source)) for _ in range(DRAWS)]
        alarms = sum(p < statistics.ALPHA for p, _ in equal) / DRAWS
        detectable = float(np.median([d for _, d in equal]))
        shift = world.shift_for(detectable)
        found = [tested(*world.runs(shift, source))[0] for _ in range(DRAWS // 2)]
        power = sum(p < statistics.ALPHA for p in found) / len(found)
        rows.append([world.name, f"{alarms:.1%}", f"{detectable:.4f}", f"{power:.0%}"])
    head = ["task", "equal runs called different", "detectable, median", "found when it is so"]
    return table(head, rows)


def margins() -> str:
    """How often reproductions of several kinds are REPRODUCED, DIFFERENT or neither."""
    rows = []
    cases = {
        "rounding: 2% of answers redrawn": (0.998, 0.0),
        "another run: agreement 0.8": (AGREEMENT, 0.0),
        "one point worse, agreement 0.998": (0.998, -0.01),
        "five points worse, agreement 0.8": (AGREEMENT, -0.05),
    }
    for leaves, name in (([100], "100 documents"), ([1172], "1,172"), (sizes("bbh"), "bbh")):
        for case, (agreement, worse) in cases.items():
            world = World(name, leaves, agreement=agreement)
            source = np.random.default_rng(SEED)
            counts = dict.fromkeys(("REPRODUCED", "DIFFERENT", "INCONCLUSIVE"), 0)
            for _ in range(DRAWS // 2):
                counts[_reproduced(*world.runs(world.shift_for(worse), source))] += 1
            rows.append([name, case, *[f"{2 * n / DRAWS:.0%}" for n in counts.values()]])
    return table(["documents", "the second run", "REPRODUCED", "DIFFERENT", "INCONCLUSIVE"], rows)


def _reproduced(before: list[Any], after: list[Any]) -> str:
    whole = np.concatenate(before)
    error = float(whole.std(ddof=1)) / math.sqrt(len(whole))
    margin = min(verdicts.MOST, max(verdicts.LEAST, verdicts.ERRORS * error))
    found = clustered(before, after)
    p = found.equivalence(margin)
    if p is not None and p < statistics.ALPHA:
        return "REPRODUCED"
    return "DIFFERENT" if tested(before, after)[0] < statistics.ALPHA else "INCONCLUSIVE"


def coverage() -> str:
    """How often the interval of the share kept holds the truth: 0.9 of a teacher at 0.75."""
    rows = []
    chance, teacher, share = 0.25, 0.75, 0.9
    student = chance + share * (teacher - chance)
    for leaves, name in (([200], "200 documents"), ([1172], "1,172"), ([100] * 5, "5 tasks of 100"),
                         (sizes("bbh"), "bbh, 27 tasks")):  # fmt: skip
        world = World(name, leaves, level=teacher)
        source = np.random.default_rng(SEED)
        held = 0
        for _ in range(DRAWS // 5):
            before, after = world.runs(world.shift_for(student - teacher), source)
            sums = [(len(a), a.sum(), b.sum(), chance * len(a))
                    for a, b in zip(before, after, strict=True)]  # fmt: skip
            if len(sums) < MIN_CLUSTERS:
                pairs = zip(np.concatenate(before), np.concatenate(after), strict=True)
                sums = [(1, a, b, chance) for a, b in pairs]
            shares = pairing.shares(np.array(sums, dtype=np.float64), SEED)
            low, high = np.quantile(shares, [statistics.ALPHA / 2, 1 - statistics.ALPHA / 2])
            held += bool(low <= share <= high)
        rows.append([name, f"{held / (DRAWS // 5):.0%}"])
    return table(["task", "95% interval holds the truth"], rows)


TEXT = """Written by `python -m bench.calibration`: {draws:,} simulated pairs a row. Documents
differ in difficulty, the first run is right on 60%, and two runs' luck on a document is correlated
by {agreement}. First compare's tests at 5%: how often two equal runs are called different, the
difference called detectable, and how often a difference of that size is found.

{differences}

A McNemar test on few documents is more careful than it says. A group of few leaf tasks is tested
over documents, which is right where they move alike and wrong where each has a true difference of
its own (the row "unlike", by 0.25 probits): `compare` says so below such a table. With ten tasks or
more, clustering by task holds what it says in either case, as the last row shows.

How often a second run gets which of reproduce's lower verdicts (a margin of twice the original's
standard error, between one and five points):

{margins}

How often the interval of the share kept holds the true share, 90% of a teacher that is right on
75% where chance is 25%:

{coverage}"""


def main() -> None:
    """Simulate, and put the tables into the page."""
    functions: dict[str, Callable[[], str]] = {
        "differences": differences, "margins": margins, "coverage": coverage,
    }  # fmt: skip
    made = {name: function() for name, function in functions.items()}
    text = TEXT.format(draws=DRAWS, agreement=AGREEMENT, spread=LEAF_SPREAD, **made)
    before, rest = Path(DOC).read_text("utf-8").split(OPENING)
    after = rest.split(CLOSING)[1]
    canon.write_atomic(DOC, f"{before}{OPENING}\n\n{text}\n\n{CLOSING}{after}")
    print(text)


if __name__ == "__main__":
    main()
