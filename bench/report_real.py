"""The tables of `make bench-real`, from its figures."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from bench.real_pieces import DTYPES, SIDES
from bench.tables import on, table
from evalkit.base import statistics

Figures = dict[str, Any]
NOTHING = "-"


def text(figures: Figures) -> str:
    """Everything that goes into the docs."""
    columns = [f"{dtype}: {side}" for dtype in DTYPES for side in SIDES]
    scores = ["score ± 95%", "documents", *columns, *(f"{dtype}: differ" for dtype in DTYPES)]
    apart = ["to lm-eval's float32", "documents", "shift", "mean", "root mean square", "largest",
             "other choice", "margins up to", "per character", "margins up to",
             "texts equal", "margin where they part"]  # fmt: skip
    spent = ["spent", "processor s: lm-eval", "evalkit", "ratio", "seconds: lm-eval", "evalkit",
             "ratio", "cores: lm-eval", "evalkit", "tokens computed: lm-eval", "evalkit",
             "ratio"]  # fmt: skip
    return "\n\n".join(
        [
            on(figures["machine"]),
            table(scores, list(_scores(figures))),
            table(apart, list(_distances(figures))),
            table(spent, list(_spent(figures))),
        ]
    )


def _scores(figures: Figures) -> Iterator[list[str]]:
    for name, work in figures["works"].items():
        metrics = {
            metric: None
            for one in work["dtypes"].values()
            for side in one["scores"].values()
            for metric in side
        }
        for metric in metrics:
            cells = [f"{name}: {metric.removesuffix(',none')}", f"{work['documents']:,}"]
            for one in work["dtypes"].values():
                cells += [_score(one["scores"].get(side), metric) for side in SIDES]
            for one in work["dtypes"].values():
                cells.append(NOTHING if one["differ"] is None else str(one["differ"][metric]))
            yield cells


def _score(scores: dict[str, list[Any]] | None, metric: str) -> str:
    if scores is None:
        return NOTHING
    value, error = scores[metric]
    if not isinstance(error, float) or not error:  # a score of 0 or 1: that says nothing
        return f"{value:.4f}"
    return f"{value:.4f} ± {statistics.Z95 * error:.4f}"


def _distances(figures: Figures) -> Iterator[list[str]]:
    for name, work in figures["works"].items():
        for dtype, one in work["dtypes"].items():
            for side in SIDES:
                if (dtype, side) == (DTYPES[0], SIDES[0]):
                    continue
                found = one["distance"][side]
                if found["documents"]:
                    yield [f"{name}, {side} in {dtype}", str(found["documents"]), *_apart(found)]


def _apart(found: dict[str, Any]) -> list[str]:
    cells = [NOTHING] * 10
    if found["loglikelihoods"]:
        keys = ("shift", "mean", "root_mean_square", "largest")
        cells[:4] = [f"{found[key]:.2e}" for key in keys]
        for place, metric in ((4, "acc"), (6, "acc_norm")):
            flips = found["flips"][metric]
            cells[place] = str(len(flips))
            cells[place + 1] = f"{max(flips):.3f}" if flips else NOTHING
    if found["texts"]:
        cells[8] = f"{found['equal']} of {found['texts']}"
        known = [margin for margin in found["parted"] if margin is not None]
        if known:
            cells[9] = f"{median(known):.3f} ({max(known):.3f} at most)"
    return cells


def _spent(figures: Figures) -> Iterator[list[str]]:
    for name, work in figures["works"].items():
        for dtype, one in work["dtypes"].items():
            both = [one["spent"].get(side) for side in SIDES]
            if not any(both):
                continue
            cells = [f"{name}, {dtype}"]
            for key in ("cpu", "seconds", "cores", "tokens"):
                cells += _pair(both, key)
            yield cells


def _pair(both: list[dict[str, Any] | None], key: str) -> list[str]:
    """A figure of both sides, and their ratio where both are there; of the clock's seconds, only
    where both could use as many cores."""
    if key == "cores":
        return [NOTHING if one is None else "/".join(map(str, one[key])) for one in both]
    cells = [NOTHING if one is None else f"{one[key]:,.0f}" for one in both]
    there = [one for one in both if one is not None]
    if len(there) < len(both) or (key == "seconds" and there[0]["cores"] != there[1]["cores"]):
        return [*cells, NOTHING]
    theirs, ours = (one[key] for one in there)
    return [*cells, f"{theirs / ours:.1f}"]
