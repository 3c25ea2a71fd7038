"""The numbers behind a report's plots: how sure the model was and how often it was right, and by
what margin it chose.

Pure functions from numbers to points in a plot's own coordinates; the templates draw them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.base import statistics

BINS, BARS = 10, 24  # of the confidence plot, of the histogram
WIDTH, HEIGHT = 300.0, 200.0  # of a plot's inside, in its own units


@dataclass(frozen=True, slots=True)
class Point:
    """One bin of a calibration plot, in plot coordinates (y runs down), with its numbers."""

    x: float
    y: float
    low: float
    high: float
    radius: float
    confidence: float
    right: float
    count: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Bins of confidence, and the expected calibration error: the mean distance of confidence and
    accuracy, weighted by documents."""

    points: list[Point]
    error: float


def calibration(confidences: Sequence[float], rights: Sequence[float]) -> Calibration:
    """Sort documents into ten equal bins of confidence."""
    assert len(confidences) == len(rights), "a score for every confidence"
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for sure, right in zip(confidences, rights, strict=True):
        bins[min(int(sure * BINS), BINS - 1)].append((sure, right))
    largest = max(map(len, bins), default=1)
    points, error = [], 0.0
    for pairs in filter(None, bins):
        count = len(pairs)
        sure = math.fsum(pair[0] for pair in pairs) / count
        right = math.fsum(pair[1] for pair in pairs) / count
        low, high = statistics.wilson(right, count)
        error += count * abs(sure - right)
        points.append(
            Point(
                sure * WIDTH, (1 - right) * HEIGHT, (1 - low) * HEIGHT, (1 - high) * HEIGHT,
                2 + 4 * math.sqrt(count / largest), sure, right, count,
            )
        )  # fmt: skip
    return Calibration(points, error / max(len(confidences), 1))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of a histogram: `right` below `wrong`, in plot coordinates, with its numbers."""

    x: float
    width: float
    right_y: float
    right_height: float
    wrong_y: float
    wrong_height: float
    low: float
    high: float
    num_right: int
    num_wrong: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Margins in equal bins up to `top` nats; the last bin holds larger ones, too."""

    bars: list[Bar]
    top: float
    highest: int


def histogram(margins: Sequence[float], rights: Sequence[float]) -> Histogram:
    """Count documents by margin in nats, right and wrong ones apart."""
    assert len(margins) == len(rights), "a score for every margin"
    ordered = sorted(margins)
    top = ordered[int(0.98 * (len(ordered) - 1))] if ordered else 1.0
    top = max(top, 1e-9)
    counts = [[0, 0] for _ in range(BARS)]
    for margin, right in zip(margins, rights, strict=True):
        counts[min(int(margin / top * BARS), BARS - 1)][right >= 0.5] += 1
    highest = max(map(sum, counts), default=1) or 1
    scale, step = HEIGHT / highest, WIDTH / BARS
    return Histogram(
        [
            Bar(
                index * step + 0.5, step - 1,
                HEIGHT - right * scale, right * scale,
                HEIGHT - (right + wrong) * scale, wrong * scale,
                index / BARS * top, (index + 1) / BARS * top, right, wrong,
            )
            for index, (wrong, right) in enumerate(counts)
        ],
        top,
        highest,
    )  # fmt: skip
