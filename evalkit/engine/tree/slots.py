"""Fixed slots for texts that grow on one trunk (level A).

A slot holds the keys and values of one text behind the trunk. Each layer's buffer is as long as the
longest text in it needs, in steps of `BUCKET`; how many slots there are and what stands in which
follows from the texts alone.
"""

from typing import TYPE_CHECKING

import torch

from evalkit.engine.tree import attention
from evalkit.engine.tree.attention import Scores

if TYPE_CHECKING:
    from evalkit.engine.tree.trunk import Layers, Prefix

BUCKET = 64  # tokens


class Slots:
    """The `View` of one new token a slot. `lengths`: each slot's tokens but for the new one."""

    def __init__(self, prefix: "Prefix", device: torch.device, most: int) -> None:
        self._prefix, self._device, self._most = prefix, device, most
        self.lengths: list[int] = []
        self._buffers: Layers = {}  # key, value: [slots, key heads, bucket, size]
        self._used = 0
        self._masks: dict[tuple[int | None, torch.device, torch.dtype], torch.Tensor] = {}
        self._trunk_masks: dict[tuple[int, int, torch.device, torch.dtype], torch.Tensor] = {}
        self._where: dict[torch.device, torch.Tensor] = {}

    def fill(self, slot: int, cache: "Layers", row: int, path: list[int]) -> None:
        """Put a prompt, the tokens at `path` of a row of a prefill's cache, into a slot; one past
        the last makes another."""
        self.lengths[slot : slot + 1] = [len(path)]
        self._reserve(max(self.lengths), cache)
        for layer, taken in cache.items():
            index = torch.tensor(path, device=taken[0].device)
            for buffer, own in zip(self._buffers[layer], taken, strict=True):
                buffer[slot, :, : len(path)] = own[row, :, index]

    def _reserve(self, tokens: int, like: "Layers") -> None:
        """Make every layer's buffer hold all slots with `tokens` tokens each."""
        length = -(-tokens // BUCKET) * BUCKET
        for layer, pair in like.items():
            old = self._buffers.get(layer, (None, None))
            is_across = attention.lies_across(pair[1])
            self._buffers[layer] = (
                _grown(old[0], pair[0], self._most, length),
                _grown(old[1], pair[1], self._most, length, is_across=is_across),
            )

    def keep(self, slots: list[int]) -> None:
        """Go on with these slots only."""
        self.lengths, self._most = [self.lengths[slot] for slot in slots], len(slots)
        for layer, (key, value) in self._buffers.items():
            index = torch.tensor(slots, device=key.device)
            self._buffers[layer] = (_chosen(key, index), _chosen(value, index))

    def inputs(self, tokens: list[int]) -> dict[str, torch.Tensor]:
        """The model's arguments for the slots' newest tokens: ids and positions, [slots, 1]."""
        self._reserve(max(self.lengths) + 1, self._buffers)
        self._used = -(-(max(self.lengths) + 1) // BUCKET) * BUCKET
        self._masks, self._trunk_masks, self._where = {}, {}, {}
        positions = [self._prefix.length + length for length in self.lengths]
        return {
            "input_ids": torch.tensor(tokens, device=self._device).unsqueeze(1),
            "position_ids": torch.tensor(positions, device=self._device).unsqueeze(1),
        }

    def stepped(self) -> None:
        """Count the token that every slot has just taken in."""
        self.lengths = [length + 1 for length in self.lengths]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """The trunk, the slot's tokens, and the new one, which is put behind them."""
        slots, heads = query.shape[:2]
        keys, values = self._buffers[layer]
        where = self._placed(query.device)
        keys[where[0], :, where[1]] = key[:, :, 0]
        values[where[0], :, where[1]] = value[:, :, 0]
        key_heads = keys.shape[1]
        grouped = query.view(slots, key_heads, heads // key_heads, -1)
        output, total = attention.attend(
            grouped, keys[:slots, :, : self._used], values[:slots, :, : self._used], scores,
            self._mask(scores.window, query), across=attention.lies_across(values),
        )  # fmt: skip
        own = output.reshape(slots, heads, 1, -1), total.reshape(slots, heads, 1)
        trunk = None
        if self._prefix.length:
            trunk_key, trunk_value = self._prefix.layers[layer]
            folded = attention.fold_rows(query, key_heads)
            mask = self._trunk_mask(scores.window, query, heads // key_heads)
            part = attention.attend(folded, trunk_key, trunk_value, scores, mask)
            trunk = attention.unfold_rows(part, slots, heads)
        return attention.merge(own, trunk, scores.sinks)

    def _placed(self, device: torch.device) -> torch.Tensor:
        """Where the new tokens go: (slot, index in its buffer), [2, slots]."""
        if device not in self._where:
            places = [list(range(len(self.lengths))), self.lengths]
            self._where[device] = torch.tensor(places, device=device)
        return self._where[device]

    def _mask(self, window: int | None, query: torch.Tensor) -> torch.Tensor:
        """[slots, 1, 1, bucket]."""
        key = (window, query.device, query.dtype)
        if key not in self._masks:
            newest = self._placed(query.device)[1].unsqueeze(1)
            index = torch.arange(self._used, device=query.device)
            seen = index <= newest
            if window is not None:
                seen &= newest - index < window
            self._masks[key] = attention.hide(seen, query.dtype)[:, None, None]
        return self._masks[key]

    def _trunk_mask(
        self, window: int | None, query: torch.Tensor, groups: int
    ) -> torch.Tensor | None:
        """[1, 1, groups x slots, trunk tokens], or None where all is seen."""
        length = self._prefix.length
        if window is None or length + max(self.lengths) < window:
            return None
        key = (window, groups, query.device, query.dtype)
        if key not in self._trunk_masks:
            newest = self._placed(query.device)[1].unsqueeze(1) + length
            seen = newest - torch.arange(length, device=query.device) < window
            hidden = attention.hide(seen, query.dtype)
            self._trunk_masks[key] = hidden.repeat(groups, 1)[None, None]
        return self._trunk_masks[key]


def _grown(
    old: torch.Tensor | None, like: torch.Tensor, slots: int, length: int, *,
    is_across: bool = False,
) -> torch.Tensor:  # fmt: skip
    """A buffer of that size with the old one's content; the old one where it is long enough."""
    if old is not None and old.shape[2] >= length:
        return old
    _, heads, _, size = like.shape
    if is_across:
        buffer = like.new_empty(slots, heads, size, length).mT
    else:
        buffer = like.new_empty(slots, heads, length, size)
    known = 0  # tokens
    if old is not None:
        known = old.shape[2]
        buffer[:, :, :known] = old
    buffer[:, :, known:] = 0  # nothing that is hidden may be a NaN
    return buffer


def _chosen(buffer: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The buffer with these slots only, as it lies in memory."""
    kept = torch.empty_like(buffer[: len(slots)])  # keeps the order of strides
    return torch.index_select(buffer, 0, slots, out=kept)
