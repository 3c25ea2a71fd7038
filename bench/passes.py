"""Counts what a model is made to compute, the same way on both sides: by its forward passes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = 64  # the engine's slots grow in steps of this many tokens


@dataclass(slots=True)
class Pass:
    """A forward pass: rows of `tokens` each, the `keys` that the longest row sees, of which the
    first `shared` are held once for all rows, and the positions that went through the LM head and
    through the `tail`, what stands behind the last attention."""

    rows: int
    tokens: int
    keys: int
    shared: int = 0
    head: int = 0
    tail: int = 0


def tail(model: Any) -> list[Any]:
    """A Llama's matrices behind its last attention, the LM head aside."""
    last = model.get_decoder().layers[-1]
    return [last.self_attn.o_proj, last.mlp.gate_proj, last.mlp.up_proj, last.mlp.down_proj]


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

    def inside(_: Any, args: tuple[Any, ...]) -> None:
        passes[-1].tail = args[0].numel() // args[0].shape[-1]

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        tail(model)[-1].register_forward_pre_hook(inside),
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


def parameters(config: dict[str, int]) -> dict[str, int]:
    """Numbers in a Llama's matrices: of its layers, of the tail among them, and of the LM head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide = config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    layer = hidden * (2 * hidden + 2 * wide + 3 * inner)
    return {
        "layer_parameters": config["num_hidden_layers"] * layer,
        "tail_parameters": hidden * (hidden + 3 * inner),
        "head_parameters": config["vocab_size"] * hidden,
    }


def flops(passes: Sequence[Pass], config: dict[str, int]) -> float:
    """FLOP of the matrix products of some passes of a Llama."""
    numbers = parameters(config)
    behind = numbers["tail_parameters"]
    done = num_tokens(passes) * (numbers["layer_parameters"] - behind)
    done += sum(one.tail for one in passes) * behind
    return 2.0 * (done + num_head(passes) * numbers["head_parameters"])


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
