"""The kernels of attention, of cumulative sums on a GPU, and of float32 products on a CPU.

The kernel of attention is read from a table of dtype, compute capability and head sizes; it is not
tried. So the choice is the same on every GPU of a kind, stands in the record, and is tested without
a GPU. Where the table has no row, plain products compute attention, in any dtype and size, with
more memory. Source: the checks that torch makes before it takes its memory-efficient kernel
(aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).

State-space and hybrid models (Mamba 2, Qwen3-Next and others) sum decays along short chunks. torch
has no deterministic kernel for cumulative sums of floats on a GPU and refuses them. Here such a sum
is a product with a triangle of ones in float32, which is deterministic. On a CPU nothing changes.

torch gives float32 products on a CPU to MKL. On x86 processors oneDNN, which torch uses for
bfloat16, is faster, above all for few rows and wide layers such as an LM head in decoding. oneDNN
arranges a weight anew for each product, which takes longer than the product where rows are few. So
the weights of a model that is not large are kept arranged.
"""

import platform
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
REHEARSED = (9, 0)  # without a GPU, for test tensors that only claim to lie on one
# transformers' model types whose code sums floats cumulatively; tests/test_kernels.py finds them.
CUMSUM_TYPES = (
    "bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "kimi_linear", "mamba2",
    "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp", "xlstm",
    "zamba2",
)  # fmt: skip
_cumsum = torch.cumsum
CUMSUM_NOTE = "cumulative sums are products with a triangle of ones"
PACKED_BYTES = 2 << 30  # of a model's linear layers; each worker has a copy of its own
TOKENS = 64  # that a weight is arranged for; oneDNN takes the same arrangement from 2 to thousands


class Path(NamedTuple):
    """The kernel that computes attention and, for a fallback, the reason."""

    kernel: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.kernel}: {self.why}" if self.why else self.kernel


@cache
def path(dtype: torch.dtype, capability: Capability, key: int, value: int) -> Path:
    """Return the kernel for heads of these sizes on a GPU of that compute capability."""
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
    """Return a GPU's compute capability."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else REHEARSED


def on(device: torch.device, dtype: torch.dtype, key: int, value: int) -> Path:
    """Return the kernel for heads of these sizes on a device."""
    if device.type == "cpu":
        return Path(FLASH) if key >= value else Path(PLAIN, "values are wider than keys")
    return path(dtype, capability(device.index), key, value)


def describe_attention(engine: Any) -> str:
    """Return how the attention of an engine's model is computed, for the record."""
    if engine.level != "tree":
        return f"transformers' {engine.numerics.attention}"
    shape = architecture.shape_of(engine.model.config.get_text_config())
    if shape.softcap:
        return str(Path(PLAIN, "scores are capped"))
    dtype = torch.float32 if engine.numerics.profile == "precise" else engine.model.dtype
    return str(on(engine.device, dtype, shape.key, shape.value))


def needs_cumsum(config: Any, device: str) -> bool:
    """Return whether a model of that config sums cumulatively on that device, which is a GPU."""
    kinds = (getattr(config, "model_type", ""), config.get_text_config().model_type)
    return device != "cpu" and any(kind.startswith(CUMSUM_TYPES) for kind in kinds)


def replace_cumsum() -> None:
    """Use `cumsum` for every cumulative sum in this process from now on."""
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


class Linear(torch.nn.Linear):
    """A linear layer that oneDNN computes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return _product(input, self.weight, self.bias)


class Packed(Linear):
    """The same, with its weight kept as oneDNN arranges it, beside the weight itself."""

    _packed: tuple[int, torch.Tensor] | None = None  # with the version of the packed weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        version = self.weight._version
        if self._packed is None or self._packed[0] != version:
            arrange: Any = torch.ops.mkldnn._reorder_linear_weight
            self._packed = version, arrange(self.weight.detach(), TOKENS)
        return _product(input, self._packed[1], self.bias)

    def __getstate__(self) -> dict[str, object]:
        """Leave out the packed weight, which torch can't copy."""
        return {name: value for name, value in vars(self).items() if name != "_packed"}


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def use_onednn(model: Any) -> None:
    """Let oneDNN compute the linear layers of a model on a CPU in float32. Nothing changes where
    torch lacks it or the processor is no x86. Whether weights are packed depends on the model only,
    so it is the same on every host."""
    onednn: Any = torch.backends.mkldnn  # untyped
    if not onednn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return
    linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
    small = 4 * sum(module.weight.numel() for module in linear) <= PACKED_BYTES
    for module in linear:
        module.__class__ = Packed if small else Linear
