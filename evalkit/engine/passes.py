"""One forward pass of a transformers model, and the rows of levels prefix and none.

The LM head computes logits at chosen places only. Rotary embeddings that keep state are reset
before each batch. Level prefix computes a trunk once and copies its state, recurrent state
included, for every row; level none shares nothing. Both use transformers' own caches and masks.
Scored rows are padded on the right, where causal attention never looks. Generated rows have one
length, because a recurrent state would take in the padding.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evalkit.plan.batch import Batch, Row, Trunk

if TYPE_CHECKING:
    from evalkit.engine.core import Engine


def reset_rotary(model: Any) -> None:
    """Put every rotary embedding of a model back to its first state.

    transformers' dynamic RoPE keeps the angles of the longest sequence so far, so a batch's
    answers would depend on the batches before it.
    """
    for module in model.modules():
        if not hasattr(module, "max_seq_len_cached") or not hasattr(module, "rope_type"):
            continue
        for name in [name for name, _ in module.named_buffers(recurse=False)]:
            first = getattr(module, name.replace("inv_freq", "original_inv_freq"), None)
            if name.endswith("inv_freq") and "original" not in name and first is not None:
                getattr(module, name).copy_(first)
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)


def output_at(model: Any, places: list[tuple[int, int]], **inputs: object) -> Any:
    """Run a forward pass over `inputs` and return transformers' output.

    Its logits [1, places, vocabulary] are those of `places`, (row, token) pairs. A hook passes only
    these tokens to the LM head, so what a model does after its head (soft-capping, scaling) still
    applies to them.
    """
    index = torch.tensor(places)  # [places, 2]

    def select(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        rows, tokens = index.to(args[0].device).unbind(dim=1)
        return (args[0][rows, tokens].unsqueeze(0),)  # [1, places, hidden]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        return model(**inputs)
    finally:
        handle.remove()


@dataclass
class State:
    """The cache that transformers keeps of the tokens so far, and their number: a cache whose first
    layer is recurrent does not know it."""

    cache: Any
    length: int = 0


def run(
    engine: "Engine", places: list[tuple[int, int]], input_ids: torch.Tensor, state: State | None
) -> Any:
    """Run input_ids [rows, tokens] after a state and return `output_at`'s output. The state takes
    in the tokens; with None nothing is kept."""
    if state is None:
        return output_at(engine.model, places, input_ids=input_ids, use_cache=False)
    names = inspect.signature(engine.model.forward).parameters
    inputs: dict[str, object] = {"input_ids": input_ids, "use_cache": True}
    inputs["past_key_values" if "past_key_values" in names else "cache_params"] = state.cache
    if "position_ids" in names:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + state.length
        inputs["position_ids"] = positions.expand(input_ids.shape)
    state.length += input_ids.shape[1]
    return output_at(engine.model, places, **inputs)


def padded(engine: "Engine", rows: Sequence[Row], width: int) -> torch.Tensor:
    """Return the token ids of rows, padded on the right: [rows, width]."""
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.tokens)] = torch.from_numpy(row.tokens.astype("int64"))
    return input_ids.to(engine.device)


def start(engine: "Engine", batch: Batch, rows: int) -> State:
    """Return a state for `rows` rows of a batch, after its trunk."""
    if batch.trunk is None:
        return _empty(engine)
    state = copy.deepcopy(_trunk(engine, batch.trunk, batch.chunk))
    state.cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=engine.device))
    return state


def _empty(engine: "Engine") -> State:
    """Return an empty cache with the kinds of layers that the model has."""
    from transformers import DynamicCache

    return State(DynamicCache(config=engine.model.config))


def _trunk(engine: "Engine", trunk: Trunk, chunk: int) -> State:
    """Return the state after a trunk; `engine.kept` holds it from one batch to the next.

    Another trunk is computed from its root again: a recurrent state can't be cut back to the state
    of a parent.
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
