"""`audit`: replay some of a record's answers on the model that it names, and compare.

An audit needs the model but no dataset. One forward pass over a prompt and its recorded answer
gives every token's probability; nothing is generated, so one changed token does not change the
next. A record that contradicts itself is not audited. Whether the prompts are the benchmark's is
for `verify`.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.judge.audit import drawing, loading, noise, replaying
from evalkit.judge.audit.loading import AuditOptions
from evalkit.judge.audit.noise import JointTest, Rounding
from evalkit.judge.verify import require_consistent
from evalkit.plan import store
from evalkit.record.packs import archive
from evalkit.record.reading import scored
from evalkit.record.reading.findings import shown
from evalkit.record.signing import attest
from evalkit.record.signing.keys import Private
from evalkit.record.signing.types import Claim

__all__ = ["Audit", "AuditOptions", "audit"]

SHOWN = 5
MANY = 5  # so many wrong samples, if they are most of those drawn, are more than single ones
ROUNDING, ANSWERS, SYSTEMATIC = "rounding", "answers", "systematic"
WORDS = {
    ROUNDING: "rounding explains every difference",
    ANSWERS: "single answers are not the model's",
    SYSTEMATIC: "a systematic shift, of other weights or numerics than recorded",
}


@dataclass(frozen=True, slots=True)
class Audit:
    """The outcome of an audit: `problems` by sample, the test of all samples together (`joint`),
    the `worst` deviation as a share of what is allowed, and what the replay cost beside the run."""

    of: int
    samples: int
    seed: int
    problems: dict[str, tuple[str, ...]]
    joint: JointTest
    skipped: int
    tokens: int
    worst: float
    rounding: Rounding
    seconds: float
    run_seconds: float | None
    hardware: str

    @property
    def difference(self) -> str:
        """The kind of difference between the record and the model."""
        return kind(self.joint.shifted, len(self.problems), self.samples)

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
        """0 if it passed, else 1."""
        return Exit.OK if self.passed else Exit.FAILED

    @property
    def claim(self) -> Claim:
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
        joint = self.joint
        return {"times": joint.times, "bias": joint.bias, "further": joint.further}

    def lines(self) -> list[str]:
        """Return the report for people; the verdict is the last line."""
        lines = [
            f"drawn     {self.samples:,} of {self.of:,} samples, seed {self.seed}",
            f"hardware  {self.hardware}",
            f"replayed  {self.tokens:,} recorded tokens in {self.seconds:.1f} s{self._ratio()}",
            f"rounding  {self.rounding.logit:.2g} nats a logit, measured on"
            f" {self.rounding.measured:,} values; the largest deviation is {self.worst:.2g} of what"
            " one value may be off",
            f"together  recorded values are {self.joint.times:.2f} times as far off, at the median;"
            f" {self.rounding.spread:g} times can be another machine's rounding",
        ]
        if self.skipped:
            lines.append(f"skipped   {self.skipped:,} answers whose engine did not tell tokens")
        for name, problems in list(self.problems.items())[:SHOWN]:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            lines.append(f"FAIL      {shown(name)}: {shown(problems[0])}{more}")
        if len(self.problems) > SHOWN:
            lines.append(f"FAIL      {len(self.problems) - SHOWN:,} more samples")
        if self.joint.shifted:
            lines.append(f"FAIL      all together: {self.joint}")
        return [*lines, self._verdict()]

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
    """Return the kind of difference: SYSTEMATIC (all samples are shifted together, or most are
    wrong by themselves), ANSWERS (some are wrong) or ROUNDING."""
    if shifted or (wrong >= MANY and 2 * wrong > samples):
        return SYSTEMATIC
    return ANSWERS if wrong else ROUNDING


def audit(folder: Path, options: AuditOptions, events: Events, key: Private | None = None) -> Audit:
    """Replay some of a record's answers on its model; with a key, sign the outcome. Raises
    EvalkitError if the record contradicts itself, if the model at hand is another, or if nothing
    can be replayed."""
    if options.samples < 1:
        raise EvalkitError("--sample must be at least 1")
    if folder.is_file():
        if key is not None:
            what = "a pack can't be signed in, only the run's folder"
            raise EvalkitError(what, where=str(folder), fix="unpack it first")
        with archive.unpacked(folder) as run_folder:
            return audit(run_folder, options, events)
    require_consistent(folder, "audit")
    outcome = _audit(folder, options, events)
    if key is not None:
        attest.sign(folder, key, attest.AUDIT, outcome.claim)
    return outcome


def _audit(folder: Path, options: AuditOptions, events: Events) -> Audit:
    """The order: 1 load the model, 2 draw samples, 3 replay them, 4 conclude."""
    run = scored.read(folder)
    record = run.record
    assert record is not None, "verify has read it"
    model = loading.model_of(record, options, folder)
    planned = store.Plan(folder)
    engine, tokenizer = loading.engine_for(record, model, planned, options)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    names = drawing.names(run)
    chosen = drawing.draw_of(folder, names, seed, options.samples)
    drawn = drawing.gather(folder, run, planned, tokenizer, chosen)
    result = replaying.replay(engine, drawn, replaying.policy_of(planned), model, events)
    judge = result.judge
    executed = record["phases"].get("execute")
    return Audit(
        of=len(names), samples=len(drawn), seed=seed,
        problems={f"{s.name[0]} document {s.name[1]}": tuple(s.problems)
                  for s in drawn if s.problems},
        joint=noise.joint_test(list(judge.values.values()), judge.rounding),
        skipped=judge.skipped, tokens=judge.tokens, worst=judge.worst, rounding=judge.rounding,
        seconds=result.seconds,
        run_seconds=executed["seconds"] if executed else None,
        hardware=loading.hardware(record, engine),
    )  # fmt: skip
