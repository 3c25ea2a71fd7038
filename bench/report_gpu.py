"""The results of `make bench-gpu` as lines, while they come, and as a page."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.tables import table

Result = dict[str, Any]


def line(result: Result) -> str:
    """A result in a line."""
    return _LINES.get(result["name"], _plain)(result)


def _plain(one: Result) -> str:
    told = ", ".join(
        f"{key} {_short(value)}" for key, value in sorted(one.items()) if key != "name"
    )
    return f"{one['name']:<10} {told}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _device(one: Result) -> str:
    names = ", ".join(one["gpu"]) or "the CPU"
    cleared = ", ".join(one["cleared"]) or "nothing"
    return (
        f"device     {names}, driver {one['driver']}, CUDA {one['cuda']}, cuBLAS {one['cublas']},"
        f" cuDNN {one['cudnn']}, torch {one['torch']}, transformers {one['transformers']};"
        f" cleared: {cleared}"
    )


def _matmul(one: Result) -> str:
    return f"matmul     {one['peak_flops'] / 1e12:,.1f} TFLOP/s at the best of the layers' shapes"


def _writes(one: Result) -> str:
    ways = ", ".join(f"{way} {one[way]:.3f} ms" for way in ("index_put", "scatter", "one column"))
    return f"writes     one layer's of a step: {ways}"


def _attention(one: Result) -> str:
    sizes = "/".join(map(str, one["sizes"]))
    return (
        f"attention  {one['dtype']:<8} heads {sizes:<7} {one['path']}: error {one['error']:.1e},"
        f" plain products {one['plain_error']:.1e}"
    )


def _step(one: Result) -> str:
    return (
        f"step       {one['slots']} slots: {1000 * one['seconds']:.2f} ms, of which the GPU"
        f" computes {1000 * one['gpu_seconds']:.2f}; {one['launches']:.0f} launches,"
        f" {one['waits']:.1f} waits"
    )


def _pass(one: Result) -> str:
    return (
        f"pass       {one['tokens']:,} tokens in {1000 * one['seconds']:.0f} ms:"
        f" {one['share_of_peak']:.0%} of the peak, the GPU idle for {one['idle']:.0%}"
    )


def _decode(one: Result) -> str:
    step = 1000 * one["slots"] / one["tokens_per_s"]
    return (
        f"decode     {one['slots']} slots: {one['tokens_per_s']:,.0f} tokens/s, {step:.2f} ms a"
        f" step, {one['peak_bytes'] / 1e9:.1f} GB"
    )


def _member(one: Result) -> str:
    return (
        f"{one['name']:<10} {one['seconds']:.1f} s for {one['share']:.1%} of the batches; all of it"
        f" {one['projected']:,.0f} s, {one['peak_bytes'] / 1e9:.1f} GB"
    )


def _lm_eval(one: Result) -> str:
    return (
        f"lm-eval    {one['member']}, batch {one['size']}: {one['seconds']:,.0f} s for the planned"
        f" documents, by {one['measured']} of {one['batches']:,} batches"
    )


def _laws(one: Result) -> str:
    held = ", ".join(
        f"{name} {'equal bits' if equal else 'DIFFERS'}" for name, equal in one["laws"].items()
    )
    ours, theirs = one["evalkit"], one["lm-eval"]
    return (
        f"laws       {one['profile']}: mean error {ours['mean']:.1e} (lm-eval's way"
        f" {theirs['mean']:.1e}), greedy flags {ours['greedy']} of {one['loglikelihoods']} differ,"
        f" texts {one['texts_equal']} of {one['texts']} equal; {held}"
    )


_LINES: dict[str, Callable[[Result], str]] = {
    "device": _device, "matmul": _matmul, "writes": _writes, "attention": _attention,
    "step": _step, "pass": _pass, "decode": _decode,
    "bbh": _member, "hellaswag": _member, "mmlu": _member, "lm-eval": _lm_eval, "laws": _laws,
}  # fmt: skip


def text(results: Sequence[Result]) -> str:
    """All results: the lines, and what all of `core` would take where its members were measured."""
    lines = "\n".join(line(each) for each in results)
    members = [each for each in results if each["name"] in ("bbh", "hellaswag", "mmlu")]
    rows = [[each["name"], f"{each['projected']:,.0f}"] for each in members]
    if members:
        total = sum(each["projected"] for each in members)
        rows.append(["**all three**", f"{total:,.0f} ({total / 60:.1f} min)"])
    shown = f"\n\n{table(['member of core', 'seconds, projected'], rows)}" if rows else ""
    return f"```\n{lines}\n```{shown}"
