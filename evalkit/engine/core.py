"""The engine itself: a loaded model that sends a batch to scoring or to generation."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.answers import generate, scoring
from evalkit.engine.hardware import kernels, split, weights
from evalkit.engine.hardware.device import AUTO, keep_freed_memory
from evalkit.engine.numerics.numerics import Numerics, fix_numerics, numerics_for, quantization
from evalkit.engine.text import decoding, processors
from evalkit.engine.tree import attention, rotary, tail
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

__all__ = ["NAME", "Engine", "Numerics", "load", "numerics_for", "quantization"]
NAME = "evalkit"


class Engine:
    """A loaded model. `execute` is a pure function of the weights, the numerics and the batch.

    `device` is where inputs go (that of the embedding, where the model lies on several); `kept` is
    the last trunk's state, which only saves time and is dropped when memory runs out; `last_split`
    is how deep the last executed batch was cut in halves for lack of memory: 0, it was not.
    `generation` is the model's own generation config where that changes the most probable text,
    `warpers` what is done to logits that are drawn from, by settings.
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
        """Where the model's attention ends (level tree)."""
        return tail.find(self.model)

    @cached_property
    def endings(self) -> decoding.Endings:
        """Which tokens may complete a stop string."""
        return decoding.Endings(self.tokenizer)

    def on_step(self, notice: Callable[[], None]) -> None:
        """Call `notice` after every forward pass: a sign of life within a long batch."""
        self.model.register_forward_hook(lambda *_: notice())

    def execute(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """Answers of a batch by part id, and `last_split`; EvalkitError when the device has too
        little memory for a single row."""
        done = split.run(batch, self._answers, self._free)
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
        answered: Callable[[Batch, dict[str, dict[str, Any]]], None],
    ) -> None:  # fmt: skip
        """Answer a generating batch and those that `more` gives (None: no more now), which have its
        settings and slots, side by side (level tree): each one's answers, told to `answered`, are
        those of `execute`. `more` is told how many tokens of trunks are held for those in hand.
        Where memory runs out, the rest are executed one by one."""
        left: dict[str, Batch] = {first.id: first}

        def following(held: int) -> Batch | None:
            batch = more(held)
            if batch is not None:
                left[batch.id] = batch
            return batch

        def told(batch: Batch, answers: dict[str, dict[str, Any]]) -> None:
            self.last_split = 0
            answered(left.pop(batch.id), answers)

        def attempt() -> None:
            with torch.inference_mode():
                rotary.reset(self.model)
                generate.together(self, first, following, told)

        if not split.fits(attempt):
            self._free()
            for batch in list(left.values()):
                answered(batch, self.execute(batch))

    def _answers(self, batch: Batch) -> dict[str, dict[str, Any]]:
        with torch.inference_mode():
            rotary.reset(self.model)
            if batch.kind == "generate_until":
                return generate.generate(self, batch)
            return scoring.score(self, batch)

    def _free(self) -> None:
        self.kept = None
        torch.cuda.empty_cache()  # does nothing where there is no GPU


def eos_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Token ids that end a text: the tokenizer's EOS and those of the generation config."""
    found = {tokenizer.hf.eos_token_id}
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found.update(stated if isinstance(stated, list) else [stated])
    return frozenset(token for token in found if token is not None)


def load(
    model: Model, tokenizer: Tokenizer, numerics: Numerics, device: str,
    *, level: str, adapter: Path | None = None,
) -> Engine:  # fmt: skip
    """Fix the numerics and load the weights on `device` ("auto": over all GPUs), ready for batches
    of a level. Raises EvalkitError when that can't be done."""
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
