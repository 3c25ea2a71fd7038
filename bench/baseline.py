"""What lm-eval's `hf` model does with token ids, for machines where lm-eval is not installed.

The same batches, forwards and sums as lm-eval 0.4.13's `HFLM._loglikelihood_tokens` (with
`softmax_dtype=float32`) and `HFLM.generate_until`; tests/test_bench.py holds it against them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Scored:
    """A log-likelihood to compute: the context's token ids and the continuation's."""

    context: list[int]
    continuation: list[int]


def score(model: Any, asked: Sequence[Scored], size: int) -> list[tuple[float, bool]]:
    """Log-likelihoods and greedy flags, `size` rows at a time, longest first. Requests with the
    same input share a row."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(range(len(asked)), key=lambda i: _order(asked[i])):
        inputs = (*asked[index].context, *asked[index].continuation[:-1])
        rows.setdefault(inputs, []).append(index)
    found: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
    for batch in _batches(list(rows.items()), size):
        width = max(len(inputs) for inputs, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, (inputs, _) in enumerate(batch):
            ids[row, : len(inputs)] = torch.tensor(inputs)
        with torch.no_grad():
            logits = model(ids.to(model.device)).logits
        logprobs = functional.log_softmax(logits, dim=-1, dtype=torch.float32)
        for row, (inputs, indices) in enumerate(batch):
            for index in indices:
                found[index] = _summed(logprobs[row], len(inputs), asked[index].continuation)
    return found


def _order(one: Scored) -> tuple[int, tuple[int, ...]]:
    tokens = (*one.context, *one.continuation)
    return -len(tokens), tokens


def _summed(logprobs: torch.Tensor, length: int, continuation: list[int]) -> tuple[float, bool]:
    part = logprobs[length - len(continuation) : length]  # [scored, vocabulary]
    wanted = torch.tensor(continuation, device=part.device)
    greedy = (part.argmax(dim=-1) == wanted).all()
    values = torch.gather(part, 1, wanted.unsqueeze(-1)).squeeze(-1)
    return float(values.sum()), bool(greedy)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class _Stop:
    """Every row has shown a stop string in its last tokens."""

    def __init__(self, tokenizer: Any, stop: str, start: int, rows: int) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, stop, start
        self._length = len(tokenizer.encode(stop, add_special_tokens=False)) + 2
        self._done = [False] * rows

    def __call__(self, ids: torch.Tensor, *_: Any, **__: Any) -> bool:
        tails = self._tokenizer.batch_decode(ids[:, self._start :][:, -self._length :])
        self._done = [
            done or self._stop in tail for done, tail in zip(self._done, tails, strict=True)
        ]
        return all(self._done)


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], until: Sequence[str],
    new_tokens: int, size: int,
) -> list[list[int]]:  # fmt: skip
    """New token ids of every prompt, `size` at a time, longest first, padded on the left. `until`:
    stop strings."""
    from transformers import StoppingCriteriaList

    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for batch in _batches(order, size):
        width = max(len(prompts[index]) for index in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        stops: Any = [_Stop(tokenizer, stop, width, len(batch)) for stop in until]
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_length=width + new_tokens,
            stopping_criteria=StoppingCriteriaList(stops),
            pad_token_id=0,
            use_cache=True,
            do_sample=False,
        )
        for row, index in enumerate(batch):
            found[index] = made[row, width:].tolist()
    return found
