"""Ways to compute the same answers otherwise, and weights that are not the recorded model's: what
`bench.noise` holds an audit against.

Ways are honest: the record's weights and dtype, other kernels. What a CPU can vary stands for other
hardware: the order of sums, where intermediate values are rounded, the attention kernel. Changes
are dishonest: each makes a loaded model another one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from evalkit.engine.hardware import kernels
from evalkit.engine.tree import attention

SEED = 0
PARTS = 4  # of a matrix product whose sum is split
LAYER, LAYER_CHANGE = 15, 0.01  # one layer's weights, relative to their spread
RANK, LORA_CHANGE = 8, 0.02  # a merged LoRA, relative to the norm of the weights it is added to
STEPS, LEARNING_RATE, TEXT_TOKENS = 20, 2e-5, 96  # of fine-tuning

Change = Callable[[Any], None]


# Honest ways to compute


class _Wide(torch.nn.Linear):
    """A product in float32, of weights kept in it, whose output is rounded to the input's dtype."""

    wide: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return functional.linear(input.float(), self.wide).to(input.dtype)


class _SplitSum(_Wide):
    """Likewise, its sum cut in parts, which are added from the last to the first."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        parts = [functional.linear(x, w) for x, w in _parts(input.float(), self.wide)]
        return torch.stack(parts[::-1]).sum(dim=0).to(input.dtype)


class _RoundedSum(torch.nn.Linear):
    """Likewise, each part rounded to the weights' dtype before it is added: what GPU libraries do
    unless they are forbidden to."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        first, *others = (functional.linear(x, w) for x, w in _parts(input, self.weight))
        for part in others:
            first = first + part
        return first


class _WideOutput(_Wide):
    """Likewise, its output not rounded."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return functional.linear(input.float(), self.wide)


def _parts(input: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    sides = (input.tensor_split(PARTS, dim=-1), weight.tensor_split(PARTS, dim=-1))
    return zip(*sides, strict=True)


def _products(model: Any, kind: type[torch.nn.Linear], only: str = "") -> None:
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and only in name:
            module.wide = module.weight.float()
            module.__class__ = kind


def split_sums(model: Any) -> None:
    """Sums of matrix products in another order."""
    _products(model, _SplitSum)


def rounded_sums(model: Any) -> None:
    """Sums of matrix products from rounded parts."""
    _products(model, _RoundedSum)


def float32_logits(model: Any) -> None:
    """Logits that are not rounded."""
    _products(model, _WideOutput, "lm_head")


def fused(model: Any) -> None:
    """Norms and activations in one kernel each, which rounds once where separate ones round
    twice."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = _norm(module)
        elif hasattr(module, "gate_proj"):
            module.forward = _gated(module)


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return (module.weight.float() * wide).to(x.dtype)

    return forward


def _gated(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(module.gate_proj(x).float())
        output: torch.Tensor = module.down_proj((gate * module.up_proj(x).float()).to(x.dtype))
        return output

    return forward


@contextmanager
def float32_attention() -> Iterator[None]:
    """Attention computed in float32 until the end of the block."""
    own = attention.attend

    def attend(*given: Any, **named: Any) -> attention.Part:
        output, total = own(*map(_wide, given), **{name: _wide(x) for name, x in named.items()})
        return output.to(given[0].dtype), total

    with _attending(attend):
        yield


def _wide(value: Any) -> Any:
    low = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if low else value


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by plain products, rounded in between, until the end of the block."""
    module: Any = kernels
    choose = module.on
    module.on = lambda *_: kernels.Path(kernels.PLAIN)
    try:
        yield
    finally:
        module.on = choose


@contextmanager
def _attending(attend: Any) -> Iterator[None]:
    module: Any = attention
    own = module.attend
    module.attend = attend
    try:
        yield
    finally:
        module.attend = own


# Dishonest weights


def quantised(bits: int, group: int | None = None) -> Change:
    """Every matrix of the layers rounded to the nearest of 2^bits - 1 values, with a scale for each
    output or for each `group` inputs of it; stored again in the model's dtype."""

    def change(model: Any) -> None:
        most = 2 ** (bits - 1) - 1
        for weight in _matrices(model):
            wide = weight.float().reshape(weight.shape[0], -1, group or weight.shape[1])
            scale = wide.abs().amax(dim=-1, keepdim=True) / most
            weight.copy_(((wide / scale).round() * scale).reshape(weight.shape))

    return change


def one_layer(model: Any) -> None:
    """Noise on one layer's matrices."""
    source = torch.Generator().manual_seed(SEED)
    for weight in model.model.layers[LAYER].parameters():
        if weight.dim() == 2:
            noise = torch.randn(weight.shape, generator=source)
            weight.copy_(weight.float() + LAYER_CHANGE * weight.float().std() * noise)


def merged_lora(model: Any) -> None:
    """A random adapter of low rank added to every layer's query and value matrices."""
    source = torch.Generator().manual_seed(SEED)
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            down = torch.randn(RANK, weight.shape[1], generator=source)
            product = torch.randn(weight.shape[0], RANK, generator=source) @ down
            wide = weight.float()
            weight.copy_(wide + product * (LORA_CHANGE * wide.norm() / product.norm()))


def fine_tuned(texts: list[list[int]]) -> Change:
    """A few steps of AdamW in float32 on some token sequences."""

    def change(model: Any) -> None:
        own = model.config._attn_implementation
        attention.switch(model, "sdpa")
        weights = list(model.parameters())
        for weight in weights:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        steps = torch.optim.AdamW(weights, lr=LEARNING_RATE)
        for step in range(STEPS):
            tokens = torch.tensor([texts[step % len(texts)][:TEXT_TOKENS]])
            model(input_ids=tokens, labels=tokens).loss.backward()
            steps.step()
            steps.zero_grad(set_to_none=True)
        for weight in weights:
            weight.data = weight.data.bfloat16()
        attention.switch(model, own)

    return change


def _matrices(model: Any) -> Iterator[Any]:
    for name, weight in model.named_parameters():
        if "layers" in name and weight.dim() == 2:
            yield weight.data
