"""Two executions' answers held against each other, request by request: equal, within the noise, or
apart.

Texts may part for good at one near-tie, so of two unequal texts only the first token that differs
is judged, by the margins that both sides recorded.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from evalkit.base import canon
from evalkit.judge.audit.noise import Noise
from evalkit.record.journal import Answer

FEW = 3


@dataclass(slots=True)
class Apart:
    """How far two sides' answers are apart: requests in all, those that are not equal, and those
    that the noise does not explain (the first few named)."""

    total: int = 0
    unequal: int = 0
    beyond: int = 0
    largest: float = 0.0  # difference of log-likelihoods
    first: list[str] = field(default_factory=list)

    def note(self, request: str, before: Answer | None, after: Answer | None, noise: Noise) -> None:
        """Take in one request's answers."""
        self.total += 1
        if before == after:
            return
        self.unequal += 1
        problem = "answered on one side only"
        if before is not None and after is not None:
            self.largest = max(self.largest, _distance(before, after))
            problem = _problem(before, after, noise)
        if problem:
            self.beyond += 1
            if len(self.first) < FEW:
                self.first.append(f"{request}: {problem}")


def _distance(before: Answer, after: Answer) -> float:
    if "loglikelihood" not in before or "loglikelihood" not in after:
        return 0.0
    off = abs(canon.number(before["loglikelihood"]) - canon.number(after["loglikelihood"]))
    return off if off == off else 0.0


def _problem(before: Answer, after: Answer, noise: Noise) -> str:
    if "loglikelihood" in before:
        count = max(before["num_tokens"], after.get("num_tokens", 0))
        off = canon.number(before["loglikelihood"]) - canon.number(after["loglikelihood"])
        allowed = noise.of_tokens(count)
        return (
            ""
            if abs(off) <= allowed
            else f"log-likelihood off by {off:.3g}, {allowed:.3g} is noise"
        )
    sides = (before["tokens"], after["tokens"])
    if not all(isinstance(tokens, list) for tokens in sides):
        return (
            "" if before["text"] == after["text"] else "another text, of which no tokens are told"
        )
    for index, (old, new) in enumerate(zip(*sides, strict=False)):
        if old != new:
            margins = (before["margins"][index], after["margins"][index])
            widest = max(canon.number(margin) for margin in margins)
            told = f"token {index} is another, {widest:.3g} ahead, {noise.tie:.3g} is noise"
            return "" if widest <= noise.tie else told
    if len(sides[0]) != len(sides[1]):
        return "one text goes on where the other ends"
    pairs = zip(before["logprobs"], after["logprobs"], strict=True)
    worst = max(abs(canon.number(a) - canon.number(b)) for a, b in pairs)
    return "" if worst <= noise.of_tokens(1) else f"a token's log-probability is off by {worst:.3g}"


def apart(pairs: Iterable[tuple[str, Answer | None, Answer | None]], noise: Noise) -> Apart:
    """All requests."""
    found = Apart()
    for request, before, after in pairs:
        found.note(request, before, after, noise)
    return found


def matched(before: Any, after: Any, names: Iterable[str]) -> Iterator[tuple[str, Any, Any]]:
    """(request, one side's answer, the other's), a leaf task at a time."""
    for leaf in names:
        old, new = before.of(leaf), after.of(leaf)
        for request in sorted(old.keys() | new.keys()):
            yield request, old.get(request), new.get(request)
