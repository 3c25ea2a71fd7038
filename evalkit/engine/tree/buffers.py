"""The buffers for the keys and values of growing texts: one layer's, for all slots.

On a CPU (`Indexed`) all tokens of a slot are in one tensor, and a new token is written by its
index. On a GPU (`Blocks`) a deterministic write by index is slow: torch sorts the indices and
copies the whole buffer. So the last tokens of every slot, up to `BLOCK`, are in a tensor of their
own, of which each step writes all elements again. A full block is copied after the blocks before
it, by slices that the host knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from evalkit.engine.tree import attention
from evalkit.engine.tree.attention import Part, Scores

BUCKET = 64  # tokens by which buffers grow
BLOCK = 64  # tokens of a slot that a step may write; whole buckets keep masks aligned
SPARE = 512  # tokens of padding that cost a CPU less than another call


@dataclass(frozen=True)
class Step:
    """The arguments of a decoding step, on the buffers' device. `lengths` [slots] are the tokens of
    each slot without the new one; the host knows them as `known`, and `whole`, the most tokens in
    full blocks.
    """

    lengths: torch.Tensor
    slots: torch.Tensor  # [slots]: 0, 1, 2, ...
    known: Sequence[int]
    whole: int
    masks: dict[tuple[object, ...], torch.Tensor]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """The slots whose keys are computed together: see `spans`."""
        return spans(self.known)

    def mask(
        self, first: torch.Tensor | int, keys: int, end: torch.Tensor, window: int | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        """Return the mask [slots, 1, 1, keys] of the keys from place `first` of each slot: a new
        token sees those before `end` within the window."""
        place = torch.arange(keys, device=self.lengths.device) + first  # [keys] or [slots, keys]
        seen = place < end.unsqueeze(1)
        if window is not None:
            seen = seen & (self.lengths.unsqueeze(1) - place < window)
        return attention.hide(seen, dtype)[:, None, None]


def spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Divide slots with these tokens: return the end of each part and the most tokens of a slot in
    it with the new one, in whole buckets. Neighbours stay together as long as padding them to the
    longest costs less than another call."""
    found: list[tuple[int, int]] = []
    first = needed = 0  # of the last span: its first slot, and its tokens without padding
    for slot, length in enumerate(lengths):
        own = _whole(length + 1)
        most = max(own, found[-1][1]) if found else own
        if found and (slot + 1 - first) * most - needed - own <= SPARE:
            found[-1] = (slot + 1, most)
            needed += own
        else:
            found.append((slot + 1, own))
            first, needed = slot, own
    return found


