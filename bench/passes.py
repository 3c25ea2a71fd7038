"""Counts what a model is made to compute, the same way on both sides: by its forward passes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = 64  # the engine's slots grow in steps of this many tokens


@dataclass(slots=True)
class Pass:
    """A forward pass: rows of `tokens` each, the `keys` that the longest row sees, of which the
    first `shared` are held once for all rows, and the positions that went through the LM head."""

    rows: int
    tokens: int
    keys: int
    shared: int = 0
    head: int = 0


@contextmanager
def watch(model: Any, passes: list[Pass]) -> Iterator[None]:
    """Add every forward pass of the model to `passes` until the block ends."""

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        keys = ids.shape[1]
        if kwargs.get("attention_mask") is not None:
            keys = kwargs["attention_mask"].shape[-1]
        elif kwargs.get("position_ids") is not None:
            keys = int(kwargs["position_ids"].max()) + 1
        passes.append(Pass(ids.shape[0], ids.shape[1], keys))

    def after(_: Any, __: Any, output: Any) -> None:
        passes[-1].head = output.numel() // output.shape[-1]

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.get_output_embeddings().register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def num_tokens(passes: Sequence[Pass]) -> int:
    """Tokens computed, padding included."""
    return sum(one.rows * one.tokens for one in passes)


def num_head(passes: Sequence[Pass]) -> int:
    """Positions whose logits were computed."""
    return sum(one.head for one in passes)


def steps(passes: Sequence[Pass]) -> list[Pass]:
    """Decoding steps: passes of one token a row."""
    return [one for one in passes if one.tokens == 1]


def keys_in_slots(passes: Sequence[Pass]) -> int:
    """Keys (with their values) that evalkit's decoding steps move: each reads the trunk once and a
    bucket of every slot, and writes a token a slot."""
    return sum(
        one.shared + one.rows * (-(-(one.keys - one.shared) // BUCKET) * BUCKET + 1)
        for one in steps(passes)
    )


def keys_grown(passes: Sequence[Pass]) -> int:
    """Keys (with their values) that transformers' `generate` moves: a step's attention reads every
    row's whole cache, padding too, which was first read and written again to grow by a token."""
    return sum(3 * one.rows * one.keys for one in steps(passes))
