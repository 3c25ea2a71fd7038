"""The `precise` profile: weights stay in memory as they are stored, and all is computed in float32.

Two steps. `skeleton` lets transformers build the model for float32, so that its config, its tables
(rotary frequencies, scales of embeddings) and whatever else it derives from the dtype are those of
float32, and load only the parameters as they are stored. `upcast` then makes each of them read as
float32 at the moment that it is used: one at a time, freed right after, and where something is
looked up in it (a token's embedding, an expert's matrix) only that. A layer's experts are one
parameter, upcast whole where one kernel computes them all. Upcasting is exact, so the answers are
those of the same checkpoint loaded in float32.

Reading, not forward hooks: a parent that uses its child's weight, or asks for its dtype in order to
cast to it, sees float32 too; there is nothing to put back after an exception; accelerate may move
weights in and out underneath.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

LOW = (torch.bfloat16, torch.float16)
# What takes a part of a tensor, or says where it lies: done before the upcast.
_FIRST = {
    functional.embedding, torch.embedding, torch.index_select, torch.Tensor.index_select,
    torch.Tensor.__getitem__, torch.Tensor.data_ptr, torch.Tensor.size, torch.Tensor.dim,
    torch.Tensor.numel, torch.Tensor.stride,
}  # fmt: skip


class Stored(torch.Tensor):
    """A parameter in the dtype that it is stored in; every operation on it sees float32."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Upcast, then do what was asked; the other way round where that takes a part only."""
        with torch._C.DisableTorchFunctionSubclass():
            if func == torch.Tensor.dtype.__get__:  # type: ignore[attr-defined]
                return torch.float32
            first = func in _FIRST or getattr(func, "__name__", "") == "__get__"
            given = {name: _read(value, not first) for name, value in (kwargs or {}).items()}
            found = func(*(_read(value, not first) for value in args), **given)
            low = first and isinstance(found, torch.Tensor) and found.dtype in LOW
            return found.float() if low else found


def _read(value: Any, upcast: bool) -> Any:
    if isinstance(value, Stored):
        plain = value.as_subclass(torch.Tensor)
        return plain.float() if upcast else plain
    if isinstance(value, (list, tuple)) and any(isinstance(item, Stored) for item in value):
        return [_read(item, upcast) for item in value]
    return value


@contextmanager
def skeleton(dtype: torch.dtype) -> Iterator[None]:
    """Models that transformers loads for float32 in this block keep their parameters in `dtype`.

    transformers loads each parameter in the dtype that its empty model has there, so that one is
    changed, between the building and the loading: at the only call which stands there, and whose
    answer (what is kept in float32 whatever was asked for) is then that for `dtype`.
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

    Each module that owns some gets a subclass of its own class, with the same names, that wraps
    what is read; so does each of transformers' models, whose `dtype` is asked for too.
    """
    from transformers import PreTrainedModel

    made: dict[type, type] = {}
    for module in list(model.modules()):
        tensors = (*module._parameters.values(), *module._buffers.values())
        low = any(tensor is not None and tensor.dtype in LOW for tensor in tensors)
        if low or isinstance(module, PreTrainedModel):
            own = type(module)
            if own not in made:
                made[own] = _reading(own, isinstance(module, PreTrainedModel))
            module.__class__ = made[own]


def _reading(own: type, whole_model: bool) -> type:
    def get(module: Any, name: str) -> Any:
        found = own.__getattr__(module, name)  # type: ignore[attr-defined]
        if isinstance(found, torch.Tensor) and found.dtype in LOW:
            return found.detach().as_subclass(Stored)
        return found

    body: dict[str, Any] = {"__getattr__": get, "__module__": own.__module__}
    body["__qualname__"], body["__doc__"] = own.__qualname__, own.__doc__
    if whole_model:
        body["dtype"] = property(lambda _: torch.float32)
    return type(own.__name__, (own,), body)
