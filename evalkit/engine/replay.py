"""Computes a model's log-probabilities and margins for the tokens of existing answers, by teacher
forcing.

One forward pass over prompt and answer replaces a pass for each token, and a wrong token does not
change the values after it. Rows are shared and packed as in the plan, so the cost is that of its
prompts. `in_float32` computes the same without the rounding of a lower precision. `twice` returns
such values beside those of a reference.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evalkit.base import canon
from evalkit.engine import passes
from evalkit.engine.answers import scoring
from evalkit.engine.numerics.numerics import DTYPES
from evalkit.engine.probe import reference
from evalkit.engine.probe.reference import Answered
from evalkit.engine.text import decoding, processors, thoughts
from evalkit.engine.tree import attention
from evalkit.engine.tree.tree import depths
from evalkit.inputs.types import Generation
from evalkit.plan.batch import Batch, BatchTarget
from evalkit.plan.requests.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine


@dataclass(frozen=True, slots=True)
class Replayed:
    """For each token of an answer, in order: its log-probability, and the difference between its
    logit and the best of the others."""

    logprobs: list[float]
    margins: list[float]

    @property
    def total(self) -> float:
        """The log-likelihood of the whole answer."""
        return canon.total(self.logprobs)


def replay(
    engine: "Engine", batch: Batch, generated: Mapping[str, Settings]
) -> dict[str, Replayed]:
    """Replay every target of a scoring batch, and return the values by part id. `generated` holds
    the settings of targets that are generated texts, whose logits are processed as they were."""
    with torch.inference_mode():
        passes.reset_rotary(engine.model)
        rows = scoring.rows_at_once(engine, batch)
        replayed: dict[str, Replayed] = {}
        for first in range(0, len(batch.rows), rows):
            targets = [t for t in batch.targets if first <= t.row < first + rows]
            replayed |= _replayed(engine, batch, first, rows, targets, generated)
    return replayed


def _replayed(
    engine: "Engine", batch: Batch, first: int, rows: int, targets: list[BatchTarget],
    generated: Mapping[str, Settings],
) -> dict[str, Replayed]:  # fmt: skip
    """Replay the targets of some rows in one forward pass."""
    before = batch.trunk.length if batch.trunk else 0
    paths = []
    for target in targets:
        row = batch.rows[target.row]
        paths.append(scoring.scored_of(row, target, depths(row) + before))
    places = sorted({(row - first, at) for path in paths for (row, at), _ in path})
    number = {place: index for index, place in enumerate(places)}
    logits = scoring.forward(engine, batch, batch.rows[first : first + rows], places)
    replayed = {}
    for target, path in zip(targets, paths, strict=True):
        index = [number[row - first, at] for (row, at), _ in path]
        labels = [label for _, label in path]
        values = logits[torch.tensor(index, device=logits.device)].float()  # [tokens, vocabulary]
        if target.id in generated:
            tokens = [*batch.tokens_of(target), target.last]
            values = _processed(engine, tokens, labels, values, generated[target.id])
        replayed[target.id] = Replayed(*reference.chances(values, labels))
    return replayed


def _processed(
    engine: "Engine", tokens: list[int], labels: list[int], values: torch.Tensor,
    settings: Settings,
) -> torch.Tensor:  # fmt: skip
    chooser = processors.chooser(engine, settings, tokens[: len(tokens) - len(labels)])
    if not chooser.has_processors:
        return values
    return torch.stack([chooser.processed(labels[:n], row) for n, row in enumerate(values)])


def rounds(engine: "Engine") -> bool:
    """Return whether an engine computes in less than float32 and could compute in float32, which a
    quantised model can't."""
    low = engine.numerics.profile == "native" and DTYPES[engine.numerics.dtype] != torch.float32
    return low and getattr(engine.model.config, "quantization_config", None) is None


@contextmanager
def in_float32(engine: "Engine") -> Iterator[None]:
    """Let an engine compute in float32 from its stored weights until the end of the block."""
    engine.kept = None  # the state of a trunk has one precision
    try:
        with reference.float32(engine.model):
            yield
    finally:
        engine.kept = None


def twice(engine: "Engine", batch: Batch, count: int) -> list[tuple[float, float]]:
    """Return pairs of log-probabilities for the tokens of `count` targets: replayed, and from a
    reference. The reference is in float32 where the engine computes in less, else it is each
    sequence alone."""
    replayed = replay(engine, batch, {})
    pairs: list[tuple[float, float]] = []
    with torch.inference_mode(), attention.plain(engine):
        passes.reset_rotary(engine.model)
        for target in batch.targets[:count]:
            values = replayed[target.id].logprobs
            answer = Answered([*batch.tokens_of(target), target.last], len(values), 0, False, [])
            with reference.float32(engine.model) if rounds(engine) else nullcontext():
                (own,) = reference.forward(engine, [answer])
            pairs += zip(values, own.each, strict=True)
    return pairs


def retold(
    engine: "Engine", prompt: list[int], tokens: list[int], settings: Settings
) -> tuple[Generation, str]:
    """Return the journal's answer for a text of these tokens after a prompt, and why it stopped at
    the last of them. The reason is empty where the text would stop earlier, or not yet."""
    chooser = processors.Chooser(prompt, None, None)  # existing tokens are not chosen again
    thought = thoughts.of(engine.tokenizer, settings, prompt)
    text = decoding.Text("", settings, chooser, None, thought=thought)
    too_late = False
    for count in range(1, len(tokens) + 1):
        too_late = too_late or bool(text.stop)
        text.tokens = tokens[:count]
        decoding.see_stops(engine, [text])
    return decoding.answer(engine, text), "" if too_late else text.stop
