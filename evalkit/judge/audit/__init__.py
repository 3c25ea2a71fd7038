"""`audit`: are a record's answers those of the model that it names? Some of them, replayed.

The model is needed, the datasets are not. Nothing is generated: one forward pass over a prompt and
its recorded answer gives every token's probability, so an audit costs a small part of the run, on
any kind of hardware, and one changed token does not change what follows it. Each value is held
against the model by itself, and all together. A record that contradicts itself is not audited. What
an audit can't see: whether the prompts are the benchmark's (`verify` holds them against the lock),
and samples that were not drawn.
"""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.judge.audit import drawing, loading, replaying, whole
from evalkit.judge.audit.drawing import Drawn
from evalkit.judge.audit.loading import Asked
from evalkit.judge.audit.rounding import Rounding
from evalkit.judge.audit.whole import Whole
from evalkit.judge.verify import require_consistent
from evalkit.plan import store
from evalkit.record.packs import archive
from evalkit.record.reading import scored
from evalkit.record.reading.findings import shown
from evalkit.record.signing import attest
from evalkit.record.signing.keys import Private

__all__ = ["Asked", "Audit", "audit"]

SHOWN = 5
MANY = 5  # samples that are wrong by themselves and no single ones any more
ROUNDING, ANSWERS, SYSTEMATIC = "rounding", "answers", "systematic"
WORDS = {
    ROUNDING: "rounding explains every difference",
    ANSWERS: "single answers are not the model's",
    SYSTEMATIC: "a systematic shift, of other weights or numerics than recorded",
}


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. `problems` by sample; `whole` is the test of all samples together; `worst`
    the largest deviation of one value, in what is allowed; `seconds` and `run_seconds` compare the
    replay with the run's execution (unknown where the record does not say it); `hardware` says
    whether this machine is like the run's."""

    of: int
    samples: int
    seed: int
    problems: dict[str, tuple[str, ...]]
    whole: Whole
    skipped: int
    tokens: int
    worst: float
    rounding: Rounding
    seconds: float
    run_seconds: float | None
    hardware: str = ""

    @property
    def difference(self) -> str:
        """The kind of difference between the record and the model."""
        return kind(self.whole.shifted, len(self.problems), self.samples)

    @property
    def passed(self) -> bool:
        """Whether every sample is as recorded."""
        return self.difference == ROUNDING

    @property
    def share(self) -> float:
        """The share of altered samples that would have been caught with 95% probability."""
        return 1.0 if not self.samples else 1 - 0.05 ** (1 / self.samples)

    @property
    def exit_code(self) -> Exit:
        """0 passed, 1 not."""
        return Exit.OK if self.passed else Exit.FAILED

    @property
    def claim(self) -> dict[str, Any]:
        """What a witness signs."""
        return {
            "verdict": "PASSED" if self.passed else "FAILED",
            "samples": self.samples,
            "failed": len(self.problems),
            "seed": self.seed,
            "share": self.share,
            "difference": self.difference,
        }

    @property
    def together(self) -> dict[str, float]:
        """The test of all samples together, for programs."""
        whole = self.whole
        return {"times": whole.times, "bias": whole.bias, "further": whole.further}

    def lines(self) -> list[str]:
        """What a person reads; the verdict is the last line."""
        found = [
            f"drawn     {self.samples:,} of {self.of:,} samples, seed {self.seed}",
            f"hardware  {self.hardware}",
            f"replayed  {self.tokens:,} recorded tokens in {self.seconds:.1f} s{self._ratio()}",
            f"rounding  {self.rounding.logit:.2g} nats a logit, measured on"
            f" {self.rounding.measured:,} values; the largest deviation is {self.worst:.2g} of what"
            " one value may be off",
            f"together  recorded values are {self.whole.times:.2f} times as far off, at the median;"
            f" {self.rounding.spread:g} times can be another machine's rounding",
        ]
        if self.skipped:
            found.append(f"skipped   {self.skipped:,} answers whose engine did not tell tokens")
        for name, problems in list(self.problems.items())[:SHOWN]:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            found.append(f"FAIL      {shown(name)}: {shown(problems[0])}{more}")
        if len(self.problems) > SHOWN:
            found.append(f"FAIL      {len(self.problems) - SHOWN:,} more samples")
        if self.whole.shifted:
            found.append(f"FAIL      all together: {self.whole}")
        return [*found, self._verdict()]

    def _verdict(self) -> str:
        words = WORDS[self.difference]
        if not self.passed:
            count = f"{len(self.problems):,} of {self.samples:,} samples are wrong by themselves"
            return f"AUDIT FAILED: {words}; {count}"
        return (
            f"AUDIT PASSED: {words}; had {self.share:.1%} of the samples or more been altered, this"
            " would have shown it with 95% probability"
        )

    def _ratio(self) -> str:
        if not self.run_seconds or not self.seconds:
            return ""
        ratio = self.run_seconds / self.seconds
        return f"; the run's execution took {self.run_seconds:.1f} s, {ratio:.0f} times that"


def kind(shifted: bool, wrong: int, samples: int) -> str:
    """The kind of difference that is seen: SYSTEMATIC (all samples are shifted together, or most
    are wrong by themselves), ANSWERS (some are wrong), or ROUNDING."""
    if shifted or (wrong >= MANY and 2 * wrong > samples):
        return SYSTEMATIC
    return ANSWERS if wrong else ROUNDING


def audit(folder: Path, asked: Asked, events: Events, key: Private | None = None) -> Audit:
    """Replay some of a record's answers on its model; with a key, sign what was found.

    Raises EvalkitError where the record contradicts itself, the model at hand is another, or
    nothing can be replayed.
    """
    if asked.samples < 1:
        raise EvalkitError("--sample must be at least 1")
    if folder.is_file():
        if key is not None:
            what = "a pack can't be signed in, only the run's folder"
            raise EvalkitError(what, where=str(folder), fix="unpack it first")
        with archive.unpacked(folder) as run_folder:
            return audit(run_folder, asked, events)
    require_consistent(folder, "audit")
    run = scored.read(folder)
    assert run.record is not None, "verify has read it"
    model = loading.model_of(run.record, asked, folder)
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    planned = store.Plan(folder)
    engine, tokenizer = loading.engine_for(run.record, model, planned, asked)
    everything = drawing.names(run)
    chosen = drawing.draw(everything, drawing.digest(folder), seed, asked.samples)
    drawn = drawing.gather(folder, run, planned, tokenizer, chosen)
    found = replaying.replay(engine, drawn, replaying.policy_of(planned), model, events)
    found_audit = _conclude(found, drawn, run.record, seed, len(everything))
    found_audit = replace(found_audit, hardware=loading.hardware(run.record, engine))
    if key is not None:
        attest.sign(folder, key, attest.AUDIT, found_audit.claim)
    return found_audit


def _conclude(
    found: replaying.Result, drawn: list[Drawn], record: dict[str, Any], seed: int, of: int
) -> Audit:
    judged = found.judged
    problems = {f"{s.name[0]} document {s.name[1]}": tuple(s.problems) for s in drawn if s.problems}
    together = whole.judge(list(judged.values.values()), found.rounding)
    executed = record["phases"].get("execute", {}).get("seconds")
    run_seconds = float(executed) if isinstance(executed, int | float) else None
    return Audit(
        of, len(drawn), seed, problems, together, judged.skipped, judged.tokens, judged.worst,
        found.rounding, found.seconds, run_seconds,
    )  # fmt: skip
