"""The arithmetic of scores: means, perplexities and their standard errors, as lm-eval 0.4.13 has
them; and the tests that say what a difference between two runs is worth.

Pure functions of numbers, no files and no numpy. Sums are exact (`math.fsum`), so they do not
depend on the order of the values or on Python's version; lm-eval's differ from them in the last
bits at most. tests/test_statistics.py holds the tests against scipy and statsmodels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

Pairs = Sequence[tuple[float, float]]
ALPHA, POWER = 0.05, 0.8  # of every test and detectable difference that evalkit prints
_TINY = 1e-300


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    assert values, "a mean needs a value"
    return _sum(values) / len(values)


def sample_stddev(values: Sequence[float]) -> float:
    """Return the standard deviation with Bessel's correction (n - 1), of at least two values."""
    assert len(values) > 1, "a sample standard deviation needs two values"
    centre = mean(values)
    return math.sqrt(_sum([(value - centre) ** 2 for value in values]) / (len(values) - 1))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean: sample stddev / sqrt(n), lm-eval's `mean_stderr`."""
    return sample_stddev(values) / math.sqrt(len(values))


def weighted_mean(values: Sequence[float], sizes: Sequence[float]) -> float:
    """Return a group's score: its members' scores weighted by their sizes."""
    assert len(values) == len(sizes), "a size for every value"
    return _sum([value * size for value, size in zip(values, sizes, strict=True)]) / _sum(sizes)


