"""The test of all samples of an audit together: whether recorded values lie as near to the model's
own as rounding leaves them.

A single value of a quantised model passes for a rounded one. Thousands do not: quantised, tuned or
merged weights move every log-probability a little further than rounding does. Samples, not values,
are what is drawn, so the test's standard error is taken over samples.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.judge.audit.rounding import Rounding

MEAN = math.sqrt(2 / math.pi)  # of a normal value's distance from none, in standard deviations
MEDIAN = statistics.NormalDist().inv_cdf(0.75)  # likewise
CAP = 3.0  # a value counts as this far off at most, so that a few altered answers don't decide
ERRORS = 3.0  # standard errors beyond what is allowed


@dataclass(frozen=True, slots=True)
class Whole:
    """The test's outcome. `times`: how many times rounding's noise the recorded values are off, by
    their median; `bias`: their median with its sign, in the same unit; `further`: by how many
    standard errors they are further off than another machine's rounding may take them."""

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


def judge(samples: Sequence[Sequence[float]], rounding: Rounding) -> Whole:
    """Test `samples`: of each, its values' deviations from the model's own, in a logit's noise."""
    values = [value for sample in samples for value in sample]
    if not values:
        return Whole(0.0, 0.0, 0.0)
    times = statistics.median(map(abs, values)) / MEDIAN
    sums = [excess(sample, rounding) for sample in samples]
    return Whole(times, statistics.median(values), further(sums))


def excess(sample: Sequence[float], rounding: Rounding) -> float:
    """By how much the distances of a sample's values, each capped, exceed in sum what they would be
    on average in a normal distribution of the widest noise allowed."""
    return math.fsum(min(abs(value) / rounding.spread, CAP) - MEAN for value in sample)


def further(sums: Sequence[float]) -> float:
    """The samples' excesses together, in the standard error of a sum over independent samples."""
    error = math.sqrt(math.fsum(each * each for each in sums))
    return math.fsum(sums) / error if error else 0.0
