"""How far a recorded value may lie from a replayed one before it is not the same model's.

The scale is measured on the model at hand, on some of the very samples that are audited: how far
its log-probabilities lie from those in float32 (or, where it computes in float32, from each
sequence's alone). Two machines that round differently are as far apart as that, times a few; what a
few is was calibrated on unlike numerics (`python -m bench.noise`, docs/audit.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LAST_BIT = 2.0**-20  # of a logit from 8 to 16 in float32, and of the sum that it is divided by
TOKENS = 12.0  # scales that one log-probability may be off
WHOLE = 4.0  # times the scale that all of them may be, by their root mean square


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise model: `scale` is the root mean square by which a token's log-probability is off,
    in nats; `measured` on so many tokens."""

    scale: float
    measured: int

    def of_tokens(self, count: int) -> float:
        """How far the sum of `count` log-probabilities may be off."""
        return TOKENS * self.scale * math.sqrt(max(count, 1))

    @property
    def tie(self) -> float:
        """How far apart two logits may be and still be a near-tie."""
        return math.sqrt(2) * self.of_tokens(1)

    @property
    def whole(self) -> float:
        """What the root mean square over all audited tokens must not exceed."""
        return WHOLE * self.scale


def measure(errors: Sequence[float]) -> Noise:
    """The noise model from errors of log-probabilities; never below the last bit of a logit in
    float32, which equal kernels on one machine need not show."""
    finite = [error for error in errors if math.isfinite(error)]
    return Noise(max(rms(finite), LAST_BIT), len(finite))


def rms(values: Sequence[float]) -> float:
    """The root mean square."""
    if not values:
        return 0.0
    return math.sqrt(math.fsum(value * value for value in values) / len(values))
