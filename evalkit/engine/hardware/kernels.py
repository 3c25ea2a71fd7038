"""Which kernel computes attention, and a deterministic one for cumulative sums on a GPU.

Attention's kernel is read from a table of dtype, compute capability and head sizes, not tried. So
the choice is the same on every GPU of a kind, stands in the record, and is tested without a GPU.
Where the table has no row, attention is computed by plain products, in any dtype and size, and in
more memory. Source: the checks that torch itself makes before it takes its memory-efficient kernel
(aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

State-space and hybrid models (Mamba 2, Qwen3-Next and their kin) sum decays along short chunks. On
a GPU torch has no deterministic kernel for cumulative sums of floats and refuses them. Here such a
sum is a product with a triangle of ones in float32, as deterministic as every other product; on a
CPU nothing changes.
"""

from functools import cache
from typing import Any, NamedTuple

import torch

from evalkit.inputs.models import architecture

EFFICIENT, FLASH, PLAIN = "efficient", "flash for CPUs", "plain"
Capability = tuple[int, int]
# dtype, first and last capability that has the kernel, and what head sizes are multiples of.
TABLE: tuple[tuple[torch.dtype, Capability, Capability, int], ...] = (
    (torch.bfloat16, (8, 0), (12, 1), 8),
    (torch.float16, (8, 0), (12, 1), 8),
    (torch.float16, (7, 0), (7, 5), 8),
    (torch.float16, (5, 0), (6, 2), 1),
    (torch.float32, (8, 0), (12, 1), 4),
    (torch.float32, (5, 0), (7, 5), 1),
)
REHEARSED = (9, 0)  # where there is no GPU to ask: tensors that only say that they lie on one
# transformers' model types whose code sums floats cumulatively; tests/test_kernels.py finds them.
CUMSUM_TYPES = (
    "bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "kimi_linear", "mamba2",
    "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp", "xlstm",
    "zamba2",
)  # fmt: skip
_cumsum = torch.cumsum
CUMSUM_NOTE = "cumulative sums are products with a triangle of ones"


class Path(NamedTuple):
    """How attention is computed; where that is a fallback, why."""

    kernel: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.kernel}: {self.why}" if self.why else self.kernel


@cache
def path(dtype: torch.dtype, capability: Capability, key: int, value: int) -> Path:
    """The kernel for heads of these sizes on a GPU of that compute capability."""
    name = str(dtype).removeprefix("torch.")
    of_dtype = [row for row in TABLE if row[0] == dtype]
    rows = [row for row in of_dtype if row[1] <= capability <= row[2]]
    number = f"compute capability {capability[0]}.{capability[1]}"
    if not rows:
        return Path(PLAIN, f"no kernel for {name} at {number}")
    if value > key:
        return Path(PLAIN, f"values of {value} are wider than keys of {key}")
    multiple = rows[0][3]
    if key % multiple or value % multiple:
        return Path(PLAIN, f"heads of {key} and {value} are no multiples of {multiple} ({number})")
    return Path(EFFICIENT)


@cache
def capability(index: int | None) -> Capability:
    """A GPU's compute capability."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else REHEARSED


def on(device: torch.device, dtype: torch.dtype, key: int, value: int) -> Path:
    """The kernel for heads of these sizes on a device."""
    if device.type == "cpu":
        return Path(FLASH) if key >= value else Path(PLAIN, "values are wider than keys")
    return path(dtype, capability(device.index), key, value)


def told(engine: Any) -> str:
    """How the attention of an engine's model is computed, for the record."""
    if engine.level != "tree":
        return f"transformers' {engine.numerics.attention}"
    found = architecture.shape_of(engine.model.config.get_text_config())
    if found.softcap:
        return str(Path(PLAIN, "scores are capped"))
    dtype = torch.float32 if engine.numerics.profile == "precise" else engine.model.dtype
    return str(on(engine.device, dtype, found.key, found.value))


def needs_cumsum(config: Any, device: str) -> bool:
    """Return whether a model of that config sums cumulatively on that device, which is a GPU."""
    kinds = (getattr(config, "model_type", ""), config.get_text_config().model_type)
    return device != "cpu" and any(kind.startswith(CUMSUM_TYPES) for kind in kinds)


def replace_cumsum() -> None:
    """Let `cumsum` compute every cumulative sum from now on in this process."""
    untyped: Any = torch
    untyped.cumsum = cumsum
    untyped.Tensor.cumsum = cumsum


def cumsum(input: torch.Tensor, dim: int, **others: Any) -> torch.Tensor:
    """Return torch.cumsum's result; floats on a GPU are summed by `triangle_product`."""
    dtype = others.get("dtype") or input.dtype
    if input.device.type == "cpu" or not dtype.is_floating_point or others.get("out") is not None:
        return _cumsum(input, dim, **others)
    return triangle_product(input, dim).to(dtype)


def triangle_product(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the cumulative sum of floats along a dimension, in float32."""
    last = values.float().movedim(dim, -1)  # [..., along]
    along = last.shape[-1]
    ones = torch.ones(along, along, device=values.device).triu()
    return (last @ ones).movedim(-1, dim)
