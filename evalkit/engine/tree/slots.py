"""Slots for growing texts, each after the trunk of its batch (level tree).

A slot holds the keys and values of one text after its trunk. Texts of several batches, and so of
several tasks and trunks, may run side by side: a slot's row of a step depends on the slot only.
This holds because a step never has fewer rows than `ROWS`, and neither has the part of a trunk:
with fewer rows a CPU uses other kernels (`apart` checks it on the host). The texts decide how many
slots there are and which text is in which slot. The tensors of a step are on the device, and are
copied there only when texts come or go.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from evalkit.engine.tree import attention, buffers
from evalkit.engine.tree.attention import HIDDEN, Part, Scores
from evalkit.engine.tree.buffers import BLOCK, Buffers, Step

if TYPE_CHECKING:
    from evalkit.engine.tree.tree import Layers, Prefix

ROWS = 4  # a step, and a trunk's part of it, have a multiple of it: kernels work on 4 rows


@dataclass(frozen=True, eq=False)
class Stem:
    """The trunk's cache under the texts of a batch, and the most tokens that one of these texts may
    have, with those of the trunk."""

    prefix: "Prefix"
    longest: int


@dataclass(frozen=True, slots=True)
class _Order:
    """The queries for each trunk, one trunk after another. Each group of a slot is one query.

    `ends` lists each stem with a trunk and the end of its queries. `rows` [queries] is the index of
    each query in the step; None if these are all queries in order. `back` [slots x groups] is the
    place of each query's result. `bare` [slots x groups] marks the queries without a trunk; None
    if there are none.
    """

    ends: list[tuple[Stem, int]]
    rows: torch.Tensor | None
    back: torch.Tensor
    bare: torch.Tensor | None


@dataclass
class _OnDevice:
    """The tensors of a step on one device, since texts came or went last."""

    lengths: torch.Tensor  # [slots]: tokens without the new one
    live: torch.Tensor  # [slots]: 1 where there is a text
    slots: torch.Tensor  # [slots]
    before: torch.Tensor  # [slots]: the trunk's tokens
    orders: dict[tuple[int, int], _Order] = field(default_factory=dict)  # by groups and unit


class Slots:
    """The `View` of one new token for each slot. `lengths` are the slots' tokens without the new
    one; `stems` are those of their texts, None where a slot is empty."""

    def __init__(self, device: torch.device, number: int) -> None:
        self._device = device
        self.lengths = [0] * number
        self.stems: list[Stem | None] = [None] * number
        self._layers: dict[int, Buffers] = {}
        self._closed = [0] * number  # tokens of each slot in full blocks
        self._there: dict[torch.device, _OnDevice] = {}
        self._steps: dict[torch.device, Step] = {}
        self._trunk_masks: dict[tuple[object, ...], torch.Tensor] = {}

    def fill(self, slot: int, stem: Stem, cache: "Layers", row: int, path: torch.Tensor) -> None:
        """Put a prompt into a slot: the tokens at `path` in a row of a prefill's cache."""
        self.lengths[slot], self.stems[slot] = len(path), stem
        self._closed[slot] = len(path) // BLOCK * BLOCK
        self._there.clear()
        for layer, (key, value) in cache.items():
            held = self._layers.setdefault(layer, buffers.of(key.device))
            held.reserve(len(self.lengths), max(self.lengths), key, value)
            index = path.to(key.device)
            held.put(slot, key[row].index_select(1, index), value[row].index_select(1, index))

    def empty(self, slot: int) -> None:
        """Remove the text of a slot, which stays as an empty slot."""
        self.lengths[slot], self.stems[slot], self._closed[slot] = 0, None, 0
        self._there.clear()

    def keep(self, slots: list[int], number: int) -> None:
        """Keep these slots, and add empty ones up to `number`."""
        more = number - len(slots)
        self.lengths = [self.lengths[slot] for slot in slots] + [0] * more
        self.stems = [*(self.stems[slot] for slot in slots), *([None] * more)]
        self._closed = [self._closed[slot] for slot in slots] + [0] * more
        self._there.clear()
        index = torch.tensor(slots, dtype=torch.long, device=self._device)
        for held in self._layers.values():
            held.keep(index, number, max(self.lengths) + 1)

    def inputs(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the model's arguments for the newest tokens [slots]: ids and positions, [slots,
        1]."""
        for held in self._layers.values():
            held.grow(max(self.lengths) + 1)
        for slot, length in enumerate(self.lengths):
            if length - self._closed[slot] == BLOCK:
                self._closed[slot] = length
                for held in self._layers.values():
                    held.close(slot, length)
        self._steps.clear()
        self._trunk_masks.clear()
        there = self._on(self._device)
        positions = there.before + there.lengths
        return {"input_ids": tokens.unsqueeze(1), "position_ids": positions.unsqueeze(1)}

    def stepped(self) -> None:
        """Count the token that each text has just taken in."""
        for slot, stem in enumerate(self.stems):
            self.lengths[slot] += stem is not None
        for there in self._there.values():
            there.lengths = there.lengths + there.live

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """Append the new token of each slot, and attend to the trunk and the slot's tokens."""
        slots, heads = query.shape[:2]
        held, step = self._layers[layer], self._step(query.device)
        held.write(key, value, step)
        grouped = query.view(slots, key.shape[1], -1, query.shape[-1])
        output, total = held.attend(grouped, scores, step)
        own = output.reshape(slots, heads, 1, -1), total.reshape(slots, heads, 1)
        trunk = self._trunks(layer, query, key.shape[1], scores)
        return attention.merge(own, trunk, scores.sinks, query.dtype)

    def _trunks(
        self, layer: int, query: torch.Tensor, key_heads: int, scores: Scores
    ) -> Part | None:
        """Attend with each slot to its trunk; None where no slot has one."""
        slots, heads, _, size = query.shape
        order = self._order(query.device, heads // key_heads, scores)
        if not order.ends:
            return None
        grouped = query.view(slots, key_heads, -1, size).transpose(0, 1)
        queries = grouped.reshape(1, key_heads, -1, size)  # a slot's groups one after another
        if order.rows is not None:
            queries = queries.index_select(2, order.rows)
        parts, first = [], 0
        for stem, end in order.ends:
            key, value = stem.prefix.layers[layer]
            mask = self._trunk_mask(order, stem, slice(first, end), scores.window, query)
            parts.append(attention.attend(queries[:, :, first:end], key, value, scores, mask))
            first = end
        output, total = parts[0]
        if order.rows is not None:
            output = torch.cat([part[0] for part in parts], 2).index_select(2, order.back)
            total = torch.cat([part[1] for part in parts], 2).index_select(2, order.back)
        if order.bare is not None:
            total = total.masked_fill(order.bare, HIDDEN)
        output = output.view(key_heads, slots, -1, output.shape[-1]).transpose(0, 1)
        total = total.view(key_heads, slots, -1).transpose(0, 1)
        return output.reshape(slots, heads, 1, -1), total.reshape(slots, heads, 1)

    def _trunk_mask(
        self, order: _Order, stem: Stem, rows: slice, window: int | None, query: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the mask [1, 1, rows, trunk tokens], or None where no text of the batch can get
        longer than the window."""
        if window is None or stem.longest < window:
            return None
        key = (id(stem), id(order), window, query.device, query.dtype)
        if key not in self._trunk_masks:
            length = stem.prefix.length
            each = self._on(query.device).lengths
            newest = each.repeat_interleave(len(order.back) // len(each)) + length
            newest = newest if order.rows is None else newest.index_select(0, order.rows)[rows]
            seen = newest.unsqueeze(1) - torch.arange(length, device=query.device) < window
            self._trunk_masks[key] = attention.hide(seen, query.dtype)[None, None]
        return self._trunk_masks[key]

    def _step(self, device: torch.device) -> Step:
        if device not in self._steps:
            there, whole = self._on(device), max(self._closed)
            self._steps[device] = Step(there.lengths, there.slots, tuple(self.lengths), whole, {})
        return self._steps[device]

    def _on(self, device: torch.device) -> _OnDevice:
        """Return the tensors of a step on a device, copied there after texts came or went."""
        if device not in self._there:
            before = [stem.prefix.length if stem else 0 for stem in self.stems]
            live = [int(stem is not None) for stem in self.stems]
            table = [self.lengths, live, list(range(len(live))), before]
            lengths, alive, numbers, trunks = torch.tensor(table, device=device).unbind()
            self._there[device] = _OnDevice(lengths, alive, numbers, trunks)
        return self._there[device]

    def _order(self, device: torch.device, groups: int, scores: Scores) -> _Order:
        orders = self._on(device).orders
        unit = ROWS if scores.softcap is None else attention.VECTOR
        if (groups, unit) not in orders:
            orders[groups, unit] = _ordered(self.stems, device, groups, unit)
        return orders[groups, unit]


def _ordered(stems: list[Stem | None], device: torch.device, groups: int, unit: int) -> _Order:
    """Return the order of queries. On a CPU each trunk gets the queries of its own slots, in whole
    units; on a GPU it gets those of all slots, so that no shape depends on the slots of texts."""
    each = [stem for stem in stems for _ in range(groups)]
    bare = [stem is not None and not stem.prefix.length for stem in each]
    own: dict[Stem, list[int]] = {}
    for row, stem in enumerate(each):
        if stem is not None and stem.prefix.length:
            own.setdefault(stem, []).append(row)
    is_one = len(own) == 1 and not any(bare) and len(each) % unit == 0
    rows: list[int] = []
    back = [0] * len(each)
    ends: list[tuple[Stem, int]] = []
    for stem, of_stem in own.items():
        everyone = is_one or device.type != "cpu"
        spare = of_stem[-1:] * (-len(of_stem) % unit)
        queries = list(range(len(each))) if everyone else of_stem + spare
        for at, row in enumerate(of_stem):
            back[row] = len(rows) + (row if everyone else at)
        rows += queries
        ends.append((stem, len(rows)))
    table = torch.tensor([back, list(map(int, bare))], device=device)
    return _Order(
        ends,
        None if is_one else torch.tensor(rows, device=device),
        table[0],
        table[1].bool() if any(bare) else None,
    )
