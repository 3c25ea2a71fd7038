"""Means and errors in single precision, as numpy's float32 gives them: a task's own code may score
in it, and lm-eval's sums of such values are of that precision.

A sum, product or quotient of two such numbers that is computed in double precision and rounded is
the one that is computed in single precision, so no numpy is needed.
"""

import math
import struct
from collections.abc import Sequence


def mean(values: Sequence[float], sizes: Sequence[int] | None = None) -> float | None:
    """Return the mean in single precision, weighted by sizes if they are given: what lm-eval gives
    where a task's own code scores in numpy's float32. None unless each value is such a number, and
    not all are whole."""
    if all(float(value).is_integer() for value in values):
        return None
    if any(not math.isfinite(value) or _single(value) != value for value in values):
        return None
    weights = sizes or [1] * len(values)
    terms = [_single(value * weight) for value, weight in zip(values, weights, strict=True)]
    return _single(_sum(terms) / sum(weights))


def error(values: Sequence[float]) -> float | None:
    """Return the standard error of `mean`, as lm-eval takes it; None for one value."""
    centre = mean(values)
    if centre is None or len(values) < 2:
        return None
    squares = [_single(_single(value - centre) ** 2) for value in values]
    variance = _single(_sum(squares) / (len(values) - 1))
    return math.sqrt(variance) / math.sqrt(len(values))


def _single(value: float) -> float:
    """Return a number rounded to single precision."""
    try:
        rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf
    return rounded


def _sum(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total = _single(total + value)
    return total
