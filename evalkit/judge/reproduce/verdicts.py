"""The verdict on a reproduction: how much of the original's answers and scores came out again.

A ladder, strongest first; a rung is given only where it is shown, and "no difference was found" is
no rung: that two scores are the same within a margin takes its own test (TOST), with a margin that
follows from the original alone.
"""

from dataclasses import dataclass
from enum import StrEnum

from evalkit.base import statistics
from evalkit.base.errors import Exit
from evalkit.judge.compare import Pair, Row

LEAST, MOST = 0.01, 0.05  # of the margin: a point, five points
ERRORS = 2  # standard errors of the original's score


class Verdict(StrEnum):
    """How a reproduction came out, strongest first."""

    BITWISE = "BITWISE"
    ANSWERS = "ANSWERS"
    NUMERICS = "NUMERICS"
    REPRODUCED = "REPRODUCED"
    INCONCLUSIVE = "INCONCLUSIVE"
    DIFFERENT = "DIFFERENT"
    INCOMPARABLE = "INCOMPARABLE"

    @property
    def exit_code(self) -> Exit:
        """The command line's exit code for it."""
        special = {
            Verdict.INCONCLUSIVE: Exit.INCONCLUSIVE,
            Verdict.DIFFERENT: Exit.FAILED,
            Verdict.INCOMPARABLE: Exit.USAGE,
        }
        return special.get(self, Exit.OK)


MEANING = {
    Verdict.BITWISE: "every answer is equal, to the last bit",
    Verdict.ANSWERS: "every sample scored the same",
    Verdict.NUMERICS: "log-likelihoods within the noise of the numerics, flips near-ties",
    Verdict.REPRODUCED: "every score is the original's within its margin",
    Verdict.INCONCLUSIVE: "neither the same within the margins nor shown to be different",
    Verdict.DIFFERENT: "scores differ by more than chance",
    Verdict.INCOMPARABLE: "not the same questions or prompts",
}


@dataclass(frozen=True, slots=True)
class Equivalence:
    """A top-level task's score, held against the original's within a margin. `p` is TOST's, Holm's
    adjustment made over the tasks; None without an error to judge by."""

    row: Row
    margin: float
    p: float | None

    @property
    def shown(self) -> bool:
        """Whether the two scores are the same within the margin."""
        return self.p is not None and self.p < statistics.ALPHA


def equivalences(pair: Pair, errors: dict[str, float | None]) -> list[Equivalence]:
    """Every top-level task's test. `errors`: the original's standard errors by task; a score's
    margin is twice that, at least one point and at most five."""
    rows = pair.tops
    margins = [_margin(errors.get(row.task)) for row in rows]
    p_values = [row.difference.equivalence(m) for row, m in zip(rows, margins, strict=True)]
    adjusted = iter(statistics.holm([p for p in p_values if p is not None]))
    return [
        Equivalence(row, margin, None if p is None else next(adjusted))
        for row, margin, p in zip(rows, margins, p_values, strict=True)
    ]


def _margin(error: float | None) -> float:
    return LEAST if error is None else min(MOST, max(LEAST, ERRORS * error))


def of_scores(pair: Pair, tests: list[Equivalence]) -> Verdict:
    """What the scores alone say."""
    if tests and all(test.shown for test in tests):
        return Verdict.REPRODUCED
    if any(r.adjusted is not None and r.adjusted < statistics.ALPHA for r in pair.tops):
        return Verdict.DIFFERENT
    return Verdict.INCONCLUSIVE
