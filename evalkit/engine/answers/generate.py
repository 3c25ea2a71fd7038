"""Generates the texts of one batch, or of several side by side.

Level tree decodes in slots. As many texts run at once as the plan says; the next prompt takes the
slot of a text that has stopped, and free slots are removed when few prompts are left. Batches may
share the slots, whatever their tasks, settings and trunks. The bits of a text depend on its own
batch only: each batch has its own prefill, and a row of a decoding step depends only on its slot
(see `slots`). Levels prefix and none run a batch at a time on transformers' own caches, with
one step for all its texts.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evalkit.engine import passes
from evalkit.engine.text import decoding
from evalkit.engine.text.decoding import Text
from evalkit.engine.tree import attention, tree
from evalkit.engine.tree.slots import ROWS, Slots, Stem
from evalkit.engine.tree.tree import Tree, path_end
from evalkit.inputs.types import Answer
from evalkit.plan.batch import Batch

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

CLOSE_UP = 0.75  # levels prefix and none drop stopped rows when at most this share is running
Answers = dict[str, Answer]  # by part id


def generate(engine: "Engine", batch: Batch) -> Answers:
    """Return the texts of a batch, with each token's log-probability and margin to the next one."""
    if engine.level == "tree":
        answers: Answers = {}
        together(engine, batch, lambda _: None, lambda _, texts: answers.update(texts))
        return answers
    texts = decoding.texts_of(engine, batch)
    _in_step(engine, batch, texts)
    return _answers(engine, texts)


def together(
    engine: "Engine", first: Batch, more: Callable[[int], Batch | None],
    answered: Callable[[Batch, Answers], None],
) -> None:  # fmt: skip
    """Generate the texts of `first` and of further batches in shared slots (level tree).

    `more` returns another batch that may share the slots, or None; its argument is the number of
    trunk tokens that are held. On a GPU all batches have the same number of slots. `answered` is
    called with each batch and its answers as soon as all its texts have stopped.
    """
    pool = Pool(engine, first)
    while True:
        pool.fill(more)
        for part in pool.over():
            answered(part.batch, _answers(engine, part.texts))
        if not pool.step():
            return