def pooled_standard_error(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the standard error of a size-weighted group mean, lm-eval's `pooled_sample_stderr`.

    The pooled variance sum((n_i - 1) s_i^2) / (sum n_i - k), with s_i^2 = n_i SE_i^2, over sum n_i.
    Source: https://en.wikipedia.org/wiki/Pooled_variance
    """
    assert len(errors) == len(sizes), "a size for every error"
    pairs = zip(errors, sizes, strict=True)
    variance = _sum([(size - 1) * size * error**2 for error, size in pairs])
    return math.sqrt(variance / (sum(sizes) - len(sizes)) / sum(sizes))


def unweighted_standard_error(errors: Sequence[float]) -> float:
    """The standard error of the plain mean of k independent means: sqrt(sum SE_i^2) / k, lm-eval's
    `unweighted_mean_stderr`. Source: Var(sum X_i) = sum Var(X_i) for independent X_i."""
    return math.sqrt(_sum([error**2 for error in errors])) / len(errors)


def median(values: Sequence[float]) -> float:
    """lm-eval's median: the upper one of an even number of values."""
    return sorted(values)[len(values) // 2]


def perplexity(loglikelihoods: Sequence[float]) -> float:
    """exp(-mean log-likelihood), of values in nats."""
    return _exp(-mean(loglikelihoods))


def weighted_perplexity(pairs: Pairs) -> float:
    """exp(-sum log-likelihood / sum units), of (nats, words or bytes) pairs."""
    return _exp(-_per_unit(pairs))


def bits_per_byte(pairs: Pairs) -> float:
    """-sum log-likelihood / sum bytes / ln 2, of (nats, bytes) pairs."""
    return -_per_unit(pairs) / math.log(2)


@dataclass(frozen=True, slots=True)
class Difference:
    """An estimated difference, its standard error, and the degrees of freedom of that error.

    `error` is None where too few clusters (fewer than two) give none.
    """

    value: float
    error: float | None
    freedom: float

    @property
    def p(self) -> float | None:
        """Two-sided p-value of no difference, Student's t; None without an error."""
        if self.error is None:
            return None
        return 2 * t_tail(self._ratio(0.0), self.freedom)

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float] | None:
        """Return the two-sided confidence interval."""
        if self.error is None:
            return None
        half = t_quantile(0.5 + level / 2, self.freedom) * self.error
        return self.value - half, self.value + half

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that such a comparison finds with 80% probability, at 5%
        two-sided: about 2.8 standard errors."""
        if self.error is None:
            return None
        quantiles = t_quantile(1 - ALPHA / 2, self.freedom) + t_quantile(POWER, self.freedom)
        return quantiles * self.error

    def equivalence(self, margin: float) -> float | None:
        """The p-value of two one-sided tests (TOST): small where |difference| < margin is shown."""
        if self.error is None:
            return None
        below, above = self._tail(-margin), 1 - self._tail(margin)
        return max(below, above)

    def _tail(self, bound: float) -> float:
        """P(T >= (value - bound) / error)."""
        if self.error == 0:
            return float(self.value < bound) if self.value != bound else 0.5
        ratio = (self.value - bound) / (self.error or _TINY)
        tail = t_tail(abs(ratio), self.freedom)
        return tail if ratio >= 0 else 1 - tail

    def _ratio(self, bound: float) -> float:
        distance = abs(self.value - bound)
        if not self.error:
            return math.inf if distance else 0.0
        return distance / self.error


def clustered(clusters: Sequence[Pairs]) -> Difference:
    """Return the mean of paired differences and its standard error, clustered.

    Each cluster holds the (difference, weight) pairs of documents whose errors may be correlated;
    a cluster a document gives the ordinary paired t-test. The estimate is sum(d w) / sum(w); with
    S_c the sum of w (d - estimate) in cluster c, its variance is C/(C-1) sum(S_c^2) / sum(w)^2, on
    C - 1 degrees of freedom. Source: Liang and Zeger 1986, as in arXiv:2411.00640.
    """
    weight = math.fsum(w for cluster in clusters for _, w in cluster)
    value = math.fsum(d * w for cluster in clusters for d, w in cluster) / weight
    count = len(clusters)
    if count < 2:
        return Difference(value, None, 0)
    sums = [math.fsum(w * (d - value) for d, w in cluster) for cluster in clusters]
    variance = count / (count - 1) * math.fsum(total**2 for total in sums)
    error = math.sqrt(variance) / weight
    return Difference(value, 0.0 if error < 1e-15 else error, count - 1)


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p-value: of n discordant pairs, as uneven a split or more, each
    pair falling either way with probability 1/2."""
    n, fewer = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    log_half = n * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def mcnemar_detectable(discordant: int, n: int) -> float:
    """The smallest difference that McNemar's test finds with 80% probability: 2.8 sqrt(d / n) for
    a discordant share d, and no less than the six documents below which no split is significant."""
    normal = NormalDist()
    quantiles = normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(POWER)
    return max(quantiles * math.sqrt(discordant) / n, 6 / n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def t_tail(t: float, freedom: float) -> float:
    """P(T >= t) of Student's t for t >= 0: half the regularised incomplete beta function."""
    if math.isinf(t):
        return 0.0
    return 0.5 * _beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(share: float, freedom: float) -> float:
    """The t below which Student's t lies with probability `share` (0.5 to 1), by bisection."""
    assert 0.5 <= share < 1, "the upper half of the distribution"
    return _root(lambda t: (1 - share) - t_tail(t, freedom))


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of t >= 0 crosses 0, to the last bits."""
    low, high = 0.0, 1.0
    while rising(high) < 0:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high


def _beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b).
    Source: its continued fraction, DLMF 8.17.22, by Lentz's method."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below that
        return 1 - _beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * fraction / a


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _per_unit(pairs: Pairs) -> float:
    return _sum([nats for nats, _ in pairs]) / _sum([units for _, units in pairs])


def _sum(values: Sequence[float]) -> float:
    if all(map(math.isfinite, values)):
        return math.fsum(values)
    return sum(values)  # fsum raises for inf - inf; here that is nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def wilson(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a share of `count` yes-or-no outcomes: unlike share +- z SE it
    stays within 0 and 1 and has a width where the share is 0 or 1.

    Source: Wilson 1927, https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval
    """
    assert count > 0, "a share needs an outcome"
    squared = z * z / count
    centre = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)
