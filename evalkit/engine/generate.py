"""Generation for a batch of prompts that hang on one trunk.

Level A decodes in slots: as many texts at once as the plan says, a stopped one's slot refilled by
the next prompt, the slots closed up when too few prompts are left. All of that is decided by the
generated tokens alone. Levels B and C go in step on transformers' own caches.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evalkit.engine import decoding
from evalkit.engine import prefix as cloned
from evalkit.engine.decoding import Text
from evalkit.engine.tree import attention, head, trunk
from evalkit.engine.tree.slots import Slots
from evalkit.engine.tree.tree import Tree, path_end
from evalkit.plan.batch import Batch
from evalkit.plan.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

CLOSE_UP = 0.75  # slots are closed up when no more than this share of them is in use


def generate(engine: "Engine", batch: Batch) -> dict[str, dict[str, Any]]:
    """Texts of a batch, with each token's log-probability and its margin to the runner-up."""
    settings = batch.settings
    assert settings is not None, "a generating batch has settings"
    texts = decoding.texts_of(batch)
    if engine.level == "A":
        _in_slots(engine, batch, texts, settings)
    else:
        _in_step(engine, batch, texts, settings)
    return {text.id: decoding.answer(engine, text, settings) for text in texts}


def _in_slots(engine: "Engine", batch: Batch, texts: list[Text], settings: Settings) -> None:
    """Level A: fill the slots, a step for all of them, again until every text has stopped."""
    prefix = trunk.prefix(engine, batch.trunk, batch.chunk)
    slots = Slots(prefix, engine.device, min(batch.slots, len(texts)))
    prompts = _Prompts(engine, batch, texts, prefix)
    running: list[Text] = []  # by slot
    while True:
        free = [slot for slot, text in enumerate(running) if text.stop]
        free += range(len(running), batch.slots)
        prompts.fill(slots, running, free)
        active = [slot for slot, text in enumerate(running) if not text.stop]
        if not active:
            return
        if len(active) <= CLOSE_UP * len(running):
            slots.keep(active)
            running = [running[slot] for slot in active]
            active = list(range(len(running)))
        inputs = slots.inputs([text.tokens[-1] for text in running])
        with attention.viewing(slots):
            places = [(slot, 0) for slot in active]
            logits = head.logits(engine.model, places, **inputs, use_cache=False)
        slots.stepped()
        decoding.advance(engine, [running[slot] for slot in active], logits, settings)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prefilled prompt: its keys and values are those at `path` of row `row` of `cache`."""

    text: Text
    cache: trunk.Layers
    row: int
    path: list[int]


class _Prompts:
    """The batch's prompts that have no slot yet, in order; prefilled some rows at a time."""

    def __init__(
        self, engine: "Engine", batch: Batch, texts: list[Text], prefix: trunk.Prefix
    ) -> None:
        self._engine, self._batch, self._prefix = engine, batch, prefix
        self._left = list(zip(batch.targets, texts, strict=True))
        self._row = 0
        self._ready: list[_Ready] = []

    def fill(self, slots: Slots, running: list[Text], free: list[int]) -> None:
        """Put the next prompts into the free slots, as long as there are any."""
        for slot in free:
            while not self._ready and self._left:
                self._prefill()
            if not self._ready:
                return
            prompt = self._ready.pop(0)
            slots.fill(slot, prompt.cache, prompt.row, prompt.path)
            running[slot : slot + 1] = [prompt.text]

    def _prefill(self) -> None:
        """Compute the next rows and their prompts' first tokens; what these end needs no slot."""
        first, width = self._row, self._batch.width
        self._row = last = first + max(1, self._batch.prefill // width)
        tree = Tree(self._batch.rows[first:last], width, self._prefix, self._engine, taking=True)
        chosen = [pair for pair in self._left if pair[0].row < last]
        self._left = self._left[len(chosen) :]
        logits = tree.logits([(target.row - first, target.end) for target, _ in chosen])
        assert self._batch.settings is not None, "a generating batch has settings"
        decoding.advance(self._engine, [text for _, text in chosen], logits, self._batch.settings)
        for target, text in chosen:
            if not text.stop:
                own = target.start - self._prefix.length
                path = path_end(self._batch.rows[target.row], target.end, own)
                self._ready.append(_Ready(text, tree.taken, target.row - first, path))


def _in_step(engine: "Engine", batch: Batch, texts: list[Text], settings: Settings) -> None:
    """Levels B and C: one step for all texts; those that have stopped are dropped when they are
    many."""
    assert all(len(row.tokens) == batch.width for row in batch.rows), "rows of one length"
    state = cloned.start(engine, batch, len(texts))
    ids, running = cloned.padded(engine, batch.rows, batch.width), texts
    while True:
        places = [(row, ids.shape[1] - 1) for row in range(len(running))]
        logits = cloned.run(engine, places, ids, state).logits[0]
        active = [row for row, text in enumerate(running) if not text.stop]
        decoding.advance(engine, [running[row] for row in active], logits[active], settings)
        active = [row for row in active if not running[row].stop]
        if not active:
            return
        if len(active) <= CLOSE_UP * len(running):
            state.cache.reorder_cache(torch.tensor(active, device=engine.device))
            running = [running[row] for row in active]
        ids = torch.tensor([[text.tokens[-1]] for text in running], device=engine.device)
