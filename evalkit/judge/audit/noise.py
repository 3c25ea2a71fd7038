"""How far rounding may move a recorded value from the model's own.

Rounding changes each logit by about the same amount. The log-probability of a token with
probability p is then off by 1 - p times that noise of a logit, which is measured on the model with
the tokens of the audited samples. docs/audit.md derives the constants (`python -m bench.noise`).

`Rounding` judges one value. `JointTest` judges all together: one value of a quantised model passes
as a rounded one, thousands do not. Its standard error is taken over samples, since samples are
drawn. `Noise` is the weaker model for `reproduce`, which has only the recorded numbers of two
records.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LAST_BIT = 2.0**-20  # of a logit from 8 to 16 in float32, and of the sum that it is divided by
SIGMAS = 6.0  # no honest value of thousands is further off
# How many times the measured noise another machine's may be. A precision below float32 rounds at
# the same places everywhere, and the noisiest honest variant (sums of rounded parts) has 1.36 times
# it, by root mean square. Other noise (float32's, a quantised model's) is measured between two ways
# to compute on one machine, and others may be further apart.
ROUNDED, OTHER = 1.4, 4.0
TOKENS = 12.0  # scales that one log-probability may be off, in `Noise`
MEAN = math.sqrt(2 / math.pi)  # of a standard normal variable's absolute value
MEDIAN = statistics.NormalDist().inv_cdf(0.75)  # likewise
CAP = 3.0  # a value counts as this far off at most, so that a few altered answers don't decide
ERRORS = 3.0  # standard errors beyond what is allowed


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
        """Return the noise of a sum of log-probabilities, in units of a logit's noise."""
        return _weight(logprobs, self.floor)

    def allowed(self, logprobs: Sequence[float]) -> float:
        """Return how far a sum of log-probabilities may be off, in nats."""
        return SIGMAS * self.spread * self.logit * self.weight(logprobs)

    @property
    def tie(self) -> float:
        """The distance of two logits up to which they are a near-tie, in nats."""
        return math.sqrt(2) * SIGMAS * self.spread * self.logit


@dataclass(frozen=True, slots=True)
class Value:
    """A token's log-probability, or a sum of several. `off` is its distance from the model's own
    value, in nats; `logprobs` are the model's own log-probabilities of the tokens."""

    off: float
    logprobs: Sequence[float]


def measure_rounding(values: Sequence[Value], spread: float) -> Rounding:
    """Return the noise of values that only rounding has changed: at least the last bit of a logit
    in float32, which equal kernels on one machine need not show."""
    finite = [value for value in values if math.isfinite(value.off)]
    plain = max(_rms([value.off for value in finite]), LAST_BIT)
    floor = min(1.0, LAST_BIT / plain)  # the last bit is there however sure a token is
    units = [value.off / _weight(value.logprobs, floor) for value in finite]
    return Rounding(max(_rms(units), LAST_BIT), spread, floor, len(finite))


@dataclass(frozen=True, slots=True)
class JointTest:
    """The test of all samples together: the median distance of the values (`times`) and their
    median with its sign (`bias`), both in units of rounding's noise; `further`: how many standard
    errors they lie beyond what another machine's rounding may do."""

    times: float
    bias: float
    further: float

    @property
    def shifted(self) -> bool:
        """Whether rounding does not explain the values as a whole."""
        return self.further > ERRORS

    def __str__(self) -> str:
        side = "higher" if self.bias > 0 else "lower"
        return (
            f"recorded log-probabilities are {self.times:.3g} times as far from the model's as its"
            f" own rounding takes them, {self.further:.1f} standard errors more than another"
            f" machine's rounding would be, and {abs(self.bias):.2g} of it {side} at the median"
        )


def joint_test(samples: Sequence[Sequence[float]], rounding: Rounding) -> JointTest:
    """Test all samples together. Each sample is the list of its values' deviations from the model's
    own, in units of a logit's noise."""
    values = [value for sample in samples for value in sample]
    if not values:
        return JointTest(0.0, 0.0, 0.0)
    times = statistics.median(map(abs, values)) / MEDIAN
    sums = [excess(sample, rounding) for sample in samples]
    return JointTest(times, statistics.median(values), standard_errors(sums))


def excess(sample: Sequence[float], rounding: Rounding) -> float:
    """Return by how much the distances of a sample's values, each capped, exceed in sum what they
    would be on average in a normal distribution of the widest noise allowed."""
    return math.fsum(min(abs(value) / rounding.spread, CAP) - MEAN for value in sample)


def standard_errors(sums: Sequence[float]) -> float:
    """Return the sum of the samples' excesses in units of that sum's standard error."""
    error = math.sqrt(math.fsum(value * value for value in sums))
    return math.fsum(sums) / error if error else 0.0


@dataclass(frozen=True, slots=True)
class Noise:
    """How far two executions' values may lie apart: `scale` is the root mean square error of a
    token's log-probability, in nats, measured over `measured` tokens against float32 (for float32,
    against each sequence computed alone)."""

    scale: float
    measured: int

    def of_tokens(self, count: int) -> float:
        """Return how far the sum of `count` log-probabilities may be off."""
        return TOKENS * self.scale * math.sqrt(max(count, 1))

    @property
    def tie(self) -> float:
        """The distance of two logits up to which they are a near-tie."""
        return math.sqrt(2) * self.of_tokens(1)


def measure_noise(errors: Sequence[float]) -> Noise:
    """Return the noise of errors of log-probabilities: at least float32's last bit."""
    finite = [error for error in errors if math.isfinite(error)]
    return Noise(max(_rms(finite), LAST_BIT), len(finite))


def _weight(logprobs: Sequence[float], floor: float) -> float:
    return math.sqrt(math.fsum(max(-math.expm1(logprob), floor) ** 2 for logprob in logprobs))


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values) / max(len(values), 1))
