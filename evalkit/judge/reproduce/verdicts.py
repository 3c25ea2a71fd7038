"""The verdict on a reproduction: how much of the original's answers and scores came out again.

The verdicts form a ladder, strongest first, and each is given only if it is shown. That two scores
are the same within a margin needs a test of its own (TOST), with a margin that follows from the
original alone: that no difference was found shows nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from evalkit.base import canon, statistics
from evalkit.base.errors import Exit
from evalkit.judge.compare import Pair, Row
from evalkit.judge.compare.text import p_value, table
from evalkit.judge.reproduce import differences as differing
from evalkit.judge.reproduce.differences import Apart, Difference
from evalkit.record.reading.findings import shown
from evalkit.record.reading.identity import read_record
from evalkit.record.signing.types import Claim

LEAST, MOST = 0.01, 0.05  # of the margin: a point, five points
ERRORS = 2  # standard errors of the original's score
FEW = 6  # flips in words


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
    """A test whether a top-level task's two scores are the same within a margin. `p` is TOST's,
    with Holm's adjustment over the tasks; None without an error to judge by."""

    row: Row
    margin: float
    p: float | None

    @property
    def shown(self) -> bool:
        """Whether the two scores are shown to be the same within the margin."""
        return self.p is not None and self.p < statistics.ALPHA


def equivalences(pair: Pair, errors: Mapping[str, float | None]) -> list[Equivalence]:
    """Test every top-level task. `errors` are the original's standard errors by task; a score's
    margin is twice its error, at least one point and at most five."""
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


def of_scores(pair: Pair, tests: Sequence[Equivalence]) -> Verdict:
    """Return the verdict that the scores alone allow."""
    if tests and all(test.shown for test in tests):
        return Verdict.REPRODUCED
    if any(r.adjusted is not None and r.adjusted < statistics.ALPHA for r in pair.tops):
        return Verdict.DIFFERENT
    return Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a reproduction: how far the `answers` are apart, each top-level task's
    equivalence (`tests`), the likely `cause` of a difference, which batches were answered
    (`sample`), and the new execution's folder (`made`)."""

    verdict: Verdict
    differences: tuple[Difference, ...]
    cause: str
    answers: Apart | None = None
    pair: Pair | None = None
    tests: tuple[Equivalence, ...] = ()
    sample: str = ""
    made: Path | None = None

    @property
    def exit_code(self) -> Exit:
        """The verdict's."""
        return self.verdict.exit_code

    @property
    def margin(self) -> float:
        """The widest margin of a task's score."""
        return max((test.margin for test in self.tests), default=0.0)

    @property
    def claim(self) -> Claim:
        """What a reproducer signs."""
        claim: Claim = {"verdict": self.verdict.value}
        if self.verdict is Verdict.REPRODUCED:
            claim["margin"] = self.margin
        if self.cause:
            claim["cause"] = self.cause[:1000]
        if self.answers is not None:
            claim["samples"], claim["failed"] = self.answers.total, self.answers.beyond
        if self.made is not None:
            path = self.made / "record.json"
            claim["answers"] = read_record(self.made)["ids"]["answers"]
            claim["record"] = canon.sha256_file(path)
        return claim

    def lines(self) -> list[str]:
        """Return the report for people; the verdict is the last line."""
        lines = differing.lines(self.differences)
        if self.sample:
            lines.append(f"sample    {self.sample}")
        lines += [*self._answers(), *self._flips()]
        if self.tests:
            lines += ["", *self._scores(), ""]
        if self.cause and self.verdict is not Verdict.BITWISE:
            lines.append(f"cause     likely {self.cause}")
        margin = f" ±{100 * self.margin:.1f} points" if self.verdict is Verdict.REPRODUCED else ""
        return [*lines, f"{self.verdict.value}{margin}: {MEANING[self.verdict]}"]

    def _answers(self) -> list[str]:
        apart = self.answers
        if apart is None or not apart.unequal:
            return []
        summary = (
            f"answers   {apart.unequal:,} of {apart.total:,} are not equal, {apart.beyond:,} beyond"
            f" the noise; log-likelihoods at most {apart.largest:.2g} apart"
        )
        return [summary, *[f"          {shown(problem)}" for problem in apart.first]]

    def _flips(self) -> list[str]:
        if self.pair is None or not self.pair.flips:
            return []
        flips = self.pair.flips
        few = ", ".join(
            f"{flip.task}/{flip.doc_id} {flip.before:g} -> {flip.after:g}" for flip in flips[:FEW]
        )
        more = f" and {len(flips) - FEW:,} more" if len(flips) > FEW else ""
        return [f"flips     {len(flips):,}: {shown(few)}{more}"]

    def _scores(self) -> list[str]:
        head = ["task", "metric", "original", "again", "difference", "margin", "TOST p (Holm)"]
        rows = [
            [shown(test.row.task), test.row.metric.removesuffix(",none"), f"{test.row.before:.4f}",
             f"{test.row.after:.4f}", f"{test.row.difference.value:+.4f}", f"{test.margin:.4f}",
             p_value(test.p)]
            for test in self.tests
        ]  # fmt: skip
        return table(head, rows, left=2)


def incomparable(
    differences: tuple[Difference, ...], reason: str, made: Path | None = None
) -> Outcome:
    """Return the outcome INCOMPARABLE: another question was asked, `reason` says which."""
    cause = f"another question was asked: {reason}"
    return Outcome(Verdict.INCOMPARABLE, differences, cause, made=made)
