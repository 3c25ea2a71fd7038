"""A batch that does not fit into memory is cut in two, always at the same place.

The halves keep the batch's width, slots, chunk and trunk, so that a row is computed at the padded
width that it would have had. Which rows stand together in a half follows from the batch alone; that
it was cut at all depends on the memory, so it is told, and a run's bits are promised for equal cuts
only.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from evalkit.plan.batch import Batch

Answers = dict[str, dict[str, Any]]
# What a full memory is called where it is no torch.OutOfMemoryError: torch's CPU allocator, cuBLAS.
_WORDS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The first half of the rows and the rest, each with its targets; ids are the batch's."""
    cut = len(batch.rows) // 2
    first = tuple(target for target in batch.targets if target.row < cut)
    rest = (target for target in batch.targets if target.row >= cut)
    second = tuple(replace(target, row=target.row - cut) for target in rest)
    return (
        replace(batch, rows=batch.rows[:cut], targets=first),
        replace(batch, rows=batch.rows[cut:], targets=second),
    )


def run(
    batch: Batch, attempt: Callable[[Batch], Answers], free: Callable[[], None]
) -> tuple[Answers, int] | None:
    """Answers of a batch and how deep it was cut (0: not at all); None where a single row does not
    fit. `free` gives back what is held for later; each piece is attempted twice, once before it."""
    for _ in range(2):
        answers = _attempted(batch, attempt)
        if answers is not None:
            return answers, 0
        free()
        gc.collect()  # what the failed attempt's frames and its exception hold of each other
    if len(batch.rows) == 1:
        return None
    found: Answers = {}
    deepest = 0
    for half in halves(batch):
        done = run(half, attempt, free)
        if done is None:
            return None
        found |= done[0]
        deepest = max(deepest, done[1])
    return {target.id: found[target.id] for target in batch.targets}, deepest + 1


def fits(attempt: Callable[[], None]) -> bool:
    """Make an attempt; False where memory runs out. What it held is let go before this returns."""
    try:
        attempt()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _attempted(batch: Batch, attempt: Callable[[Batch], Answers]) -> Answers | None:
    """None where memory runs out."""
    found: list[Answers] = []
    return found[0] if fits(lambda: found.append(attempt(batch))) else None
