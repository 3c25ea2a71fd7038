"""How far apart two runs' values may lie and still be those of one model, where only the recorded
numbers are at hand, not each token's probability: `reproduce` compares with it.

The scale is measured on the model at hand: how far its log-probabilities lie from those in float32
(or, where it computes in float32, from each sequence's alone). Two machines that round differently
are as far apart as that, times a few. What a record's values may be off the model itself is sharper
and stands in `rounding`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LAST_BIT = 2.0**-20  # of a logit from 8 to 16 in float32, and of the sum that it is divided by
TOKENS = 12.0  # scales that one log-probability may be off


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


def measure(errors: Sequence[float]) -> Noise:
    """The noise model from errors of log-probabilities; never below the last bit of a logit in
    float32, which equal kernels on one machine need not show."""
    finite = [error for error in errors if math.isfinite(error)]
    return Noise(max(_rms(finite), LAST_BIT), len(finite))


def _rms(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    return math.sqrt(math.fsum(value * value for value in values) / len(values))
