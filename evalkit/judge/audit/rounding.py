"""How far rounding takes a log-probability from the model's own, and how far it may be off.

Rounding changes each logit by about the same, whatever its token: nearly normal, with no bias. By
the derivative of a log-softmax, a token's log-probability is then off by 1 - p times a logit's
noise, p its probability. So one number describes all tokens, sure ones and doubtful ones: a logit's
noise, measured on the model at hand by the audited samples' own tokens. In that unit deviations of
honest numerics are normal with a standard deviation of 1 (`python -m bench.noise`, docs/audit.md,
which is also where the constants come from).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LAST_BIT = 2.0**-20  # of a logit from 8 to 16 in float32, and of the sum that it is divided by
SIGMAS = 6.0  # no honest value of thousands is further off
# How many times the measured noise another machine's may be. A precision below float32 rounds at
# the same places everywhere, and the noisiest honest variant (sums of rounded parts) has 1.36 times
# it, by root mean square. Other noise (float32's, a quantised model's) is measured between two ways
# to compute on one machine, and others may be further apart.
ROUNDED, OTHER = 1.4, 4.0


@dataclass(frozen=True, slots=True)
class Rounding:
    """The noise of a model's numerics: `logit` is the root mean square by which a logit is off, in
    nats, `spread` how many times that another machine's may be, `floor` the least weight of a
    token, `measured` the number of values that it was measured on."""

    logit: float
    spread: float
    floor: float
    measured: int

    def weight(self, logprobs: Sequence[float]) -> float:
        """The root mean square of a sum of log-probabilities' noise, in a logit's noise."""
        return _weight(logprobs, self.floor)

    def allowed(self, logprobs: Sequence[float]) -> float:
        """How far a sum of log-probabilities may be off, in nats."""
        return SIGMAS * self.spread * self.logit * self.weight(logprobs)

    @property
    def tie(self) -> float:
        """How far apart two logits may be and still be a near-tie, in nats."""
        return math.sqrt(2) * SIGMAS * self.spread * self.logit


@dataclass(frozen=True, slots=True)
class Value:
    """A recorded or replayed number: a token's log-probability, or a sum of several. `off`: from
    the model's own, in nats; `logprobs` are the model's own of its tokens."""

    off: float
    logprobs: Sequence[float]


def measure(values: Sequence[Value], spread: float) -> Rounding:
    """The noise, from values that only rounding has changed. Never less than the last bit of a
    logit in float32, which equal kernels on one machine need not show."""
    finite = [value for value in values if math.isfinite(value.off)]
    plain = max(_rms([value.off for value in finite]), LAST_BIT)
    floor = min(1.0, LAST_BIT / plain)  # the last bit is there however sure a token is
    units = [value.off / _weight(value.logprobs, floor) for value in finite]
    return Rounding(max(_rms(units), LAST_BIT), spread, floor, len(finite))


def _weight(logprobs: Sequence[float], floor: float) -> float:
    return math.sqrt(math.fsum(max(-math.expm1(each), floor) ** 2 for each in logprobs))


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values) / max(len(values), 1))
