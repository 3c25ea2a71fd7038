"""Generation: a batch's prompts, and those of others beside them.

Level tree decodes in slots: as many texts at once as the plan says, a stopped one's slot refilled
by the next prompt, the slots closed up when too few prompts are left. Batches with the same
settings may share the slots, whatever their tasks and trunks are: a text's bits depend on its own
batch alone, because its prefill is its batch's own and a row of a step on its slot only (`slots`).
Levels B and C go in step on transformers' own caches, a batch at a time.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evalkit.engine import prefix as cloned
from evalkit.engine.text import decoding
from evalkit.engine.text.decoding import Text
from evalkit.engine.tree import attention, trunk
from evalkit.engine.tree.slots import ROWS, Slots, Stem
from evalkit.engine.tree.tree import Tree, path_end
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

CLOSE_UP = 0.75  # levels prefix and none drop stopped rows when no more than this share goes on
Answers = dict[str, dict[str, Any]]


def generate(engine: "Engine", batch: Batch) -> Answers:
    """Texts of a batch, with each token's log-probability and its margin to the runner-up."""
    found: dict[str, Answers] = {}
    if engine.level == "tree":
        together(
            engine, batch, lambda _: None, lambda one, answers: found.update({one.id: answers})
        )
        return found[batch.id]
    texts = decoding.texts_of(engine, batch)
    assert batch.settings is not None, "a generating batch has settings"
    _in_step(engine, batch, texts, batch.settings)
    return _answers(engine, batch, texts)


def together(
    engine: "Engine", first: Batch, more: Callable[[int], Batch | None],
    answered: Callable[[Batch, Answers], None],
) -> None:  # fmt: skip
    """Level tree: texts of a batch, and of those that `more` gives (None: of no more now), which
    have its settings and slots; it is told how many tokens of trunks are held. `answered` is told
    of each batch as soon as all its texts are there."""
    pool = _Pool(engine, first)
    while True:
        pool.fill(more)
        for part in pool.over():
            answered(part.batch, _answers(engine, part.batch, part.texts))
        if not pool.step():
            return


