"""Whether both sides of a comparison gave the same answers."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from bench.sides import Answer


@dataclass
class Agreement:
    """`worst`: the largest difference of a log-likelihood; `flips`: documents whose most likely
    choice is another; `greedy`: flags that differ; `texts` of `generations` are equal."""

    loglikelihoods: int = 0
    worst: float = 0.0
    flips: int = 0
    greedy: int = 0
    generations: int = 0
    texts: int = 0

    def to_json(self) -> dict[str, Any]:
        """As the figures hold it."""
        return asdict(self)

    def __str__(self) -> str:
        if self.generations:
            return f"{self.texts}/{self.generations} texts equal"
        return f"{self.worst:.0e}, {self.flips} flips, {self.greedy} greedy flags differ"


def compare(ours: dict[str, Answer], theirs: dict[str, Answer]) -> Agreement:
    """Hold answers against each other; AssertionError where requests are missing."""
    assert ours.keys() == theirs.keys(), "both sides answer all requests"
    found = Agreement()
    choices: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name in theirs:
        mine, other = ours[name], theirs[name]
        if isinstance(mine, str) or isinstance(other, str):
            found.generations += 1
            found.texts += mine == other
            continue
        found.loglikelihoods += 1
        found.worst = max(found.worst, abs(mine[0] - other[0]))
        found.greedy += mine[1] != other[1]
        choices[name.rsplit("/", 2)[0]].append((mine[0], other[0]))
    for pairs in choices.values():
        mine_all, other_all = zip(*pairs, strict=True)
        found.flips += mine_all.index(max(mine_all)) != other_all.index(max(other_all))
    return found
