"""The attention function of level tree, which transformers calls instead of its own.

A query attends to up to two sets of keys: those of a trunk, kept once for the whole batch, and
those of its own row or slot. The two results are merged by their log-sum-exps (cascade attention),
so a shared prefix is neither copied nor read once for each row. The active `View` supplies the keys
while the model runs; the model's own masks and caches are not used.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.hardware import kernels

NAME = "evalkit"
HIDDEN = -1e30  # added to a hidden key's score; finite, so a row that sees nothing gives no NaN
ALIGNED = 16  # keys: in a GPU's memory the length of a mask's row is a multiple of it
VECTOR = 32  # float32 elements that a CPU's vector instructions take at most
FAINT = -86.0  # e to it is barely a normal number: below it a CPU's exp takes ten times as long
FEW = 4  # up to so many queries of a key head, transposed values are the faster left factor
_PASSED_OVER = {"is_causal", "position_ids", "use_cache", "cu_seq_lens_q", "cu_seq_lens_k"}


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer computes scores from queries and keys.

    `scale` multiplies the product and `softcap` bounds it by tanh. `window` is the number of
    positions that a query sees, its own included. `sinks` [heads] are scores that take weight but
    add nothing to the output.
    """

    scale: float
    softcap: float | None
    window: int | None
    sinks: torch.Tensor | None


class View(Protocol):
    """Supplies the keys that the queries of a forward pass see."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """Return the output [rows, heads, tokens, value size] for query [rows, heads, tokens,
        size], key and value [rows, key heads, tokens, size]."""


Part = tuple[torch.Tensor, torch.Tensor]  # output [..., tokens, size], log-sum-exp [..., tokens]


class _Active(threading.local):
    """The views of this thread's current forward passes, the innermost last."""

    def __init__(self) -> None:
        self.views: list[View] = []


_active = _Active()


@contextmanager
def viewing(view: View) -> Iterator[None]:
    """Let attention layers use `view` until the end of the block."""
    _active.views.append(view)
    try:
        yield
    finally:
        _active.views.pop()


def forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None,
    s_aux: torch.Tensor | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Compute one layer's attention for transformers: [rows, tokens, heads, size].

    Raises EvalkitError for an argument that it does not know: ignoring it could change an answer.
    """
    unknown = sorted(
        name
        for name, given in others.items()
        if given is not None and given is not False and name not in _PASSED_OVER
    )
    if unknown or attention_mask is not None or dropout or not _active.views:
        what = ", ".join(unknown) or "a mask or dropout of its own"
        raise EvalkitError(
            f"this model's attention uses {what}, which sharing prefixes can't honour",
            fix="plan with --level prefix",
            code=Exit.FAILED,
        )
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    scores = Scores(float(scale), softcap, sliding_window, s_aux)
    output = _active.views[-1].attend(module.layer_idx, query, key, value, scores)
    return output.transpose(1, 2).contiguous(), None


def switch(model: Any, implementation: str) -> None:
    """Set a model's attention to this function (`NAME`) or to one of transformers' own. Raises
    EvalkitError where it can't be replaced."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, forward)
    if model.config._attn_implementation != implementation:
        if not model._can_set_attn_implementation():  # transformers would only warn
            raise EvalkitError(
                f"{type(model).__name__} has an attention of its own, so trees of rows can't share",
                fix="plan with --level prefix",
                code=Exit.FAILED,
            )
        model.set_attn_implementation(implementation)


@contextmanager
def plain(engine: Any) -> Iterator[None]:
    """Let an engine's model use transformers' own attention until the end of the block."""
    before = engine.model.config._attn_implementation
    switch(engine.model, engine.numerics.attention)
    try:
        yield
    finally:
        switch(engine.model, before)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores,
    mask: torch.Tensor | None = None, *, causal: bool = False, across: bool = False,
) -> Part:  # fmt: skip
    """Attend with query [rows, heads, tokens, size] to key and value [rows, key heads, keys, size].
    Each key head serves the same number of query heads.

    `mask` [rows or 1, 1, tokens, keys] is added to the scores. `causal` needs as many keys as
    tokens. `across` says that `value` is transposed in memory (`lies_across`). The log-sum-exp is
    in float32.
    """
    if scores.softcap is None and not across:
        chosen = kernels.on(key.device, key.dtype, key.shape[-1], value.shape[-1]).kernel
        if chosen != kernels.PLAIN:
            return _KERNELS[chosen](query, key, value, scores.scale, mask, causal)
    if causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        mask = hide(ones.tril(), torch.float32)
    return _plain(query, key, value, scores, mask, across)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores,
    mask: torch.Tensor | None, across: bool,
) -> Part:  # fmt: skip
    key, value = (_repeated(each, query.shape[1]) for each in (key, value))
    product = torch.matmul(query, key.mT).float().mul_(scores.scale)
    if scores.softcap is not None:
        product = product.div_(scores.softcap).tanh_().mul_(scores.softcap)
    if mask is not None:
        product += mask
    most = product.amax(dim=-1, keepdim=True)
    weights = product.sub_(most).clamp_(min=FAINT).exp_()
    weights = functional.threshold(weights, 2 * math.exp(FAINT), 0.0, inplace=True)
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights.div_(total).to(value.dtype)
    if across and query.shape[-2] <= FEW:
        output = torch.matmul(value.mT, weights.mT).mT
    else:
        output = torch.matmul(weights, value)
    return output, (most + evenly(torch.log, total)).squeeze(-1)


