"""The engine: a loaded model that scores or generates the batches of a plan.

A batch that does not fit into memory is cut in halves, always at the same places. The halves keep
the batch's width, slots, chunk and trunk, so each row is computed at the same padded width. Which
rows a half holds depends on the batch only; whether it was cut depends on the memory. The engine
therefore reports a cut, and a run's bits are promised for equal cuts only.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine import passes
from evalkit.engine.answers import generate, scoring
from evalkit.engine.hardware import kernels, weights
from evalkit.engine.hardware.device import AUTO, keep_freed_memory
from evalkit.engine.numerics.numerics import Numerics, fix_numerics, numerics_for, quantization
from evalkit.engine.text import decoding, processors
from evalkit.engine.tree import attention, tail
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import Answer
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

__all__ = ["NAME", "Engine", "Numerics", "load", "numerics_for", "quantization"]
NAME = "evalkit"
Answers = dict[str, Answer]  # by part id
# How a full memory shows without a torch.OutOfMemoryError: torch's CPU allocator, cuBLAS.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


class Engine:
    """A loaded model. `execute` is a pure function of the weights, the numerics and the batch.

    `device` is where inputs go: the embedding's, where the model lies on several devices. `kept`
    is the state of the last trunk; it only saves time and is dropped when memory runs out.
    `last_split` counts how often the last batch was cut in halves for lack of memory. `generation`
    is the model's own generation config, if it changes the most probable text. `warpers` holds the
    warpers of sampled texts by settings.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, device: str, level: str, numerics: Numerics
    ) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, torch.device(device)
        self.level, self.numerics = level, numerics
        self.eos_ids = eos_ids(model, tokenizer)
        self.warpers: dict[Settings, Any] = {}
        self.generation = processors.own(getattr(model, "generation_config", None))
        self.eos_text: str = tokenizer.hf.eos_token or ""
        self.kept: Any = None
        self.last_split = 0

    @cached_property
    def tail(self) -> tail.Tail:
        """The modules after the model's last attention (level tree)."""
        return tail.find(self.model)

    @cached_property
    def endings(self) -> decoding.Endings:
        """The tokens that may complete a stop string."""
        return decoding.Endings(self.tokenizer)

    def on_step(self, notice: Callable[[], None]) -> None:
        """Call `notice` after every forward pass, to show progress within a long batch."""
        self.model.register_forward_hook(lambda *_: notice())

    def execute(self, batch: Batch) -> dict[str, Any]:
        """Return the `Answer`s of a batch by part id, and set `last_split`. Raises EvalkitError if
        the device has too little memory for a single row."""
        done = execute_split(batch, self._answers, self.free_memory)
        if done is None:
            raise EvalkitError(
                f"out of memory in a batch of {len(batch.rows)} rows x {batch.width} tokens, cut"
                " down to one row",
                where=str(self.device),
                fix="use a GPU with more memory; what is done is kept",
                code=Exit.MISSING,
            )
        answers, self.last_split = done
        return answers

    def together(
        self, first: Batch, more: Callable[[int], Batch | None],
        answered: Callable[[Batch, Answers], None],
    ) -> None:  # fmt: skip
        """Generate the answers of several batches side by side (level tree).

        `more` returns another generating batch (on a GPU one with as many slots), or None if there
        is none now; its argument is the number of trunk tokens that the current batches hold.
        `answered` is called with each finished batch and its answers, which equal those of
        `execute`. When memory runs out, the batches that are left are executed one by one.
        """
        left: dict[str, Batch] = {first.id: first}

        def following(held: int) -> Batch | None:
            batch = more(held)
            if batch is not None:
                left[batch.id] = batch
            return batch

        def finished(batch: Batch, answers: Answers) -> None:
            self.last_split = 0
            answered(left.pop(batch.id), answers)

        def attempt() -> None:
            with torch.inference_mode():
                passes.reset_rotary(self.model)
                generate.together(self, first, following, finished)

        if not fits(attempt):
            self.free_memory()
            for batch in list(left.values()):
                answered(batch, self.execute(batch))

    def _answers(self, batch: Batch) -> Answers:
        with torch.inference_mode():
            passes.reset_rotary(self.model)
            if batch.kind == "generate_until":
                return generate.generate(self, batch)
            return scoring.score(self, batch)

    def free_memory(self) -> None:
        """Give up the caches that are kept, and what the GPU's allocator keeps."""
        self.kept = None
        torch.cuda.empty_cache()  # does nothing where there is no GPU


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that an allocation failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)


def fits(attempt: Callable[[], None]) -> bool:
    """Call `attempt` and return whether memory was enough. What a failed attempt held is released
    before this returns."""
    try:
        attempt()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Return two batches with the id of this one: the first half of its rows, and the rest, each
    with its targets."""
    cut = len(batch.rows) // 2
    first = tuple(target for target in batch.targets if target.row < cut)
    rest = (target for target in batch.targets if target.row >= cut)
    second = tuple(replace(target, row=target.row - cut) for target in rest)
    return (
        replace(batch, rows=batch.rows[:cut], targets=first),
        replace(batch, rows=batch.rows[cut:], targets=second),
    )


def execute_split(
    batch: Batch, attempt: Callable[[Batch], Answers], free: Callable[[], None]
) -> tuple[Answers, int] | None:
    """Return the answers of a batch and how often it was cut in halves (0: it was not); None where
    a single row does not fit.

    Each piece is attempted twice: `free` is called between, and releases what is kept to save time.
    """
    answers: list[Answers] = []
    for _ in range(2):
        if fits(lambda: answers.append(attempt(batch))):
            return answers[0], 0
        free()
        gc.collect()  # the failed attempt's frames and its exception refer to each other
    if len(batch.rows) == 1:
        return None
    joined: Answers = {}
    deepest = 0
    for half in halves(batch):
        done = execute_split(half, attempt, free)
        if done is None:
            return None
        joined |= done[0]
        deepest = max(deepest, done[1])
    return {target.id: joined[target.id] for target in batch.targets}, deepest + 1


def eos_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the token ids that end a text: the tokenizer's EOS and those of the model's generation
    config."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.hf.eos_token_id, *(stated if isinstance(stated, list) else [stated])]
    return frozenset(token for token in ids if token is not None)


def load(
    model: Model, tokenizer: Tokenizer, numerics: Numerics, device: str,
    *, level: str, adapter: Path | None = None,
) -> Engine:  # fmt: skip
    """Set the numerics, load the weights on `device` ("auto": over all GPUs) and return an engine
    for batches of a level. Raises EvalkitError where the model can't be loaded."""
    fix_numerics(numerics)
    loaded = weights.load(model, numerics, device, adapter)
    if kernels.needs_cumsum(loaded.config, device):
        kernels.replace_cumsum()
    if level == "tree":
        attention.switch(loaded, attention.NAME)
    if device == AUTO:
        device = str(loaded.get_input_embeddings().weight.device)
    if device == "cpu":
        keep_freed_memory()
    return Engine(loaded, tokenizer, device, level, numerics)