def widths(most: int, device: torch.device) -> list[int]:
    """How many rows a step may have for up to `most` texts: on a GPU always as many, on a CPU no
    more than a third more than there are texts."""
    if device.type != "cpu":
        return [-(-most // ROWS) * ROWS]
    found = [ROWS]
    while found[-1] < most:
        one = found[-1]
        found.append(one * 3 // 2 if one & (one - 1) == 0 and one > ROWS else 1 << one.bit_length())
    return found


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prefilled prompt: its keys and values are those at `path` of row `row` of `cache`."""

    text: Text
    cache: trunk.Layers
    row: int
    path: torch.Tensor


class _Part:
    """A batch in the slots: its texts, and its prompts that have none yet, in order."""

    def __init__(self, engine: "Engine", batch: Batch) -> None:
        self.batch, self._engine = batch, engine
        self.texts = decoding.texts_of(engine, batch)
        assert batch.settings is not None, "a generating batch has settings"
        self._settings = batch.settings
        longest = max(target.start for target in batch.targets) + batch.settings.max_gen_toks
        self.stem = Stem(trunk.prefix(engine, batch.trunk, batch.chunk), longest)
        self._left = deque(zip(batch.targets, self.texts, strict=True))
        self._row = 0
        self._ready: deque[_Ready] = deque()

    @property
    def is_over(self) -> bool:
        """Whether all its texts are there."""
        return all(text.stop for text in self.texts)

    def following(self) -> _Ready | None:
        """The next prompt, prefilled; None where none is left. What ends at once needs no slot."""
        while not self._ready and self._left:
            self._prefill()
        return self._ready.popleft() if self._ready else None

    def _prefill(self) -> None:
        """Compute the next rows and their prompts' first tokens."""
        first, width, batch = self._row, self.batch.width, self.batch
        self._row = last = first + max(1, batch.prefill // width)
        tree = Tree(batch.rows[first:last], width, self.stem.prefix, self._engine, taking=True)
        chosen = []
        while self._left and self._left[0][0].row < last:
            chosen.append(self._left.popleft())
        logits = tree.logits([(target.row - first, target.end) for target, _ in chosen])
        decoding.advance(self._engine, [text for _, text in chosen], logits, self._settings)
        paths = [
            path_end(batch.rows[target.row], target.end, target.start - self.stem.prefix.length)
            for target, _ in chosen
        ]
        flat = torch.tensor([at for path in paths for at in path], device=self._engine.device)
        pieces: Any = flat  # torch's `split` is untyped
        for (target, text), path in zip(chosen, pieces.split([*map(len, paths)]), strict=True):
            if not text.stop:
                self._ready.append(_Ready(text, tree.taken, target.row - first, path))


class _Pool:
    """Slots and the batches whose texts stand in them."""

    def __init__(self, engine: "Engine", first: Batch) -> None:
        assert first.settings is not None, "a generating batch has settings"
        self._engine, self._settings, self._most = engine, first.settings, first.slots
        self._widths = widths(first.slots, engine.device)
        self._parts = [_Part(engine, first)]
        self._running: list[Text | None] = []  # by slot
        self._slots = Slots(engine.device, 0)
        self._tokens: torch.Tensor | None = None  # [slots]: the newest; None where texts came

    def fill(self, more: Callable[[int], Batch | None]) -> None:
        """Put prompts into the free slots, as long as there are any."""
        texts = sum(text is not None for text in self._running)
        while texts < self._most and (found := self._following(more)) is not None:
            part, prompt = found
            texts += 1
            if texts > len(self._running):
                self._resize(texts)
            slot = self._running.index(None)
            self._slots.fill(slot, part.stem, prompt.cache, prompt.row, prompt.path)
            self._running[slot], self._tokens = prompt.text, None
        self._resize(texts)

    def _following(self, more: Callable[[int], Batch | None]) -> tuple[_Part, _Ready] | None:
        """The next prompt of the batch that came first, or of one more."""
        for part in self._parts:
            if (prompt := part.following()) is not None:
                return part, prompt
        while (batch := more(self._held())) is not None:
            assert (batch.settings, batch.slots) == (self._settings, self._most), "they share slots"
            self._parts.append(_Part(self._engine, batch))
            if (prompt := self._parts[-1].following()) is not None:
                return self._parts[-1], prompt
        return None

    def _held(self) -> int:
        """How many tokens of trunks the texts here stand on."""
        return sum(part.stem.prefix.length for part in self._parts)

    def _resize(self, texts: int) -> None:
        """As many slots as so many texts need; no text has to leave for that."""
        width = next(width for width in self._widths if width >= texts)
        if texts and width != len(self._running):
            kept = [slot for slot, text in enumerate(self._running) if text is not None]
            self._slots.keep(kept, width)
            empty = [None] * (width - len(kept))
            self._running, self._tokens = [*(self._running[slot] for slot in kept), *empty], None

    def over(self) -> list[_Part]:
        """The batches that are over, which leave the pool."""
        found = [part for part in self._parts if part.is_over]
        self._parts = [part for part in self._parts if not part.is_over]
        return found

    def step(self) -> bool:
        """A new token for each text; False where there is none."""
        if not any(self._running):
            return False
        if self._tokens is None:
            newest = [text.tokens[-1] if text else 0 for text in self._running]
            self._tokens = torch.tensor(newest, device=self._engine.device)
        logits = self.forward(self._tokens)
        self._slots.stepped()
        self._tokens = decoding.advance(self._engine, self._running, logits, self._settings)
        for slot, text in enumerate(self._running):
            if text is not None and text.stop:
                self._slots.empty(slot)
                self._running[slot] = None
        return True

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [slots, vocabulary] behind each slot's newest token [slots]."""
        with attention.viewing(self._slots):
            inputs = self._slots.inputs(tokens)
            logits: torch.Tensor = self._engine.model(**inputs, use_cache=False).logits
            return logits[:, 0]


def _answers(engine: "Engine", batch: Batch, texts: list[Text]) -> Answers:
    settings = batch.settings
    assert settings is not None, "a generating batch has settings"
    return {text.id: decoding.answer(engine, text, settings) for text in texts}


def _in_step(engine: "Engine", batch: Batch, texts: list[Text], settings: Settings) -> None:
    """Levels prefix and none: one step for all texts; those that have stopped are dropped when they
    are many."""
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
