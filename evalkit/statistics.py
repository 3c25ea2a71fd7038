"""The arithmetic of scores: means, perplexities and their standard errors, as lm-eval 0.4.13 has
them.

Pure functions of numbers, no files and no numpy. Sums are exact (`math.fsum`), so they do not
depend on the order of the values or on Python's version; lm-eval's differ from them in the last
bits at most.
"""

import math
from collections.abc import Sequence

Pairs = Sequence[tuple[float, float]]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    assert values, "a mean needs a value"
    return _sum(values) / len(values)


def sample_stddev(values: Sequence[float]) -> float:
    """The standard deviation with Bessel's correction (n - 1), of at least two values."""
    assert len(values) > 1, "a sample standard deviation needs two values"
    centre = mean(values)
    return math.sqrt(_sum([(value - centre) ** 2 for value in values]) / (len(values) - 1))


def standard_error(values: Sequence[float]) -> float:
    """The standard error of a mean: sample stddev / sqrt(n), lm-eval's `mean_stderr`."""
    return sample_stddev(values) / math.sqrt(len(values))


def weighted_mean(values: Sequence[float], sizes: Sequence[float]) -> float:
    """A group's score: its members' scores weighted by their sizes."""
    assert len(values) == len(sizes), "a size for every value"
    return _sum([value * size for value, size in zip(values, sizes, strict=True)]) / _sum(sizes)


def pooled_standard_error(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """The standard error of a size-weighted group mean, lm-eval's `pooled_sample_stderr`.

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
