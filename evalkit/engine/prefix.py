"""Levels prefix and none: rows through transformers' own caches and masks, or through none.

Level prefix computes a trunk once and gives every row a copy of its state, recurrent states too.
Level none shares nothing. Scored rows are padded on the right, where a causal model never looks;
generated ones are of one length, because padding would pass through a recurrent state.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evalkit.engine.tree import head
from evalkit.plan.batch import Batch, Row, Trunk

if TYPE_CHECKING:
    from evalkit.engine.core import Engine


@dataclass
class State:
    """What transformers keeps of the tokens so far, and how many there are: a cache whose first
    layer is recurrent does not know."""

    cache: Any
    length: int = 0


def run(
    engine: "Engine", places: list[tuple[int, int]], input_ids: torch.Tensor, state: State | None
) -> Any:
    """A forward pass over input_ids [rows, tokens] behind a state (None: nothing is kept)."""
    if state is None:
        return head.run(engine.model, places, input_ids=input_ids, use_cache=False)
    names = inspect.signature(engine.model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": True}
    inputs["past_key_values" if "past_key_values" in names else "cache_params"] = state.cache
    if "position_ids" in names:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + state.length
        inputs["position_ids"] = positions.expand(input_ids.shape)
    state.length += input_ids.shape[1]
    return head.run(engine.model, places, **inputs)


def padded(engine: "Engine", rows: Sequence[Row], width: int) -> torch.Tensor:
    """The rows' token ids, padded on the right: [rows, tokens]."""
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.tokens)] = torch.from_numpy(row.tokens.astype("int64"))
    return input_ids.to(engine.device)


def start(engine: "Engine", batch: Batch, rows: int) -> State:
    """The state of some of the batch's rows behind its trunk."""
    if batch.trunk is None:
        return _empty(engine)
    state = copy.deepcopy(_trunk(engine, batch.trunk, batch.chunk))
    state.cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=engine.device))
    return state


def _empty(engine: "Engine") -> State:
    """A cache of the model's own kinds of layers."""
    from transformers import DynamicCache

    return State(DynamicCache(config=engine.model.config))


def _trunk(engine: "Engine", trunk: Trunk, chunk: int) -> State:
    """The state behind a trunk, kept in `engine.kept` from one batch to the next.

    It is computed from the root again for another trunk: a recurrent state can't be cut back to a
    parent's.
    """
    if engine.kept is not None and engine.kept[0] == trunk.id:
        kept: State = engine.kept[1]
        return kept
    engine.kept = None
    chain = [trunk]
    while chain[0].parent is not None:
        chain.insert(0, chain[0].parent)
    state = _empty(engine)
    for link in chain:
        for tokens in link.chunks(chunk):
            input_ids = torch.from_numpy(tokens.astype("int64"))[None].to(engine.device)
            run(engine, [(0, len(tokens) - 1)], input_ids, state)
    engine.kept = (trunk.id, state)
    return state
