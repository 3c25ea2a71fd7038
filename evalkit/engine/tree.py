"""Rows that are forests: what they look like to the model, and what each token sees.

A token sees the batch's trunk and its own ancestors in its row, itself included, whatever else the
row holds.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evalkit.batch import Row
from evalkit.engine import attention
from evalkit.engine.attention import Scores

if TYPE_CHECKING:
    from evalkit.engine.core import Engine
    from evalkit.engine.trunk import Layers, Prefix


class Tree:
    """The `View` of rows packed side by side, on a trunk's cache.

    With `taking`, it keeps every layer's own keys and values in `taken`.
    """

    def __init__(
        self, rows: tuple[Row, ...], width: int, prefix: "Prefix", engine: "Engine", *,
        taking: bool = False,
    ) -> None:  # fmt: skip
        self._prefix, self._device, self._taking = prefix, engine.device, taking
        self.taken: Layers = {}
        self._ids = np.zeros((len(rows), width), dtype=np.int64)
        self.depths = np.zeros((len(rows), width), dtype=np.int64)  # tokens before it in its row
        for index, row in enumerate(rows):
            self._ids[index, : len(row.tokens)] = row.tokens
            self.depths[index, : len(row.tokens)] = depths(row)
        self._rows = rows
        self._chains = all(len(row.starts) == 1 for row in rows)
        self._masks: dict[Any, torch.Tensor | None] = {}
        self._longest = prefix.length + int(self.depths.max()) + 1

    def inputs(self) -> dict[str, torch.Tensor]:
        """The model's arguments: token ids and positions, [rows, tokens] each."""
        positions = torch.from_numpy(self.depths + self._prefix.length)
        ids = torch.from_numpy(self._ids)
        return {
            "input_ids": ids.to(self._device),
            "position_ids": positions.to(self._device),
        }

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """Own ancestors, and the trunk where there is one."""
        if self._taking:
            self.taken[layer] = (key, value)
        rows, heads = query.shape[:2]
        # a window that no token reaches out of is none
        window = scores.window if scores.window and scores.window < self._longest else None
        causal = self._chains and window is None
        mask = None if causal else self._own_mask(window, query)
        parts = [attention.attend(query, key, value, scores, mask, causal=causal)]
        if self._prefix.length:
            trunk_key, trunk_value = self._prefix.layers[layer]
            folded = attention.fold_rows(query, trunk_key.shape[1])
            trunk_mask = self._trunk_mask(window, query, heads // trunk_key.shape[1])
            part = attention.attend(folded, trunk_key, trunk_value, scores, trunk_mask)
            parts.append(attention.unfold_rows(part, rows, heads))
        return attention.merge(parts, scores.sinks)

    def _own_mask(self, window: int | None, query: torch.Tensor) -> torch.Tensor:
        """[rows, 1, tokens, tokens]."""
        key = ("own", window, query.device, query.dtype)
        if key not in self._masks:
            width = self._ids.shape[1]
            seen = np.stack([visible(row, width) for row in self._rows])
            if window is not None:
                seen &= self.depths[:, :, None] - self.depths[:, None, :] < window
            hidden = attention.hide(torch.from_numpy(seen).to(query.device), query.dtype)
            self._masks[key] = hidden.unsqueeze(1)
        found = self._masks[key]
        assert found is not None, "it was made above"
        return found

    def _trunk_mask(
        self, window: int | None, query: torch.Tensor, groups: int
    ) -> torch.Tensor | None:
        """[1, 1, groups x rows x tokens, trunk tokens], or None where all is seen."""
        if window is None:
            return None
        key = ("trunk", window, groups, query.device, query.dtype)
        if key not in self._masks:
            length = self._prefix.length
            positions = (self.depths + length).reshape(-1, 1)
            seen = positions - np.arange(length)[None, :] < window
            hidden = attention.hide(torch.from_numpy(seen).to(query.device), query.dtype)
            self._masks[key] = hidden.repeat(groups, 1)[None, None]
        return self._masks[key]


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