def lies_across(values: torch.Tensor) -> bool:
    """Return whether the values of growing texts should be transposed in memory (size by size, not
    token by token): a CPU then reads them in long runs."""
    return values.device.type == "cpu" and values.dtype == torch.float32


def _cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float,
    mask: torch.Tensor | None, causal: bool,
) -> Part:  # fmt: skip
    size = value.shape[-1]
    if size < key.shape[-1]:  # latent attention
        value = functional.pad(value, (0, key.shape[-1] - size))
    # key heads are not repeated: the bits are the same, and it is a tenth faster
    output, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output[..., :size], total


def _cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float,
    mask: torch.Tensor | None, causal: bool,
) -> Part:  # fmt: skip
    if mask is not None:
        if mask.stride(-2) % ALIGNED:  # its rows were repeated after `hide`
            keys = mask.shape[-1]
            mask = functional.pad(mask, (0, -keys % ALIGNED))[..., :keys]
        mask = mask.expand(query.shape[0], query.shape[1], *mask.shape[-2:])
    key, value = (_repeated(each, query.shape[1]) for each in (key, value))
    output, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, 0.0, causal, scale=scale
    )
    return output, total[..., : query.shape[-2]]  # the kernel pads it to a multiple of 32


def _repeated(key: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat key heads [rows, key heads, keys, size] for their groups of query heads."""
    groups = heads // key.shape[1]
    return key if groups == 1 else key.repeat_interleave(groups, dim=1)


_KERNELS: dict[str, Callable[..., Part]] = {kernels.FLASH: _cpu, kernels.EFFICIENT: _cuda}


def hide(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask that hides all that is not `visible` (bool, any shape), to be added to
    scores. On a GPU its rows are aligned for the kernel."""
    *rows, keys = visible.shape
    spare = 0 if visible.device.type == "cpu" else -keys % ALIGNED
    mask = torch.zeros(*rows, keys + spare, dtype=dtype, device=visible.device)[..., :keys]
    return mask.masked_fill_(~visible, max(HIDDEN, torch.finfo(dtype).min))


def joined(one: Part, other: Part) -> Part:
    """Join attention over two disjoint sets of keys to attention over both (Hydragen,
    arXiv:2402.05099, section 3). A part that sees nothing does not change the bits of the other."""
    return _mixed(one, other), evenly(torch.logaddexp, one[1], other[1])


def _mixed(one: Part, other: Part) -> torch.Tensor:
    """Return the mean of outputs [rows, heads, tokens, size], weighted by the softmax of their
    log-sum-exps, in float32."""
    share = evenly(torch.sigmoid, other[1] - one[1])  # the softmax of two
    return torch.lerp(one[0].float(), other[0].float(), share.unsqueeze(-1))


def evenly(function: Callable[..., torch.Tensor], *values: torch.Tensor) -> torch.Tensor:
    """Apply a function to each element, with bits that do not depend on the number of elements. A
    CPU computes the elements after the last whole vector by other instructions, so the values are
    padded to whole vectors."""
    shape, count = values[0].shape, values[0].numel()
    if values[0].device.type != "cpu" or count % VECTOR == 0:
        return function(*values)
    padded = [functional.pad(each.reshape(-1), (0, -count % VECTOR)) for each in values]
    return function(*padded)[:count].view(shape)


def merge(
    own: Part, trunk: Part | None, sinks: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the output of attention to a row's own keys and to those of a trunk. `sinks` [heads]
    take weight without output."""
    if sinks is None:
        return (own[0] if trunk is None else _mixed(own, trunk)).to(dtype)
    output, total = own if trunk is None else joined(own, trunk)
    share = evenly(torch.sigmoid, total - sinks.float().view(1, -1, 1))
    return (output.float() * share.unsqueeze(-1)).to(dtype)


def fold_rows(query: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Fold the queries of all rows into one row, for keys that all rows share: [rows, heads,
    tokens, size] -> [1, key heads, groups x rows x tokens, size]."""
    rows, heads, tokens, size = query.shape
    grouped = query.view(rows, key_heads, heads // key_heads, tokens, size)
    return grouped.permute(1, 2, 0, 3, 4).reshape(1, key_heads, -1, size)


def unfold_rows(part: Part, rows: int, heads: int) -> Part:
    """Reverse `fold_rows` for an output and its log-sum-exp."""
    output, total = part
    key_heads = output.shape[1]
    shape = (key_heads, heads // key_heads, rows, -1)
    output = output.view(*shape, output.shape[-1]).permute(2, 0, 1, 3, 4)
    total = total.view(shape).permute(2, 0, 1, 3)
    return output.reshape(rows, heads, -1, output.shape[-1]), total.reshape(rows, heads, -1)
