"""What `bench.noise` found, as docs/audit.md."""

import random
from dataclasses import dataclass

from bench.tables import machine, on, table
from evalkit.audit import noise

DRAWS = 2000
COUNTS = (1, 3, 10, 30, 100)
SEED = 0


@dataclass(frozen=True)
class Outcome:
    """A variant's audit: which samples failed, each sample's errors, and the noise model."""

    name: str
    honest: bool
    failed: list[bool]
    errors: list[list[float]]
    noise: noise.Noise

    def caught(self, count: int, source: random.Random) -> float:
        """How often an audit of `count` samples fails."""
        found = 0
        for _ in range(DRAWS):
            drawn = source.sample(range(len(self.failed)), min(count, len(self.failed)))
            spread = noise.rms([error for index in drawn for error in self.errors[index]])
            found += any(self.failed[index] for index in drawn) or spread > self.noise.whole
        return found / DRAWS

    @property
    def spread(self) -> float:
        """How far recorded and replayed values are apart, in scales of the noise."""
        return noise.rms([e for errors in self.errors for e in errors]) / self.noise.scale


def page(outcomes: list[Outcome], cost: str, samples: int) -> str:
    """docs/audit.md. `samples`: how many were judged of each variant."""
    source = random.Random(SEED)
    tables = {}
    for honest in (True, False):
        rows = [
            [o.name, f"{o.spread:.2f}", f"{sum(o.failed) / len(o.failed):.1%}",
             *[f"{o.caught(count, source):.1%}" for count in COUNTS]]
            for o in outcomes if o.honest is honest
        ]  # fmt: skip
        tables[honest] = table(
            ["answered by", "apart, scales", "samples failed", *[f"N = {n}" for n in COUNTS]], rows
        )
    return PAGE.format(
        on=on(machine()), samples=samples, draws=DRAWS, cost=cost,
        alarms=tables[True], caught=tables[False], tokens=noise.TOKENS, whole=noise.WHOLE,
    )  # fmt: skip


PAGE = """# What an audit catches

Written by `python -m bench.noise`. {on}

`evalkit audit RUN --sample N` replays N recorded samples on the model: one forward pass over each
prompt and its recorded answer, no decoding. A recorded token must be the most probable one or a
near-tie, a log-probability the replayed one, a text its tokens', all within the noise of the
numerics. That noise is measured on the model at hand: how far its log-probabilities lie from those
in float32, or, where it computes in float32, from each sequence's alone. One log-probability may be
off by {tokens:g} times that scale; the root mean square of all of them by {whole:g} times.
Both numbers leave room above what the first table needs, for other hardware; the scale is every
model's own.

{cost}

## False alarms

{samples} samples of the demo's tasks, answered by the model that the record
names, otherwise than it was audited. How often an audit of N samples fails, over {draws:,} draws:

{alarms}

## Detection

Likewise for answers that are not what the record says:

{caught}

What can't be told from rounding is not caught: a computation in more precision than the record
says, or weights that differ by less than bf16 rounds. A single altered sample among many is caught
only when it is drawn: N samples find a share of 3/N of altered ones with 95% probability. On like
hardware and software `evalkit reproduce RUN --sample N` is sharper: whole batches must come out
equal to the last bit.
"""
