"""Computes the end of a model only at the places whose logits are needed.

After the last attention nothing mixes tokens. So the queries of the last attention, its output
projection and the feed-forward block after it are needed only at places whose logits are used.
Most places of a multiple-choice task, and all but one of a trunk, are left out and hold zeros.
The names of these modules are not known. To find them, two tokens go through the model once, and
its calls after the last attention are noted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from evalkit.engine.tree import attention
from evalkit.engine.tree.attention import Scores

Place = tuple[int, int]  # row, token
NARROW = 2  # leave places out only where at most 1 in 2 is needed: gathering has a cost


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a model: the number of `attentions` up to it, and the outermost modules with
    matrices in it, without the LM head."""

    attentions: int
    modules: tuple[torch.nn.Module, ...]


class Counted:
    """The places of a pass over [rows, width] tokens that are needed, each once."""

    def __init__(self, places: Sequence[Place], rows: int, width: int) -> None:
        self.shape = (rows, width)
        by_row: list[list[int]] = [[] for _ in range(rows)]
        for row, token in sorted(set(places)):
            by_row[row].append(token)
        self._by_row, self._most = by_row, max(map(len, by_row))
        self._moved: torch.Tensor | None = None

    @property
    def pays(self) -> bool:
        """Whether the places are few enough to leave out the others."""
        return NARROW * self._most <= self.shape[1]

    @cached_property
    def padded(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The tokens of each row, filled up with its first token: [rows, most]."""
        padded = np.zeros((self.shape[0], self._most), dtype=np.int64)
        for row, tokens in enumerate(self._by_row):
            padded[row, : len(tokens)] = tokens
        return padded

    def _index(self, device: torch.device) -> torch.Tensor:
        """Return the row of each place, its token, and its number in the row: [3, places]. It is
        copied to a device once, not for every module."""
        if self._moved is None or self._moved.device != device:
            rows = enumerate(self._by_row)
            table = [(row, token, n) for row, tokens in rows for n, token in enumerate(tokens)]
            self._moved = torch.tensor(table, device=device).T
        return self._moved

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Take the places by row, padded: [rows, heads, tokens, size] -> [rows, heads, most,
        size]."""
        at = torch.from_numpy(self.padded).to(values.device)
        rows = torch.arange(len(at), device=values.device).unsqueeze(1)
        return values.transpose(1, 2)[rows, at].transpose(1, 2)

    def back_in_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Reverse `of_rows`, with zeros at other places: [rows, heads, most, size] ->
        [rows, heads, tokens, size]."""
        row, _, number = self._index(values.device)
        return self.back(values.transpose(1, 2)[row, number].unsqueeze(0)).transpose(1, 2)

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Take the places: [rows, tokens, ...] -> [1, places, ...]."""
        row, token, _ = self._index(values.device)
        return values[row, token].unsqueeze(0)

    def back(self, values: torch.Tensor) -> torch.Tensor:
        """Reverse `of`, with zeros at other places."""
        row, token, _ = self._index(values.device)
        full = values.new_zeros(*self.shape, *values.shape[2:])
        full[row, token] = values[0]
        return full


class Narrowing:
    """A forward pass whose tail computes only the places `counted`, once its last attention has
    `begun`."""

    def __init__(self, tail: Tail, counted: Counted) -> None:
        self.counted, self._tail = counted, tail
        self._attentions = 0

    @property
    def begun(self) -> bool:
        """Whether the pass is in its last attention or after it."""
        return self._attentions == self._tail.attentions

    def attend(self) -> bool:
        """Count an attention, and return whether it is the last one."""
        self._attentions += 1
        return self.begun

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the tail's modules compute only the counted places until the end of the block."""
        handles = []
        for module in self._tail.modules:
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (self.counted.of(args[0]),) if self.begun else None

    def _after(self, _: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        return self.counted.back(output) if self.begun else None


@torch.inference_mode()
def find(model: Any) -> Tail:
    """Return the tail of a model that uses our attention, by a forward pass over two tokens."""
    view, calls = _Causal(), _Calls()
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda m, _: calls.enter(m, view.count)))
        handles.append(module.register_forward_hook(calls.leave, with_kwargs=True))
    device = model.get_input_embeddings().weight.device
    try:
        with attention.viewing(view):
            ids = torch.zeros(1, _Calls.TOKENS, dtype=torch.long, device=device)
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    behind = [m for m, before in calls.by_token.items() if before == view.count]
    head = model.get_output_embeddings()
    inner = {id(part) for module in behind for part in module.modules() if part is not module}
    outer = (m for m in behind if id(m) not in inner and m is not head)
    return Tail(view.count, tuple(m for m in outer if any(p.dim() > 1 for p in m.parameters())))


class _Causal:
    """The `View` of one row without a trunk, which counts the attentions."""

    def __init__(self) -> None:
        self.count = 0

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:  # fmt: skip
        """Attend to all tokens before each token."""
        self.count += 1
        return attention.attend(query, key, value, scores, causal=True)[0]


class _Calls:
    """The modules that take only a row of tokens and return one. `by_token` holds the number of
    attentions before the last call of each."""

    TOKENS = 2

    def __init__(self) -> None:
        self.by_token: dict[Any, int] = {}
        self._entered: dict[Any, int] = {}

    def enter(self, module: Any, attentions: int) -> None:
        """Note a call's beginning."""
        self._entered[module] = attentions

    def leave(
        self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, object], output: Any
    ) -> None:
        """Note a call's end."""
        if len(args) == 1 and not kwargs and self._is_row(args[0]) and self._is_row(output):
            self.by_token[module] = self._entered[module]

    def _is_row(self, value: Any) -> bool:
        return (
            isinstance(value, torch.Tensor) and value.dim() == 3 and value.shape[1] == self.TOKENS
        )
