"""The `precise` profile: weights stay in memory as they are stored, and all is computed in float32.

There are two steps. `skeleton` lets transformers build the model for float32, so that its config,
its tables (rotary frequencies, scales of embeddings) and all else that follows from the dtype are
those of float32; only the parameters are loaded as they are stored. `upcast` then makes each
parameter read as float32 when it is used: one at a time, and freed right after. Where something is
looked up in it (a token's embedding, an expert's matrix), only that part is upcast. A layer's
experts are one parameter, which is upcast whole where one kernel computes them all. Upcasting is
exact, so the answers are those of the same checkpoint loaded in float32.

Why reading, and no forward hooks: a parent that uses its child's weight, or casts to its dtype,
sees float32 too; there is nothing to restore after an exception; accelerate may move weights in and
out meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

LOW = (torch.bfloat16, torch.float16)
# Functions that take a part of a tensor, or describe it. They come before the upcast.
_FIRST = {
    functional.embedding, torch.embedding, torch.index_select, torch.Tensor.index_select,
    torch.Tensor.__getitem__, torch.Tensor.data_ptr, torch.Tensor.size, torch.Tensor.dim,
    torch.Tensor.numel, torch.Tensor.stride,
}  # fmt: skip


class Stored(torch.Tensor):
    """A parameter in its stored dtype. Every operation on it sees float32."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Upcast, then call `func`; the other way round where `func` takes a part only."""
        with torch._C.DisableTorchFunctionSubclass():
            if func == torch.Tensor.dtype.__get__:  # type: ignore[attr-defined]
                return torch.float32
            first = func in _FIRST or getattr(func, "__name__", "") == "__get__"
            given = {
                name: read_parameter(value, not first) for name, value in (kwargs or {}).items()
            }
            result = func(*(read_parameter(value, not first) for value in args), **given)
            low = first and isinstance(result, torch.Tensor) and result.dtype in LOW
            return result.float() if low else result


def read_parameter(value: Any, upcast: bool) -> Any:
    """Return a stored parameter as a plain tensor, in float32 if `upcast`; lists of them too."""
    if isinstance(value, Stored):
        plain = value.as_subclass(torch.Tensor)
        return plain.float() if upcast else plain
    if isinstance(value, (list, tuple)) and any(isinstance(item, Stored) for item in value):
        return [read_parameter(item, upcast) for item in value]
    return value


@contextmanager
def skeleton(dtype: torch.dtype) -> Iterator[None]:
    """Let models that transformers loads for float32 in this block keep their parameters in
    `dtype`.

    transformers loads each parameter in the dtype that the empty model has for it. That dtype is
    changed between the building and the loading, in the only call between the two. The result of
    that call (which parameters always stay in float32) is then that for `dtype`.
    """
    from transformers import PreTrainedModel

    untyped: Any = PreTrainedModel
    original = untyped._get_dtype_plan

    def plan(model: Any, _: torch.dtype) -> Any:
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)
        return original(model, dtype)

    untyped._get_dtype_plan = plan
    try:
        yield
    finally:
        untyped._get_dtype_plan = original


def upcast(model: torch.nn.Module) -> None:
    """Make every low-precision parameter and buffer of `model` read as float32.

    Each module that has such tensors gets a subclass of its own class, with the same names, that
    wraps them when they are read. So does each of transformers' models, whose `dtype` is read too.
    """
    from transformers import PreTrainedModel

    subclasses: dict[type, type] = {}
    for module in list(model.modules()):
        tensors = (*module._parameters.values(), *module._buffers.values())
        low = any(tensor is not None and tensor.dtype in LOW for tensor in tensors)
        if low or isinstance(module, PreTrainedModel):
            own = type(module)
            if own not in subclasses:
                subclasses[own] = _reading(own, isinstance(module, PreTrainedModel))
            module.__class__ = subclasses[own]


def _reading(own: type, whole_model: bool) -> type:
    def get(module: Any, name: str) -> Any:
        value = own.__getattr__(module, name)  # type: ignore[attr-defined]
        if isinstance(value, torch.Tensor) and value.dtype in LOW:
            return value.detach().as_subclass(Stored)
        return value

    body: dict[str, object] = {"__getattr__": get, "__module__": own.__module__}
    body["__qualname__"], body["__doc__"] = own.__qualname__, own.__doc__
    if whole_model:
        body["dtype"] = property(lambda _: torch.float32)
    return type(own.__name__, (own,), body)
