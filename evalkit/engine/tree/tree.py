"""Rows that are trees, as one forward pass sees them, and the key-value cache of their trunk.

A token sees the batch's trunk and its own ancestors in its row, itself included, whatever else the
row holds. A trunk is computed alone, in the plan's chunks, after its parent's cache. Its cache is
therefore the same for every batch, and keeping it or computing it again gives the same bits.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evalkit.engine import passes
from evalkit.engine.tree import attention
from evalkit.engine.tree.attention import Scores
from evalkit.engine.tree.tail import Counted, Narrowing, Place
from evalkit.plan.batch import Row, Trunk

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]  # key, value: [1, key heads, tokens, size]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Prefix:
    """The cache of a trunk: the keys and values of all its tokens, its parents' included, by
    layer."""

    length: int = 0
    layers: Layers = field(default_factory=dict)

    def grown(self, taken: Layers, tokens: int) -> "Prefix":
        """Return this cache with the cache of another chunk added at its end. All tensors are new,
        so that their layout in memory does not depend on what was cached before."""
        if not self.length:
            return Prefix(tokens, {n: (k.clone(), v.clone()) for n, (k, v) in taken.items()})
        joined = {
            layer: (torch.cat([key, taken[layer][0]], 2), torch.cat([value, taken[layer][1]], 2))
            for layer, (key, value) in self.layers.items()
        }
        return Prefix(self.length + tokens, joined)


NOTHING = Prefix()


def prefix(engine: "Engine", trunk: Trunk | None, chunk: int) -> Prefix:
    """Return the cache of a trunk (None: an empty one), and compute what is missing of it.

    `engine.kept` holds the caches of the last trunk and its parents.
    """
    chain: list[Trunk] = []
    while trunk is not None:
        chain.insert(0, trunk)
        trunk = trunk.parent
    kept: list[tuple[str, Prefix]] = engine.kept or []
    common = 0
    while common < min(len(kept), len(chain)) and kept[common][0] == chain[common].id:
        common += 1
    kept = kept[:common]
    engine.kept = kept  # frees the memory of the other caches before more is allocated
    for link in chain[common:]:
        cache = kept[-1][1] if kept else NOTHING
        for tokens in link.chunks(chunk):
            tree = Tree((Row(tokens, (0,), (-1,)),), len(tokens), cache, engine, taking=True)
            tree.logits([(0, len(tokens) - 1)])
            cache = cache.grown(tree.taken, len(tokens))
        kept.append((link.id, cache))
    return kept[-1][1] if kept else NOTHING


class Tree:
    """The `View` of packed rows after a trunk's cache, for one forward pass.

    With `taking`, `taken` keeps the keys and values that each layer computed.
    """

    def __init__(
        self, rows: tuple[Row, ...], width: int, prefix: Prefix, engine: "Engine", *,
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
        """Run the forward pass and return its logits [places, vocabulary] in the model's dtype.
        `places` are (row, token) pairs."""
        device = self._engine.device
        inputs = {
            "input_ids": torch.from_numpy(self._ids).to(device),
            "position_ids": torch.from_numpy(self.depths + self._prefix.length).to(device),
        }
        counted = Counted(places, *self._ids.shape)
        self._narrowing = Narrowing(self._engine.tail, counted) if counted.pays else None
        narrowed = self._narrowing.active() if self._narrowing else nullcontext()
        with attention.viewing(self), narrowed:
            model = self._engine.model
            output = passes.output_at(model, places, **inputs, use_cache=False)
        logits: torch.Tensor = output.logits[0]
        return logits

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """Attend to each token's ancestors and to the trunk."""
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
        """Attend with the queries of all tokens, or with those of the counted ones only."""
        rows, heads = query.shape[:2]
        # a window that is longer than every path changes nothing
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
        """Return the mask of the rows' own tokens: [rows, 1, queries, tokens]."""
        key = ("own", window, counted, query.device, query.dtype)
        if key not in self._masks:
            queries = self._queries(counted)
            if self._chains:
                seen = np.arange(self._ids.shape[1]) <= queries[:, :, None]
            else:
                width, by_row = self._ids.shape[1], zip(self._rows, queries, strict=True)
                seen = np.stack([visible(row, width)[tokens] for row, tokens in by_row])
            if window is not None:
                depths = np.take_along_axis(self.depths, queries, 1)
                seen &= depths[:, :, None] - self.depths[:, None, :] < window
            hidden = attention.hide(torch.from_numpy(seen).to(query.device), query.dtype)
            self._masks[key] = hidden.unsqueeze(1)
        return self._masks[key]

    def _trunk_mask(
        self, window: int | None, query: torch.Tensor, groups: int, counted: Counted | None
    ) -> torch.Tensor | None:
        """Return the mask of the trunk: [1, 1, groups x rows x queries, trunk tokens]; None where
        every query sees all of it."""
        if window is None:
            return None
        key = ("trunk", window, groups, counted, query.device, query.dtype)
        if key not in self._masks:
            length = self._prefix.length
            depths = np.take_along_axis(self.depths, self._queries(counted), 1)
            seen = (depths + length).reshape(-1, 1) - np.arange(length)[None, :] < window
            hidden = attention.hide(torch.from_numpy(seen).to(query.device), query.dtype)
            self._masks[key] = hidden.repeat(groups, 1)[None, None]
        return self._masks[key]

    def _queries(self, counted: Counted | None) -> Indices:
        """Return the index in its row of each query's token: [rows, queries]."""
        if counted is not None:
            return counted.padded
        rows, width = self._ids.shape
        return np.broadcast_to(np.arange(width), (rows, width))


def depths(row: Row) -> Indices:
    """Return how many tokens of the row come before each token on its path: [tokens]."""
    depth = np.zeros(len(row.tokens), dtype=np.int64)
    ends = [*row.starts[1:], len(row.tokens)]
    for start, end, parent in zip(row.starts, ends, row.parents, strict=True):
        first = 0 if parent < 0 else depth[parent] + 1
        depth[start:end] = np.arange(first, first + end - start)
    return depth


def visible(row: Row, width: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which tokens of the row each token sees: [width, width]; padding sees itself."""
    seen = np.eye(width, dtype=np.bool_)
    ends = [*row.starts[1:], len(row.tokens)]
    for start, end, parent in zip(row.starts, ends, row.parents, strict=True):
        if parent >= 0:
            seen[start:end] |= seen[parent]
        seen[start:end, start:end] |= np.tri(end - start, dtype=np.bool_)
    return seen


def path_end(row: Row, end: int, tokens: int) -> list[int]:
    """Return the indices in the row of the last `tokens` tokens of the path that ends at `end`."""
    branch = int(np.searchsorted(row.starts, end, side="right")) - 1
    path: list[int] = []
    while len(path) < tokens:
        start = row.starts[branch]
        path.extend(range(end, max(start, end - (tokens - len(path)) + 1) - 1, -1))
        end = row.parents[branch]
        branch = int(np.searchsorted(row.starts, end, side="right")) - 1
    return path[::-1]
