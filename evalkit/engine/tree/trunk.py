"""The key-value cache of a trunk, computed once and read by every row that hangs on it.

A trunk is prefilled alone, in the plan's chunks, behind its parent's cache. So what it holds does
not depend on which batch asked for it, and keeping it or computing it again gives the same bits.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from evalkit.engine.tree.tree import Tree
from evalkit.plan.batch import Row, Trunk

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]  # key, value: [1, key heads, tokens, size]


@dataclass
class Prefix:
    """A trunk's cache: by layer, the keys and values of all its tokens, its parents' included."""

    length: int = 0
    layers: Layers = field(default_factory=dict)

    def grown(self, taken: Layers, tokens: int) -> "Prefix":
        """This cache with another chunk's behind it; new tensors, so that their layout in memory
        is the same whatever was cached before."""
        if not self.length:
            return Prefix(tokens, {n: (k.clone(), v.clone()) for n, (k, v) in taken.items()})
        joined = {
            layer: (torch.cat([key, taken[layer][0]], 2), torch.cat([value, taken[layer][1]], 2))
            for layer, (key, value) in self.layers.items()
        }
        return Prefix(self.length + tokens, joined)


NOTHING = Prefix()


def prefix(engine: "Engine", trunk: Trunk | None, chunk: int) -> Prefix:
    """The cache of a trunk, from the last batch's where it is the same or a parent.

    The engine keeps the chain of the last trunk's caches in `engine.kept`.
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
    engine.kept = kept  # the others' memory is free before more is asked for
    for link in chain[common:]:
        found = kept[-1][1] if kept else NOTHING
        for tokens in link.chunks(chunk):
            tree = Tree((Row(tokens, (0,), (-1,)),), len(tokens), found, engine, taking=True)
            tree.logits([(0, len(tokens) - 1)])
            found = found.grown(tree.taken, len(tokens))
        kept.append((link.id, found))
    return kept[-1][1] if kept else NOTHING
