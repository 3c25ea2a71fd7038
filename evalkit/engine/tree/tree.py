"""Rows that are forests: what they look like to the model, and what each token sees.

A token sees the batch's trunk and its own ancestors in its row, itself included, whatever else the
row holds.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evalkit.engine.tree import attention, head
from evalkit.engine.tree.attention import Scores
from evalkit.engine.tree.tail import Counted, Narrowing, Place
from evalkit.plan.batch import Row

if TYPE_CHECKING:
    from evalkit.engine.core import Engine
    from evalkit.engine.tree.trunk import Layers, Prefix


class Tree:
    """The `View` of rows packed side by side, on a trunk's cache, for one forward pass.

    With `taking`, it keeps every layer's own keys and values in `taken`.
    """

    def __init__(
        self, rows: tuple[Row, ...], width: int, prefix: "Prefix", engine: "Engine", *,
        taking: bool = False,
    ) -> None:  # fmt: skip
        self._prefix, self._engine, self._taking = prefix, engine, taking
        self.taken: Layers = {}
        self._ids = np.zeros((len(rows), width), dtype=np.int64)
        self.depths = np.zeros((len(rows), width), dtype=np.int64)  # tokens before it in its row
        for index, row in enumerate(rows):
            self._ids[index, : len(row.tokens)] = row.tokens
            self.depths[index, : len(row.tokens)] = depths(row)
        self._rows = rows
        self._chains = all(len(row.starts) == 1 for row in rows)
        self._masks: dict[Any, torch.Tensor] = {}
        self._narrowing: Narrowing | None = None
        self._longest = prefix.length + int(self.depths.max()) + 1

    def logits(self, places: list[Place]) -> torch.Tensor:
        """Logits [places, vocabulary] of the forward pass, at (row, token) pairs."""
        device = self._engine.device
        inputs = {
            "input_ids": torch.from_numpy(self._ids).to(device),
            "position_ids": torch.from_numpy(self.depths + self._prefix.length).to(device),
        }
        counted = Counted(places, *self._ids.shape)
        self._narrowing = Narrowing(self._engine.tail, counted) if counted.pays else None
        narrowed = self._narrowing.active() if self._narrowing else nullcontext()
        with attention.viewing(self), narrowed:
            return head.logits(self._engine.model, places, **inputs, use_cache=False)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """Own ancestors, and the trunk where there is one."""
        if self._taking:
            self.taken[layer] = (key, value)
        if self._narrowing is None or not self._narrowing.attend():
            return self._attended(layer, query, key, value, scores, None)
        counted = self._narrowing.counted
        query = counted.of_rows(query)
        return counted.back_in_rows(self._attended(layer, query, key, value, scores, counted))

    def _attended(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores, counted: Counted | None,
    ) -> torch.Tensor:  # fmt: skip
        """What queries see; those of all tokens, or of the counted ones."""
        rows, heads = query.shape[:2]
        # a window that no token reaches out of is none
        window = scores.window if scores.window and scores.window < self._longest else None
        causal = self._chains and window is None and counted is None
        mask = None if causal else self._own_mask(window, query, counted)
        own = attention.attend(query, key, value, scores, mask, causal=causal)
        trunk = None
        if self._prefix.length:
            trunk_key, trunk_value = self._prefix.layers[layer]
            folded = attention.fold_rows(query, trunk_key.shape[1])
            groups = heads // trunk_key.shape[1]
            trunk_mask = self._trunk_mask(window, query, groups, counted)
            part = attention.attend(folded, trunk_key, trunk_value, scores, trunk_mask)
            trunk = attention.unfold_rows(part, rows, heads)
        return attention.merge(own, trunk, scores.sinks, query.dtype)

    def _own_mask(
        self, window: int | None, query: torch.Tensor, counted: Counted | None
    ) -> torch.Tensor:
        """[rows, 1, queries, tokens]."""
        key = ("own", window, counted, query.device, query.dtype)
        if key not in self._masks:
            asking = self._asking(counted)
            if self._chains:
                seen = np.arange(self._ids.shape[1]) <= asking[:, :, None]
            else:
                each = zip(self._rows, asking, strict=True)
                seen = np.stack([visible(row, self._ids.shape[1])[own] for row, own in each])
            if window is not None:
                depths = np.take_along_axis(self.depths, asking, 1)
                seen &= depths[:, :, None] - self.depths[:, None, :] < window
            hidden = attention.hide(torch.from_numpy(seen).to(query.device), query.dtype)
            self._masks[key] = hidden.unsqueeze(1)
        return self._masks[key]

    def _trunk_mask(
        self, window: int | None, query: torch.Tensor, groups: int, counted: Counted | None
    ) -> torch.Tensor | None:
        """[1, 1, groups x rows x queries, trunk tokens], or None where all is seen."""
        if window is None:
            return None
        key = ("trunk", window, groups, counted, query.device, query.dtype)
        if key not in self._masks:
            length = self._prefix.length
            depths = np.take_along_axis(self.depths, self._asking(counted), 1)
            seen = (depths + length).reshape(-1, 1) - np.arange(length)[None, :] < window
            hidden = attention.hide(torch.from_numpy(seen).to(query.device), query.dtype)
            self._masks[key] = hidden.repeat(groups, 1)[None, None]
        return self._masks[key]

    def _asking(self, counted: Counted | None) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which of its row's tokens the queries are of: [rows, queries]."""
        if counted is not None:
            return counted.padded
        rows, width = self._ids.shape
        return np.broadcast_to(np.arange(width), (rows, width))


def depths(row: Row) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How many of its row's tokens stand before each token on its path: [tokens]."""
    found = np.zeros(len(row.tokens), dtype=np.int64)
    ends = [*row.starts[1:], len(row.tokens)]
    for start, end, parent in zip(row.starts, ends, row.parents, strict=True):
        first = 0 if parent < 0 else found[parent] + 1
        found[start:end] = np.arange(first, first + end - start)
    return found


def visible(row: Row, width: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of its row's tokens each token sees: [width, width]; padding sees itself."""
    seen = np.eye(width, dtype=np.bool_)
    ends = [*row.starts[1:], len(row.tokens)]
    for start, end, parent in zip(row.starts, ends, row.parents, strict=True):
        if parent >= 0:
            seen[start:end] |= seen[parent]
        seen[start:end, start:end] |= np.tri(end - start, dtype=np.bool_)
    return seen


def path_end(row: Row, end: int, tokens: int) -> list[int]:
    """Indices in the row of the last `tokens` tokens of the path that ends at `end`."""
    branch = int(np.searchsorted(row.starts, end, side="right")) - 1
    found: list[int] = []
    while len(found) < tokens:
        start = row.starts[branch]
        found.extend(range(end, max(start, end - (tokens - len(found)) + 1) - 1, -1))
        end = row.parents[branch]
        branch = int(np.searchsorted(row.starts, end, side="right")) - 1
    return found[::-1]
