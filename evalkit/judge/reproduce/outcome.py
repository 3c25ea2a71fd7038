"""What a reproduction came to, in words and as a statement's claim."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import Exit
from evalkit.judge.compare import Pair
from evalkit.judge.compare.text import p_value, table
from evalkit.judge.reproduce.answers import Apart
from evalkit.judge.reproduce.differences import Difference, told
from evalkit.judge.reproduce.verdicts import MEANING, Equivalence, Verdict
from evalkit.record.reading.findings import shown

FEW = 6  # flips in words


@dataclass(frozen=True, slots=True)
class Outcome:
    """`answers`: how far they are apart, where they are not equal; `tests`: each top-level task's
    equivalence; `cause`: what likely made the difference, by what was recorded; `sample`: which
    batches, where not all; `made`: the new execution's folder."""

    verdict: Verdict
    differences: tuple[Difference, ...]
    answers: Apart | None
    pair: Pair | None
    tests: tuple[Equivalence, ...]
    cause: str
    sample: str
    made: Path | None

    @property
    def exit_code(self) -> Exit:
        """The verdict's."""
        return self.verdict.exit_code

    @property
    def margin(self) -> float:
        """The widest margin of a task's score."""
        return max((test.margin for test in self.tests), default=0.0)

    @property
    def claim(self) -> dict[str, Any]:
        """What a reproducer signs."""
        found: dict[str, Any] = {"verdict": self.verdict.value}
        if self.verdict is Verdict.REPRODUCED:
            found["margin"] = self.margin
        if self.cause:
            found["cause"] = self.cause[:1000]
        if self.answers is not None:
            found |= {"samples": self.answers.total, "failed": self.answers.beyond}
        if self.made is not None:
            record = canon.read_json(self.made / "record.json")
            found |= {
                "answers": record["ids"]["answers"],
                "record": canon.sha256_file(self.made / "record.json"),
            }
        return found

    def lines(self) -> list[str]:
        """What a person reads; the verdict is the last line."""
        found = told(self.differences)
        if self.sample:
            found.append(f"sample    {self.sample}")
        found += self._answers()
        found += self._flips()
        if self.tests:
            found += ["", *self._scores(), ""]
        if self.cause and self.verdict is not Verdict.BITWISE:
            found.append(f"cause     likely {self.cause}")
        margin = f" ±{100 * self.margin:.1f} points" if self.verdict is Verdict.REPRODUCED else ""
        return [*found, f"{self.verdict.value}{margin}: {MEANING[self.verdict]}"]

    def _answers(self) -> list[str]:
        apart = self.answers
        if apart is None or not apart.unequal:
            return []
        told = (
            f"answers   {apart.unequal:,} of {apart.total:,} are not equal, {apart.beyond:,} beyond"
            f" the noise; log-likelihoods at most {apart.largest:.2g} apart"
        )
        return [told, *[f"          {shown(problem)}" for problem in apart.first]]

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


def unfit(
    differences: tuple[Difference, ...], reason: str, made: Path | None = None
) -> Outcome:  # fmt: skip
    """The outcome where the same was not asked: INCOMPARABLE, and which input it is."""
    cause = f"another question was asked: {reason}"
    return Outcome(Verdict.INCOMPARABLE, differences, None, None, (), cause, "", made)