def width(texts: int, slots: int, device: torch.device) -> int:
    """Return the number of rows of a step with so many texts. On a GPU it depends on the plan's
    number of slots alone; a CPU's step has at most a third more rows than texts."""
    if device.type != "cpu":
        return -(-slots // ROWS) * ROWS
    rows = ROWS
    while rows < texts:
        is_power = rows & (rows - 1) == 0 and rows > ROWS
        rows = rows * 3 // 2 if is_power else 1 << rows.bit_length()
    return rows


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prefilled prompt. Its keys and values are those at `path` in row `row` of `cache`."""

    text: Text
    cache: tree.Layers
    row: int
    path: torch.Tensor


class _Part:
    """A batch whose texts run in the slots, and its prompts that wait for a slot, in order."""

    def __init__(self, engine: "Engine", batch: Batch) -> None:
        self.batch, self._engine = batch, engine
        self.texts = decoding.texts_of(engine, batch)
        assert batch.settings is not None, "a generating batch has settings"
        longest = max(target.start for target in batch.targets) + batch.settings.max_gen_toks
        self.stem = Stem(tree.prefix(engine, batch.trunk, batch.chunk), longest)
        self._left = deque(zip(batch.targets, self.texts, strict=True))
        self._row = 0
        self._ready: deque[_Ready] = deque()
        self.has_begun = False  # whether a text of it was in a slot

    @property
    def waits(self) -> bool:
        """Whether a prompt of it waits for a slot."""
        return bool(self._ready or self._left)

    @property
    def is_over(self) -> bool:
        """Whether all its texts have stopped."""
        return all(text.stop for text in self.texts)

    def following(self) -> _Ready | None:
        """Return the next prefilled prompt, or None. A text that stops at its first token needs no
        slot."""
        while not self._ready and self._left:
            self._prefill()
        return self._ready.popleft() if self._ready else None

    def _prefill(self) -> None:
        """Compute the next rows and the first token of each of their prompts."""
        first, width, batch = self._row, self.batch.width, self.batch
        self._row = last = first + max(1, batch.prefill // width)
        forest = Tree(batch.rows[first:last], width, self.stem.prefix, self._engine, taking=True)
        chosen = []
        while self._left and self._left[0][0].row < last:
            chosen.append(self._left.popleft())
        logits = forest.logits([(target.row - first, target.end) for target, _ in chosen])
        decoding.advance(self._engine, [text for _, text in chosen], logits)
        paths = [
            path_end(batch.rows[target.row], target.end, target.start - self.stem.prefix.length)
            for target, _ in chosen
        ]
        flat = torch.tensor([at for path in paths for at in path], device=self._engine.device)
        pieces: Any = flat  # torch's `split` is untyped
        for (target, text), path in zip(chosen, pieces.split([*map(len, paths)]), strict=True):
            if not text.stop:
                self._ready.append(_Ready(text, forest.taken, target.row - first, path))


class Pool:
    """The slots, and the batches whose texts are in them.

    There are never more texts than any batch here allows, so that the caches fit the policy.
    """

    def __init__(self, engine: "Engine", first: Batch) -> None:
        self._engine, self._planned = engine, first.slots
        self._parts = [_Part(engine, first)]
        self._running: list[Text | None] = []  # by slot
        self._slots = Slots(engine.device, 0)
        self.tokens: torch.Tensor | None = None  # [slots]: the newest; None after texts have come

    def fill(self, more: Callable[[int], Batch | None]) -> None:
        """Put prompts into the free slots, while there are prompts."""
        texts = sum(text is not None for text in self._running)
        while (following := self._following(more, texts)) is not None:
            part, prompt = following
            texts += 1
            if texts > len(self._running):
                self._resize(texts)
            slot = self._running.index(None)
            self._slots.fill(slot, part.stem, prompt.cache, prompt.row, prompt.path)
            self._running[slot], self.tokens, part.has_begun = prompt.text, None, True
        self._resize(texts)

    def _following(
        self, more: Callable[[int], Batch | None], texts: int
    ) -> tuple[_Part, _Ready] | None:
        """Return the next prompt that may stand beside so many texts: of the current batches, the
        oldest first, or of another one, which is asked for when no prompt here waits."""
        while all(texts < part.batch.slots for part in self._parts if part.has_begun):
            for part in self._parts:
                if texts < part.batch.slots and (prompt := part.following()) is not None:
                    return part, prompt
            if any(part.waits for part in self._parts):
                return None
            if (batch := more(self._held())) is None:
                return None
            self._parts.append(_Part(self._engine, batch))
        return None

    def _held(self) -> int:
        """Return the number of trunk tokens that the batches here hold."""
        return sum(part.stem.prefix.length for part in self._parts)

    def _resize(self, texts: int) -> None:
        """Change the number of slots to what so many texts need. All texts are kept."""
        rows = width(texts, self._planned, self._engine.device)
        if texts and rows != len(self._running):
            kept = [slot for slot, text in enumerate(self._running) if text is not None]
            self._slots.keep(kept, rows)
            empty = [None] * (rows - len(kept))
            self._running, self.tokens = [*(self._running[slot] for slot in kept), *empty], None

    def over(self) -> list[_Part]:
        """Remove the batches that are over, and return them."""
        over = [part for part in self._parts if part.is_over]
        self._parts = [part for part in self._parts if not part.is_over]
        return over

    def step(self) -> bool:
        """Generate a token for each text; return False where there is no text."""
        if not any(self._running):
            return False
        if self.tokens is None:
            newest = [text.tokens[-1] if text else 0 for text in self._running]
            self.tokens = torch.tensor(newest, device=self._engine.device)
        logits = self.forward(self.tokens)
        self._slots.stepped()
        self.tokens = decoding.advance(self._engine, self._running, logits)
        for slot, text in enumerate(self._running):
            if text is not None and text.stop:
                self._slots.empty(slot)
                self._running[slot] = None
        return True

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits [slots, vocabulary] after each slot's newest token [slots]."""
        with attention.viewing(self._slots):
            inputs = self._slots.inputs(tokens)
            logits: torch.Tensor = self._engine.model(**inputs, use_cache=False).logits
            return logits[:, 0]


def _answers(engine: "Engine", texts: list[Text]) -> Answers:
    return {text.id: decoding.answer(engine, text) for text in texts}


def _in_step(engine: "Engine", batch: Batch, texts: list[Text]) -> None:
    """Generate all texts of a batch, one step for all (levels prefix and none). Stopped texts are
    dropped when they are many."""
    assert all(len(row.tokens) == batch.width for row in batch.rows), "rows of one length"
    state = passes.start(engine, batch, len(texts))
    ids, running = passes.padded(engine, batch.rows, batch.width), texts
    while True:
        places = [(row, ids.shape[1] - 1) for row in range(len(running))]
        logits = passes.run(engine, places, ids, state).logits[0]
        active = [row for row, text in enumerate(running) if not text.stop]
        decoding.advance(engine, [running[row] for row in active], logits[active])
        active = [row for row in active if not running[row].stop]
        if not active:
            return
        if len(active) <= CLOSE_UP * len(running):
            state.cache.reorder_cache(torch.tensor(active, device=engine.device))
            running = [running[row] for row in active]
        ids = torch.tensor([[text.tokens[-1]] for text in running], device=engine.device)
