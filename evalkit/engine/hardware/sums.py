"""Cumulative sums on a GPU: torch's own of floats has no deterministic kernel, so here is another.

State-space and hybrid models (Mamba 2, Qwen3-Next and their kin) sum decays along short chunks. On
a GPU torch refuses that while algorithms are held to be deterministic. Here it is a product with a
triangle of ones in float32, as deterministic as every other product; on a CPU nothing changes.
"""

from typing import Any

import torch

# transformers' model types whose code sums floats cumulatively; tests/test_kernels.py finds them.
TYPES = (
    "bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "kimi_linear", "mamba2",
    "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp", "xlstm",
    "zamba2",
)  # fmt: skip
_cumsum = torch.cumsum
NOTE = "cumulative sums are products with a triangle of ones"


def needed(config: Any, device: str) -> bool:
    """Whether a model of that config sums cumulatively on that device, which is a GPU."""
    kinds = (getattr(config, "model_type", ""), config.get_text_config().model_type)
    return device != "cpu" and any(kind.startswith(TYPES) for kind in kinds)


def replace() -> None:
    """Let every cumulative sum of floats on a GPU be a product, from now on in this process."""
    untyped: Any = torch
    untyped.cumsum = cumsum
    untyped.Tensor.cumsum = cumsum


def cumsum(input: torch.Tensor, dim: int, **others: Any) -> torch.Tensor:
    """torch.cumsum; floats on a GPU by `product`."""
    dtype = others.get("dtype") or input.dtype
    if input.device.type == "cpu" or not dtype.is_floating_point or others.get("out") is not None:
        return _cumsum(input, dim, **others)
    return product(input, dim).to(dtype)


def product(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The cumulative sum of floats along a dimension, in float32."""
    last = values.float().movedim(dim, -1)  # [..., along]
    along = last.shape[-1]
    ones = torch.ones(along, along, device=values.device).triu()
    return (last @ ones).movedim(-1, dim)
