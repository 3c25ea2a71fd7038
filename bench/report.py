"""The tables of `make bench`, from its figures."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from bench.agreement import Agreement
from bench.tables import on, spread, table
from bench.workloads import WORKLOADS

GOALS = {work.name: work.goal for work in WORKLOADS}
VARIANTS = {"threads": "one process, a thread a core", "workers": "a process a core, a thread each"}
SIDES = ("lm-eval", *VARIANTS)
PARTS = ("linear", "head", "attention", "model", "outside", "python")
Figures = dict[str, Any]


def speed(figures: Figures) -> str:
    """Everything that goes into the docs."""
    variant = figures["variant"]
    least = f"{figures['repetitions']} repetitions; medians, in brackets the least and the greatest"
    return "\n\n".join(
        [
            f"{on(figures['machine'])} Documents from {figures['documents']}. {least}.",
            table(
                ["seconds", "lm-eval, batch 4", "lm-eval, best other", *VARIANTS.values(),
                 "ratio to batch 4", "asked", "ratio to best", "largest difference"],
                list(_ratios(figures)),
            ),
            f"Ratios are those of evalkit in {VARIANTS[variant]}: the faster one in total. The"
            " spread of a ratio is that of each repetition's own. Batch sizes 1, 8, 16 and 32 were"
            " tried once each; the best is in brackets.",
            table(
                ["computed", "tokens: lm-eval", "evalkit", "unique", "computed / unique",
                 "padding", "head: lm-eval", "evalkit", "steps: lm-eval", "evalkit",
                 "KV moved, GB: lm-eval", "evalkit", "peak memory, MB: lm-eval", "evalkit"],
                list(_work(figures)),
            ),
            table(
                ["of the time", "layers' products", "head", "attention", "rest of the model",
                 "outside the model", "Python", "products alone, s", "their share",
                 "share of peak"],
                list(_profiles(figures)),
            ),
            f"Measured peak: {_peak(figures) / 1e9:.0f} GFLOP/s.",
        ]
    )  # fmt: skip


def core(figures: Figures) -> str:
    """What `make bench-core` puts into the docs."""
    variant, members = figures["variant"], figures["members"]
    rows = []
    for name, one in members.items():
        counts = [f"{one['documents']:,}", f"{one['requests']:,}"]
        times = [one["seconds"][side] for side in SIDES]
        ratio = one["seconds"]["lm-eval"] / one["seconds"][variant]
        agreed = str(Agreement(**one["agreement"]))
        rows.append([name, *counts, *(f"{t:,.0f}" for t in times), f"{ratio:.1f}", agreed])
    total = {side: sum(one["seconds"][side] for one in members.values()) for side in SIDES}
    ratio = total["lm-eval"] / total[variant]
    rows.append(["**all**", "", "", *(f"{t:,.0f}" for t in total.values()), f"**{ratio:.1f}**", ""])
    head = ["2% of", "documents", "requests", "lm-eval, batch 4, s",
            *(f"evalkit: {words}, s" for words in VARIANTS.values()), "ratio",
            "largest difference"]  # fmt: skip
    where = f"{on(figures['machine'])} Documents from {figures['documents']}."
    return f"{where}\n\n{table(head, rows)}\n\nThe ratio is that of {VARIANTS[variant]}."


def _peak(figures: Figures) -> float:
    return float(max(figures["matmul_peak_flops"].values()))


def _ratios(figures: Figures) -> Iterator[list[str]]:
    variant = figures["variant"]
    for name, one in figures["workloads"].items():
        seconds = one["seconds"]
        ours = seconds[variant]
        pairs = [their / our for their, our in zip(seconds["lm-eval"], ours, strict=True)]
        ratio = median(seconds["lm-eval"]) / median(ours)
        to_best = min(median(seconds["lm-eval best"]), median(seconds["lm-eval"])) / median(ours)
        yield [
            name,
            spread(seconds["lm-eval"]),
            f"{spread(seconds['lm-eval best'])} [{one['best']}]",
            spread(seconds["threads"], 2),
            spread(seconds["workers"], 2),
            f"**{ratio:.1f}** ({min(pairs):.1f} to {max(pairs):.1f})",
            f"{GOALS[name]:g}",
            f"{to_best:.1f}",
            str(Agreement(**one["agreement"][variant])),
        ]


def _work(figures: Figures) -> Iterator[list[str]]:
    gigabytes = figures["model"]["key_bytes"] / 1e9
    for name, one in figures["workloads"].items():
        needed, made = one["needed"], one["passes"]
        peak = one["peak_bytes"]
        yield [
            name,
            *(f"{made[side]['tokens']:,}" for side in ("lm-eval", "evalkit")),
            f"{needed['unique']:,}",
            f"{needed['planned'] / needed['unique']:.3f}",
            f"{1 - needed['planned'] / needed['padded']:.1%}",
            *(f"{made[side]['head']:,}" for side in ("lm-eval", "evalkit")),
            *(f"{made[side]['steps']:,}" for side in ("lm-eval", "evalkit")),
            *(f"{made[side]['keys'] * gigabytes:.1f}" for side in ("lm-eval", "evalkit")),
            *(f"{peak[side] / 1e6:,.0f}" for side in ("lm-eval", figures["variant"])),
        ]


def _profiles(figures: Figures) -> Iterator[list[str]]:
    for name, one in figures["workloads"].items():
        seconds = median(one["seconds"][figures["variant"]])
        made = one["passes"]["evalkit"]
        yield [
            name,
            *(f"{one['profile'].get(part, 0.0):.0%}" for part in PARTS),
            f"{one['matmul_seconds']:.2f}",
            f"{one['matmul_seconds'] / seconds:.0%}",
            f"{made['flops'] / seconds / _peak(figures):.0%}",
        ]
