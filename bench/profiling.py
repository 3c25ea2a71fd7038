"""Where the engine's time goes, and how fast the machine could go.

The model's own modules are marked in torch's profiler, and each operation's time is given to the
innermost mark around it; what is left of a mark is Python's.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import profiler as torch_profiler

from bench.passes import Pass, tail

MARK = "bench:"
SIZES = (256, 1024, 2048)  # tokens at once
SECONDS = 0.3  # for each shape


@contextmanager
def _marked(model: Any) -> Iterator[None]:
    """Mark the model's linear layers, its LM head, its attention and all of its forward pass."""
    handles = []
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        kind = "head" if module is head else "linear" if _is_linear(module) else ""
        kind = "attention" if name.endswith(("self_attn", "attention")) else kind
        kind = "model" if module is model else kind
        if kind:
            handles += _mark(module, kind)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def _mark(module: Any, kind: str) -> list[Any]:
    open_marks: list[Any] = []

    def before(*_: Any) -> None:
        open_marks.append(torch_profiler.record_function(f"{MARK}{kind}"))
        open_marks[-1].__enter__()

    def after(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def profile(model: Any, work: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time of `work`: operations by the module they run in ("linear", "head",
    "attention", "model" for the rest of it, "outside" of it), "python" for the rest, and the
    "seconds" that all of it took under the profiler."""
    started = time.perf_counter()
    with (
        _marked(model),
        torch_profiler.profile(activities=[torch_profiler.ProfilerActivity.CPU]) as profiler,
    ):
        work()
    seconds = time.perf_counter() - started
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if event.name.startswith(MARK):
            continue
        above = event
        while above is not None and not above.name.startswith(MARK):
            above = above.cpu_parent
        kind = above.name.removeprefix(MARK) if above is not None else "outside"
        spent[kind] += event.self_cpu_time_total * 1e-6
    spent["python"] = seconds - sum(spent.values())
    return {kind: value / seconds for kind, value in spent.items()} | {"seconds": seconds}


def matmul_peak(model: Any) -> dict[str, float]:
    """FLOP/s of a product at each of the model's weights' shapes with some hundred to some thousand
    tokens, the faster of `torch.mm` and the model's own layer, by "tokens x in x out"."""
    layers = {module.weight.shape: module for module in model.modules() if _is_linear(module)}
    found = {}
    for out, size in sorted(layers):
        for tokens in SIZES:
            one, other = torch.randn(tokens, size), torch.randn(out, size).T
            seconds = min(_fastest(lambda a=one, b=other: torch.mm(a, b)),
                          _fastest(lambda a=one, m=layers[out, size]: m(a)))  # fmt: skip
            found[f"{tokens} x {size} x {out}"] = 2 * tokens * size * out / seconds
    return found


def matmul_seconds(model: Any, passes: Sequence[Pass]) -> float:
    """What the matrix products of some passes take alone, through the model's own weights one after
    another, as they come from memory: the floor of any engine that makes these passes."""
    head, behind = model.get_output_embeddings(), tail(model)
    layers = [m for m in model.modules() if _is_linear(m) and m is not head and m not in behind]
    counts = (
        (Counter(one.rows * one.tokens for one in passes), layers),
        (Counter(one.tail for one in passes), behind),
        (Counter(one.head for one in passes), [head]),
    )
    return sum(
        count * _products(modules, tokens)
        for counted, modules in counts
        for tokens, count in counted.items()
        if tokens
    )


@torch.inference_mode()
def _products(modules: Sequence[Any], tokens: int) -> float:
    """Seconds of the fastest of several times all of these layers, each with as many tokens."""
    inputs = {module.in_features: torch.randn(tokens, module.in_features) for module in modules}
    best, until, times = float("inf"), time.perf_counter() + SECONDS, 0
    while times < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        for module in modules:
            module(inputs[module.in_features])
        best, times = min(best, time.perf_counter() - started), times + 1
    return best


@torch.inference_mode()
def _fastest(product: Callable[[], Any]) -> float:
    """Seconds of the fastest of many products."""
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return best
