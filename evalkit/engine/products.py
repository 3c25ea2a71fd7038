"""Matrix products in float32 on a CPU: oneDNN's, which torch itself takes for bfloat16.

torch gives those of float32 to MKL. On x86 processors oneDNN is the faster one, the more so the
fewer the rows and the wider the layer, as an LM head is in decoding.
"""

import platform
from typing import Any

import torch


class Linear(torch.nn.Linear):
    """A linear layer by oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return product


def use_onednn(model: Any) -> None:
    """Have it compute the linear layers of a model on a CPU that computes in float32; where torch
    lacks it or the processor is another one, nothing changes."""
    onednn: Any = torch.backends.mkldnn  # untyped
    if not onednn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Linear
