"""How fast an engine is on this machine: each task's time, decoding, and how fast it could be."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bench import baseline, checks
from bench.lengths import UNTIL, Leaf, tokenised
from bench.passes import Pass, flops, watch
from bench.shapes import Shape
from evalkit.engine.numerics.numerics import DTYPES
from evalkit.plan import store
from evalkit.plan.batch import Batch, Policy

PEAK_TOKENS = (2048, 8192)
BASELINE_BATCHES = 6  # of each size, evenly over lm-eval's own order


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """The most memory that tensors took since the last call; 0 on a CPU."""
    if device == "cpu":
        return 0
    found = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return found


def matmul_peak(shape: Shape) -> dict[str, float]:
    """FLOP/s of `torch.mm` at the layers' shapes, by "tokens x in x out"."""
    hidden, wide = shape.config["hidden_size"], shape.config["intermediate_size"]
    found = {}
    for tokens in PEAK_TOKENS:
        for size, out in ((hidden, hidden), (hidden, wide), (wide, hidden)):
            kinds: dict[str, Any] = {"device": shape.device, "dtype": DTYPES[shape.dtype]}
            one, other = torch.randn(tokens, size, **kinds), torch.randn(size, out, **kinds)
            seconds = min(_products(one, other, shape.device) for _ in range(5))
            found[f"{tokens} x {size} x {out}"] = 2 * tokens * size * out / seconds
    return found


def _products(one: torch.Tensor, other: torch.Tensor, device: str, times: int = 10) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        torch.mm(one, other)
    wait(device)
    return (time.perf_counter() - started) / times


def execute(engine: Any, batches: Sequence[Batch], shape: Shape, seconds: float) -> dict[str, Any]:
    """The batches in order until the time is up: seconds, how much of their cost was done, and the
    FLOP of the matrix products (padding included)."""
    engine.kept = None
    peak_memory(shape.device)
    done, cost = 0, 0
    made: list[Pass] = []
    with watch(engine.model, made):
        started = time.perf_counter()
        for batch in batches:
            engine.execute(batch)
            done, cost = done + 1, cost + batch.cost
            if time.perf_counter() - started > seconds:
                break
        wait(shape.device)
        spent = time.perf_counter() - started
    share = cost / sum(batch.cost for batch in batches)
    return {
        "batches": len(batches), "executed": done, "share": share, "seconds": spent,
        "projected": spent / share, "flops": flops(made, shape.config),
        "peak_bytes": peak_memory(shape.device),
    }  # fmt: skip


def like_lm_eval(
    model: Any, batches: Sequence[Batch], shape: Shape, size: int, seconds: float
) -> dict[str, float]:
    """lm-eval's time for all that these batches ask at one batch size, from some of its own
    batches: evenly over its order, until the time is up."""
    asked, texts = checks.scored(batches), checks.prompts(batches)
    rows: dict[tuple[int, ...], list[Any]] = {}
    for one in asked.values():
        rows.setdefault((*one.context, *one.continuation[:-1]), []).append(one)
    ordered: list[Any] = sorted(rows, key=len, reverse=True)
    ordered += sorted(texts.values(), key=len, reverse=True)
    number = -(-len(ordered) // size)
    new_tokens = next((b.settings.max_gen_toks for b in batches if b.settings), 0)
    started, done = time.perf_counter(), 0
    for index in range(min(BASELINE_BATCHES, number)):
        first = number * index // min(BASELINE_BATCHES, number) * size
        part = ordered[first : first + size]
        if texts:
            baseline.generate(model, _tokenizer(), part, UNTIL, new_tokens, size)
        else:
            baseline.score(model, [one for key in part for one in rows[key]], size)
        done += 1
        if time.perf_counter() - started > seconds:
            break
    wait(shape.device)
    spent = time.perf_counter() - started
    return {"size": size, "batches": number, "measured": done, "seconds": spent / done * number}


def _tokenizer() -> Any:
    from bench.shapes import Stub

    return Stub()


def decoding(engine: Any, leaf: Leaf, shape: Shape, slots: int, new_tokens: int) -> dict[str, Any]:
    """Tokens a second of one leaf's prompts with so many slots, all of them in use."""
    made = tokenised([replace(leaf, documents=slots)], shape.config["vocab_size"], new_tokens)
    policy = Policy(max_slots=slots, max_cache=2**22, waves=1)
    (batch,) = store.make_batches(made, policy, level="tree")
    assert batch.settings is not None, "it generates"
    engine.kept = None
    engine.execute(replace(batch, settings=replace(batch.settings, max_gen_toks=1)))
    wait(shape.device)
    started = time.perf_counter()
    engine.execute(batch)
    wait(shape.device)
    seconds = time.perf_counter() - started
    return {"slots": slots, "tokens_per_s": slots * new_tokens / seconds, "seconds": seconds,
            "peak_bytes": peak_memory(shape.device)}  # fmt: skip
