"""What `bench.noise` found, as docs/audit.md."""

import random
from collections import Counter
from dataclasses import dataclass

from bench import variants
from bench.tables import machine, on, table
from evalkit.judge import audit
from evalkit.judge.audit import noise
from evalkit.judge.audit.noise import JointTest, Rounding

DRAWS = 1000
COUNTS = (10, 30, 100)
SEED = 0
TUNED_ON = 20  # of the questions


@dataclass(frozen=True)
class Outcome:
    """A variant's audit: which samples failed, each sample's values in a logit's noise, and the
    rounding they were held against; the variant's own margins of the written tokens; of an honest
    one `elsewhere`, the same audited on the machine that rounds least."""

    name: str
    honest: bool
    failed: list[bool]
    values: list[list[float]]
    rounding: Rounding
    margins: list[float]
    elsewhere: "Outcome | None" = None

    def whole(self) -> JointTest:
        """The test of all samples together."""
        return noise.joint_test(self.values, self.rounding)

    def kinds(self, count: int) -> Counter[str]:
        """How often an audit of `count` samples names each kind of difference."""
        source = random.Random(SEED)
        sums = [noise.excess(sample, self.rounding) for sample in self.values]
        found: Counter[str] = Counter()
        for _ in range(DRAWS):
            drawn = source.choices(range(len(sums)), k=count)
            shifted = noise.standard_errors([sums[index] for index in drawn]) > noise.ERRORS
            found[audit.kind(shifted, sum(self.failed[i] for i in drawn), count)] += 1
        return found


def page(outcomes: list[Outcome], samples: int, model: str) -> str:
    """docs/audit.md. `samples`: how many were judged of each variant."""
    values = sum(map(len, outcomes[0].values))
    return PAGE.format(
        on=on(machine()), samples=samples, draws=DRAWS, model=model, values=f"{values:,}",
        alarms=_alarms([o for o in outcomes if o.honest]),
        caught=_caught([o for o in outcomes if not o.honest]), sigmas=noise.SIGMAS,
        rounded=noise.ROUNDED, other=noise.OTHER, errors=noise.ERRORS, cap=noise.CAP,
        noise=f"{outcomes[0].rounding.logit:.3f}", rank=variants.RANK, lora=variants.LORA_CHANGE,
        rate=variants.LEARNING_RATE, tuned=TUNED_ON, missed=_missed(outcomes),
    )  # fmt: skip


def _alarms(outcomes: list[Outcome]) -> str:
    head = ["answered by", "times as far", "largest value", *[f"N = {n}" for n in COUNTS],
            "N = 100, elsewhere"]  # fmt: skip
    rows = []
    for each in outcomes:
        assert each.elsewhere is not None, "an honest one was audited twice"
        largest = max(abs(value) for values in each.values for value in values)
        rows.append(
            [each.name, f"{each.whole().times:.2f}", f"{largest:.1f}",
             *[_share(DRAWS - each.kinds(n)[audit.ROUNDING]) for n in COUNTS],
             _share(DRAWS - each.elsewhere.kinds(100)[audit.ROUNDING])]
        )  # fmt: skip
    return table(head, rows)


def _caught(outcomes: list[Outcome]) -> str:
    head = ["answered by", "times as far", "samples wrong by themselves",
            *[f"N = {n}" for n in COUNTS], "named systematic, N = 100",
            "tokens chosen otherwise", "the furthest, of what is allowed"]  # fmt: skip
    rows = []
    for each in outcomes:
        kinds = {n: each.kinds(n) for n in COUNTS}
        behind = [-margin for margin in each.margins if margin < 0]
        rows.append(
            [each.name, f"{each.whole().times:.2f}", f"{sum(each.failed) / len(each.failed):.1%}",
             *[_share(DRAWS - kinds[n][audit.ROUNDING]) for n in COUNTS],
             _share(kinds[100][audit.SYSTEMATIC]), f"{len(behind) / len(each.margins):.1%}",
             f"{max(behind, default=0.0) / each.rounding.tie:.2f}"]
        )  # fmt: skip
    return table(head, rows)


