"""Matrix products in float32 on a CPU: oneDNN's, which torch itself takes for bfloat16.

torch gives those of float32 to MKL. On x86 processors oneDNN is the faster one, the more so the
fewer the rows and the wider the layer, as an LM head is in decoding. It arranges a weight anew for
each product, which takes longer than the product itself where the rows are few, so the weights of a
model that isn't large are kept arranged.
"""

import platform
from typing import Any

import torch

PACKED_BYTES = 2 << 30  # of a model's linear layers; each worker has a copy of its own
TOKENS = 64  # for which they are arranged; oneDNN takes the same arrangement from 2 to thousands


class Linear(torch.nn.Linear):
    """A linear layer by oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return _product(input, self.weight, self.bias)


class Packed(Linear):
    """The same, its weight kept as oneDNN arranges it, beside the weight itself."""

    _packed: tuple[int, torch.Tensor] | None = None  # with the version of what was packed

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        version = self.weight._version
        if self._packed is None or self._packed[0] != version:
            arrange: Any = torch.ops.mkldnn._reorder_linear_weight
            self._packed = version, arrange(self.weight.detach(), TOKENS)
        return _product(input, self._packed[1], self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed: torch can't copy that."""
        return {name: value for name, value in vars(self).items() if name != "_packed"}


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def use_onednn(model: Any) -> None:
    """Have it compute the linear layers of a model on a CPU that computes in float32; where torch
    lacks it or the processor is another one, nothing changes. Whether they are packed follows from
    the model alone, so it does not differ from host to host."""
    onednn: Any = torch.backends.mkldnn  # untyped
    if not onednn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return
    linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
    small = 4 * sum(module.weight.numel() for module in linear) <= PACKED_BYTES
    for module in linear:
        module.__class__ = Packed if small else Linear