def _whole(tokens: int) -> int:
    """Return the tokens of the whole buckets that so many need."""
    return -(-tokens // BUCKET) * BUCKET


class Buffers(Protocol):
    """The keys and values of one layer."""

    def reserve(self, slots: int, tokens: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Make room for `tokens` tokens in each of `slots` slots, with the dtype, device and sizes
        of the given key and value [..., key heads, tokens, size]."""

    def grow(self, tokens: int) -> None:
        """Make room for `tokens` tokens in each slot."""

    def put(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Replace a slot's keys and values with these, [key heads, tokens, size]."""

    def keep(self, slots: torch.Tensor, number: int, tokens: int) -> None:
        """Keep these slots, and add empty ones up to `number`. Room for more than `tokens` tokens
        in each is given up."""

    def close(self, slot: int, tokens: int) -> None:
        """Copy the last block of a slot, which is full. `tokens`: all tokens of the slot."""

    def write(self, key: torch.Tensor, value: torch.Tensor, step: Step) -> None:
        """Append each slot's new token: [slots, key heads, 1, size]."""

    def attend(self, query: torch.Tensor, scores: Scores, step: Step) -> Part:
        """Attend with queries [slots, key heads, groups, size] to their own slot."""


def of(device: torch.device) -> Buffers:
    """Return buffers for a device."""
    return Indexed() if device.type == "cpu" else Blocks()


class Indexed:
    """Buffers with all tokens in one tensor: [slots, key heads, tokens, size]."""

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None

    def reserve(self, slots: int, tokens: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """See `Buffers`."""
        length = _whole(tokens)
        is_across = attention.lies_across(value)
        self.key = _grown(self.key, key, slots, length)
        self.value = _grown(self.value, value, slots, length, is_across=is_across)

    def grow(self, tokens: int) -> None:
        """See `Buffers`."""
        assert self.key is not None and self.value is not None, "there is something"
        self.reserve(len(self.key), tokens, self.key, self.value)

    def put(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """See `Buffers`."""
        assert self.key is not None and self.value is not None, "there is room"
        for old, new in ((self.key, key), (self.value, value)):
            old[slot, :, : new.shape[1]] = new
            old[slot, :, new.shape[1] :] = 0  # an old value may be a NaN

    def keep(self, slots: torch.Tensor, number: int, tokens: int) -> None:
        """See `Buffers`."""
        assert self.key is not None and self.value is not None, "there is something"
        length = _whole(tokens)
        self.key, self.value = (
            _kept(old[:, :, :length], slots, number) for old in (self.key, self.value)
        )

    def close(self, slot: int, tokens: int) -> None:
        """Do nothing: there are no blocks."""

    def write(self, key: torch.Tensor, value: torch.Tensor, step: Step) -> None:
        """See `Buffers`."""
        assert self.key is not None and self.value is not None, "there is room"
        self.key[step.slots, :, step.lengths] = key[:, :, 0]
        self.value[step.slots, :, step.lengths] = value[:, :, 0]

    def attend(self, query: torch.Tensor, scores: Scores, step: Step) -> Part:
        """See `Buffers`."""
        kind = (scores.window, query.dtype)
        if kind not in step.masks:
            most = max(used for _, used in step.spans)
            step.masks[kind] = step.mask(0, most, step.lengths + 1, *kind)
        parts, first = [], 0
        for end, used in step.spans:
            of, mask = slice(first, end), step.masks[kind][first:end, ..., :used]
            parts.append(self.part(query[of], used, scores, mask, of))
            first = end
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def part(
        self, query: torch.Tensor, keys: int, scores: Scores, mask: torch.Tensor,
        slots: slice = slice(None),
    ) -> Part:  # fmt: skip
        """Attend with queries to the first `keys` tokens of these slots."""
        assert self.key is not None and self.value is not None, "there is something"
        return attention.attend(
            query, self.key[slots, :, :keys], self.value[slots, :, :keys], scores, mask,
            across=attention.lies_across(self.value),
        )  # fmt: skip


class Blocks:
    """Buffers with full blocks in one tensor and the last tokens of each slot in another."""

    def __init__(self) -> None:
        self._full, self._last = Indexed(), Indexed()

    def reserve(self, slots: int, tokens: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """See `Buffers`."""
        self._full.reserve(slots, max(tokens // BLOCK, 1) * BLOCK, key, value)
        self._last.reserve(slots, BLOCK, key, value)

    def grow(self, tokens: int) -> None:
        """See `Buffers`."""
        self._full.grow(tokens // BLOCK * BLOCK)

    def put(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """See `Buffers`."""
        whole = key.shape[1] // BLOCK * BLOCK
        self._full.put(slot, key[:, :whole], value[:, :whole])
        self._last.put(slot, key[:, whole:], value[:, whole:])

    def keep(self, slots: torch.Tensor, number: int, tokens: int) -> None:
        """See `Buffers`."""
        self._full.keep(slots, number, max(tokens // BLOCK, 1) * BLOCK)
        self._last.keep(slots, number, BLOCK)

    def close(self, slot: int, tokens: int) -> None:
        """See `Buffers`."""
        for full, last in ((self._full.key, self._last.key), (self._full.value, self._last.value)):
            assert full is not None and last is not None, "there is something"
            full[slot, :, tokens - BLOCK : tokens] = last[slot]

    def write(self, key: torch.Tensor, value: torch.Tensor, step: Step) -> None:
        """See `Buffers`."""
        if ("here",) not in step.masks:
            place = torch.arange(BLOCK, device=key.device) == (step.lengths % BLOCK).unsqueeze(1)
            step.masks["here",] = place[:, None, :, None]
        for new, last in ((key, self._last.key), (value, self._last.value)):
            assert last is not None, "there is room"
            torch.where(step.masks["here",], new, last, out=last)

    def attend(self, query: torch.Tensor, scores: Scores, step: Step) -> Part:
        """See `Buffers`."""
        kind = (scores.window, query.dtype)
        if ("last", *kind) not in step.masks:
            whole, end = step.lengths // BLOCK * BLOCK, step.lengths + 1
            step.masks["last", *kind] = step.mask(whole.unsqueeze(1), BLOCK, end, *kind)
            step.masks["full", *kind] = step.mask(0, step.whole, whole, *kind)
        own = self._last.part(query, BLOCK, scores, step.masks["last", *kind])
        if not step.whole:
            return own
        full = self._full.part(query, step.whole, scores, step.masks["full", *kind])
        return attention.joined(own, full)


def _grown(
    old: torch.Tensor | None, like: torch.Tensor, slots: int, length: int, *,
    is_across: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Return a buffer of that size with the content of the old one, or the old one if it is long
    enough."""
    if old is not None and old.shape[2] >= length:
        return old
    heads, size = like.shape[-3], like.shape[-1]
    if is_across:
        buffer = like.new_empty(slots, heads, size, length).mT
    else:
        buffer = like.new_empty(slots, heads, length, size)
    known = 0  # tokens
    if old is not None:
        known = old.shape[2]
        buffer[:, :, :known] = old
    buffer[:, :, known:] = 0  # a hidden value must not be a NaN
    return buffer


def _kept(buffer: torch.Tensor, slots: torch.Tensor, number: int) -> torch.Tensor:
    """Return a buffer of `number` slots with the same layout in memory: these slots, then empty
    ones."""
    size = (number, *buffer.shape[1:])
    is_across = buffer.stride(-1) != 1
    shape = (number, size[1], size[3], size[2]) if is_across else size
    kept = buffer.new_empty(shape)
    kept = kept.mT if is_across else kept
    torch.index_select(buffer, 0, slots.to(buffer.device), out=kept[: len(slots)])
    kept[len(slots) :] = 0
    return kept