def _missed(outcomes: list[Outcome]) -> str:
    """The variants with other weights that 100 samples miss more often than not."""
    names = [
        each.name for each in outcomes
        if not each.honest and "altered" not in each.name and "float32" not in each.name
        and each.kinds(100)[audit.ROUNDING] > DRAWS / 2
    ]  # fmt: skip
    return ", ".join(names) if names else "none of those above"


def _share(count: int) -> str:
    return f"{count / DRAWS:.1%}"


PAGE = """# What an audit catches

Written by `python -m bench.noise MODEL`. {on}

`evalkit audit RUN --sample N` replays N recorded samples on the model: one forward pass over each
prompt and its recorded answer, no decoding. Where the record's numerics round (bf16, float16),
there is a second pass in float32 from the same weights: recorded values are held against that one,
and how far rounding takes them is measured on the first one, for the very same tokens. So an audit
costs N of the run's prompts, twice for bf16, and loading the model.

Rounding changes each logit by about the same. A token's log-probability is then off by 1 - p times
a logit's noise, p its probability, so one number describes sure and doubtful tokens alike. In that
unit honest values are nearly normal with a standard deviation of 1: for this model it is {noise}
nats.

- **One value** may be off by {sigmas:g} x {rounded} of its standard deviations, and a written
  token may be behind the best one by as much, of two logits. A text must be its tokens', a prompt
  the plan's.
- **All together**: the mean distance of all values (each counted as {cap:g} times the limit at
  most, so that a few altered answers don't decide) must not exceed that of a normal distribution
  of {rounded} standard deviations by more than {errors:g} standard errors, taken over samples.

Where nothing better than the record's numerics is at hand (float32, a quantised model), noise is
how far packed sequences lie from the same ones alone, and {other:g} stands in {rounded}'s place.

The verdict names what it saw: `rounding` (passed), `answers` (some samples are wrong by
themselves), or `systematic` (all values are shifted, or most samples are wrong): other weights or
numerics than recorded. The exit code is 1 for the last two.

## False alarms

{model}, {samples} samples of ARC-Challenge, HellaSwag, MMLU and BBH ({values} values), recorded in
bf16 and answered by the model that the record names, otherwise than it was audited. "Times as far"
is the median distance in units of the auditor's own rounding, then come the largest one and how
often an audit of N samples fails, over {draws:,} draws with replacement. The last column is for an
auditor whose machine rounds least of all of these.

{alarms}

The limits (the {rounded} and the {errors:g} standard errors) were chosen by as many other documents
of the same tasks; the documents here had no say in them. Sums of rounded parts, the noisiest honest
way found there, are what sets {rounded}. The last column leaves out an auditor with logits in
float32, because evalkit's engine rounds them on any machine: such a one would measure too little
rounding, and take sums of rounded parts for a shift. Not among them: a CPU without oneDNN, whose
products in bf16 take too long here, and GPUs, whose rounding may be more.

## Detection

Likewise for answers that are not what the record says:

{caught}

Weights were changed in all layers' matrices and rounded to the nearest; a LoRA of rank {rank} is
random, {lora:.0%} of the norm of the query and value matrices that it is added to; fine-tuning is
AdamW with a learning rate of {rate:g} on {tuned} of the questions. Altered answers: a choice's
log-likelihood put just above the best one's, a text's log-probabilities a nat lower.

## What can't be told apart

- Weights whose change moves logits by less than rounding does: {missed}. Rounding and such a
  change add up by their squares, so a change of half of rounding's size makes values 1.12 times as
  far off, and other machines' rounding differs by that. In a model of two layers even int8 is such
  a change.
- Weights that are on the grid already that they are rounded to. This model's come from a file of 4
  bits (Q4_1): rounded so again they would be the same.
- Texts of other weights with log-probabilities computed by the right ones: then only tokens that
  are further behind the best one than two logits' limit show (the last column; over 1, some
  would). Log-likelihoods can't be forged so without the right model answering.
- A computation in more precision than the record says: its values lie nearer to the model's own.
- Single altered samples are caught only when they are drawn: N samples find a share of 3/N with
  95% probability. With fewer than some 20 samples only single values are judged.

In a record of float32 rounding is thousands of times less, and such changes show in nearly every
sample by itself (`tests/test_audit.py`). On like hardware and software `evalkit reproduce RUN
--sample N` is sharper: whole batches must come out equal to the last bit.
"""
