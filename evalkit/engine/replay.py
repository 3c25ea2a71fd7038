"""What a model gives for answers that are there already: each token's log-probability and margin,
by teacher forcing.

One forward pass over prompt and answer takes the place of a pass for each token, and a wrong token
does not change what follows it. Sharing and packing are the plan's, so that the cost is that of its
prompts. `in_float32` lets the same be computed without the rounding of a lower precision. `twice`
gives such values beside others that are as good.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evalkit.base import canon
from evalkit.engine.answers import scoring
from evalkit.engine.numerics.numerics import DTYPES
from evalkit.engine.probe import reference
from evalkit.engine.probe.reference import Answered
from evalkit.engine.text import decoding, processors, thoughts
from evalkit.engine.tree import attention, rotary
from evalkit.engine.tree.tree import depths
from evalkit.plan.batch import Batch, BatchTarget
from evalkit.plan.requests.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine


@dataclass(frozen=True, slots=True)
class Replayed:
    """Of each token of an answer, in order: its log-probability, and by how much its logit is ahead
    of (negative: behind) the best of the others."""

    logprobs: list[float]
    margins: list[float]

    @property
    def total(self) -> float:
        """The log-likelihood of the whole answer."""
        return canon.total(self.logprobs)


def replay(
    engine: "Engine", batch: Batch, generated: Mapping[str, Settings]
) -> dict[str, Replayed]:
    """Every target of a scoring batch by part id. `generated`: with which settings those of them
    that are texts were written, so that the same is done to their logits."""
    with torch.inference_mode():
        rotary.reset(engine.model)
        rows = scoring.rows_at_once(engine, batch)
        found: dict[str, Replayed] = {}
        for first in range(0, len(batch.rows), rows):
            targets = [t for t in batch.targets if first <= t.row < first + rows]
            found |= _replayed(engine, batch, first, rows, targets, generated)
    return found


def _replayed(
    engine: "Engine", batch: Batch, first: int, rows: int, targets: list[BatchTarget],
    generated: Mapping[str, Settings],
) -> dict[str, Replayed]:  # fmt: skip
    """The targets of some rows, from one forward pass."""
    before = batch.trunk.length if batch.trunk else 0
    paths = []
    for target in targets:
        row = batch.rows[target.row]
        paths.append(scoring.scored_of(row, target, depths(row) + before))
    places = sorted({(row - first, at) for path in paths for (row, at), _ in path})
    number = {place: index for index, place in enumerate(places)}
    logits = scoring.forward(engine, batch, batch.rows[first : first + rows], places)
    found = {}
    for target, path in zip(targets, paths, strict=True):
        index = [number[row - first, at] for (row, at), _ in path]
        labels = [label for _, label in path]
        values = logits[torch.tensor(index, device=logits.device)].float()  # [tokens, vocabulary]
        if target.id in generated:
            tokens = [*batch.tokens_of(target), target.last]
            values = _processed(engine, tokens, labels, values, generated[target.id])
        found[target.id] = Replayed(*reference.chances(values, labels))
    return found


def _processed(
    engine: "Engine", tokens: list[int], labels: list[int], values: torch.Tensor,
    settings: Settings,
) -> torch.Tensor:  # fmt: skip
    chooser = processors.chooser(engine, settings, tokens[: len(tokens) - len(labels)])
    if not chooser.has_processors:
        return values
    return torch.stack([chooser.processed(labels[:n], row) for n, row in enumerate(values)])


def rounds(engine: "Engine") -> bool:
    """Whether an engine computes in less than float32 and could do so in float32: a quantised model
    can't."""
    low = engine.numerics.profile == "native" and DTYPES[engine.numerics.dtype] != torch.float32
    return low and getattr(engine.model.config, "quantization_config", None) is None


@contextmanager
def in_float32(engine: "Engine") -> Iterator[None]:
    """Let an engine compute in float32 from its stored weights until the end of the block."""
    engine.kept = None  # a trunk's state is of one precision
    try:
        with reference.float32(engine.model):
            yield
    finally:
        engine.kept = None


def twice(engine: "Engine", batch: Batch, count: int) -> list[tuple[float, float]]:
    """Log-probabilities of `count` targets, token by token: replayed, and the model's own, which
    are those in float32 where it computes in less, else those of each sequence alone."""
    replayed = replay(engine, batch, {})
    found: list[tuple[float, float]] = []
    with torch.inference_mode(), attention.plain(engine):
        rotary.reset(engine.model)
        for target in batch.targets[:count]:
            values = replayed[target.id].logprobs
            answer = Answered([*batch.tokens_of(target), target.last], len(values), 0, False, [])
            with reference.float32(engine.model) if rounds(engine) else nullcontext():
                (own,) = reference.forward(engine, [answer])
            found += zip(values, own.each, strict=True)
    return found


def retold(
    engine: "Engine", prompt: list[int], tokens: list[int], settings: Settings
) -> tuple[dict[str, Any], str]:
    """What the journal holds of the text that these tokens are behind a prompt, and why it ended
    with the last of them; the reason is empty where it would not have ended there, or earlier."""
    chooser = processors.Chooser(prompt, None, None)  # what is there is not chosen again
    thought = thoughts.of(engine.tokenizer, settings, prompt)
    text = decoding.Text("", chooser, None, thought=thought)
    too_late = False
    for count in range(1, len(tokens) + 1):
        too_late = too_late or bool(text.stop)
        text.tokens = tokens[:count]
        decoding.see_stops(engine, [text], settings)
    return decoding.answer(engine, text, settings), "" if too_late else text.stop
