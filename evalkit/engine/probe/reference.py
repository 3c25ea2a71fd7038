"""What transformers gives for a sequence that is alone: what the engine's answers are held against.

Plain forward passes over whole sequences, or, for what was generated, transformers' own `generate`,
which some architectures compute otherwise than a forward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from evalkit.base import canon
from evalkit.engine.numerics import precise

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

NEVER = 2**30  # no token's id


@dataclass(frozen=True, slots=True)
class Answered:
    """What is answered for the last tokens of a sequence: the sum of their log-probabilities and
    whether each is the most probable one, and, of generated ones, each log-probability."""

    tokens: list[int]
    count: int
    total: float
    greedy: bool
    each: list[float]

    def values(self) -> list[float]:
        """All log-probabilities."""
        return [self.total, *self.each]


@dataclass(frozen=True, slots=True)
class Alone:
    """What transformers gives for the same tokens, one sequence at a time: each log-probability,
    and by how much a token is ahead of (negative: behind) the best of the others. `steps` and
    `step_margins` are those of tokens that were generated."""

    each: list[float]
    margins: list[float]
    steps: list[float]
    step_margins: list[float]

    def values(self, answer: Answered) -> list[float]:
        """The log-probabilities that the answer has."""
        return [canon.total(self.each), *(self.steps if answer.each else ())]


def forward(engine: "Engine", answers: Sequence[Answered], padding: int = 0) -> list[Alone]:
    """What plain forward passes give over the answers' sequences, `padding` tokens behind each.

    A pass is a sequence alone in its batch. A sequence that begins another one is read off that
    one's pass, since no token sees a later one.
    """
    found: dict[int, Alone] = {}
    for group in _sharing_a_pass(answers):
        tokens = answers[group[0]].tokens
        input_ids = torch.tensor([tokens[:-1] + tokens[:1] * padding], device=engine.device)
        logits = engine.model(input_ids=input_ids, use_cache=False).logits[0]
        for index in group:
            length, count = len(answers[index].tokens) - 1, answers[index].count
            labels = answers[index].tokens[-count:]
            each, margins = chances(logits[length - count : length], labels)
            found[index] = Alone(each, margins, each, margins)
    return [found[index] for index in range(len(answers))]


def _sharing_a_pass(answers: Sequence[Answered]) -> list[list[int]]:
    """The answers' numbers in groups: all inputs of a group begin those of its first answer."""
    groups: list[list[int]] = []
    for index in sorted(range(len(answers)), key=lambda n: -len(answers[n].tokens)):
        inputs = answers[index].tokens[:-1]
        for group in groups:
            if answers[group[0]].tokens[: len(inputs)] == inputs:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def stepwise(engine: "Engine", answers: Sequence[Answered], padding: int = 0) -> list[Alone]:
    """The same, and for what was generated, transformers' own `generate`, made to choose the same
    tokens."""
    whole = forward(engine, answers, padding)
    if not hasattr(engine.model, "generate"):
        return whole
    return [
        _generated(engine, answer, alone) if answer.each else alone
        for answer, alone in zip(answers, whole, strict=True)
    ]


def _generated(engine: "Engine", answer: Answered, whole: Alone) -> Alone:
    prompt, chosen = answer.tokens[: -answer.count], answer.tokens[-answer.count :]

    def choose(before: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.full_like(scores, float("-inf"))
        scores[:, chosen[before.shape[1] - len(prompt)]] = 0.0
        return scores

    input_ids = torch.tensor([prompt], device=engine.device)
    made = engine.model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), logits_processor=[choose],
        max_new_tokens=len(chosen), do_sample=False, eos_token_id=[NEVER], pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    steps, margins = chances(torch.cat(made.logits), chosen)
    return replace(whole, steps=steps, step_margins=margins)


def chances(logits: torch.Tensor, labels: list[int]) -> tuple[list[float], list[float]]:
    """Of each label, its log-probability in logits [labels, vocabulary] and its margin."""
    table = torch.log_softmax(logits.float(), dim=-1)
    index = torch.tensor(labels, device=table.device)[:, None]
    each = table.gather(1, index)[:, 0]
    margins = each - table.scatter(1, index, float("-inf")).max(dim=-1).values
    return each.tolist(), margins.tolist()


@contextmanager
def float32(model: Any) -> Iterator[None]:
    """Let a model compute in float32 from its stored weights until the end of the block."""
    before = [(module, module.__class__) for module in model.modules()]
    precise.upcast(model)
    try:
        yield
    finally:
        for module, own in before:
            module.__class__ = own
