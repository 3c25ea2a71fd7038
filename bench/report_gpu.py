"""The tables of `make bench-gpu`, from the figures of the parts that have run."""

from collections.abc import Iterator
from typing import Any

from bench.lengths import CORE
from bench.tables import on, table

Figures = dict[str, Any]


def gpu(device: str) -> str:
    """The GPU's name and torch's CUDA version; "none" on a CPU."""
    import torch

    if device == "cpu":
        return "none"
    return f"{torch.cuda.get_device_name(torch.device(device))}, CUDA {torch.version.cuda}"


def text(figures: Figures) -> str:
    """Everything that there are figures for."""
    parts = [f"GPU: {figures['gpu']}. {on(figures['machine'])}"]
    if "checks" in figures:
        parts.append(table(_CHECKED, list(_checks(figures["checks"]))))
    if any(name in figures for name in CORE):
        parts.append(table(_MEMBERS, list(_members(figures))))
    if "decode" in figures:
        parts.append(table(_DECODED, list(_decoding(figures["decode"]))))
        peak = max(figures["decode"]["matmul_peak_flops"].values())
        parts.append(f"Measured matmul peak: {peak / 1e12:.1f} TFLOP/s.")
    return "\n\n".join(parts)


_CHECKED = [
    "against plain forwards in float32", "mean error", "largest", "lm-eval's way: mean error",
    "largest", "greedy flags that differ", "texts equal", "order reversed", "split in two",
    "trunks computed again",
]  # fmt: skip


def _checks(found: Figures) -> Iterator[list[str]]:
    for profile, one in found.items():
        yield [
            profile,
            *(
                f"{one[side][kind]:.1e}"
                for side in ("evalkit", "lm-eval")
                for kind in ("mean", "max")
            ),
            f"{one['evalkit']['greedy']} of {one['loglikelihoods']}",
            f"{one['texts_equal']} of {one['texts']}",
            *("equal bits" if held else "**differs**" for held in one["laws"].values()),
        ]


_MEMBERS = [
    "`core`'s", "evalkit, s", "of it measured", "lm-eval, batch 4, s", "best of its sizes, s",
    "ratio to batch 4", "ratio to best", "share of matmul peak", "peak memory, GB",
]  # fmt: skip


def _members(figures: Figures) -> Iterator[list[str]]:
    peak = figures.get("decode", {}).get("matmul_peak_flops", {})
    totals = [0.0, 0.0, 0.0]
    for name in (name for name in CORE if name in figures):
        ours, theirs = figures[name]["evalkit"], figures[name]["lm-eval"]
        four = next(one["seconds"] for one in theirs if one["size"] == 4)
        best = min(theirs, key=lambda one: float(one["seconds"]))
        totals = [
            total + part
            for total, part in zip(totals, (ours["projected"], four, best["seconds"]), strict=True)
        ]
        share = ours["flops"] / ours["seconds"] / max(peak.values()) if peak else None
        yield [
            name,
            f"{ours['projected']:.1f}",
            f"{ours['share']:.0%}",
            f"{four:,.0f}",
            f"{best['seconds']:,.0f} [{best['size']}]",
            f"{four / ours['projected']:.1f}",
            f"{best['seconds'] / ours['projected']:.1f}",
            f"{share:.0%}" if share is not None else "",
            f"{ours['peak_bytes'] / 1e9:.1f}",
        ]
    if all(name in figures for name in CORE):
        mine, four, best = totals
        yield ["**all**", f"{mine:.1f}", "", f"{four:,.0f}", f"{best:,.0f}",
               f"**{four / mine:.1f}**", f"**{best / mine:.1f}**", "", ""]  # fmt: skip


_DECODED = ["slots", "tokens / s", "of one step, ms", "peak memory, GB"]


def _decoding(found: Figures) -> Iterator[list[str]]:
    for one in found["slots"]:
        yield [
            str(one["slots"]),
            f"{one['tokens_per_s']:,.0f}",
            f"{1000 * one['slots'] / one['tokens_per_s']:.2f}",
            f"{one['peak_bytes'] / 1e9:.1f}",
        ]
