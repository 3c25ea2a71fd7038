"""Compares a drawn sample with its replay, token by token and number by number.

A token must be the most probable one, or tied with it up to rounding; a number must be as near to
the model's as rounding leaves it. What an engine did not record is skipped and counted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evalkit.base import canon
from evalkit.inputs.types import Generation, Loglikelihood, RollingLoglikelihood
from evalkit.judge.audit.drawing import Drawn, Name, tokens_of
from evalkit.judge.audit.noise import Rounding, Value
from evalkit.plan.requests.request import Request, Settings
from evalkit.record.journal import numbers

# From a prompt's tokens, an answer's tokens and its settings: the answer's text fields, and why it
# ends there.
Decode = Callable[[list[int], list[int], Settings], tuple[Mapping[str, object], str]]


class Replayed(Protocol):
    """What the engine replays of an answer."""

    @property
    def logprobs(self) -> list[float]:
        """Each token's log-probability."""

    @property
    def margins(self) -> list[float]:
        """Each token's lead over the best other one."""

    @property
    def total(self) -> float:
        """The answer's log-likelihood."""


@dataclass(slots=True)
class Judge:
    """Judges samples one by one and adds up what it sees. `values` holds by sample the deviations
    of recorded values from the model's own, in units of a logit's noise; `skipped` counts answers
    that hold nothing to replay; `worst` is the largest deviation, as a share of what is allowed."""

    rounding: Rounding
    decode: Decode
    values: dict[Name, list[float]] = field(default_factory=dict)
    skipped: int = 0
    tokens: int = 0
    worst: float = 0.0

    def sample(self, drawn: Drawn, replayed: Mapping[str, Replayed]) -> None:
        """Note in a sample what is wrong with its answers, in words."""
        for part, row in sorted(drawn.rows.items()):
            request = row.targets[0].request
            answer = drawn.answers.get(part)
            if answer is None:
                continue
            if part not in replayed:
                self.skipped += 1
            elif "text" in answer:
                self._generation(drawn, request, answer, replayed[part])
            else:
                self._likelihood(drawn, part, answer, replayed[part])

    def _likelihood(
        self, drawn: Drawn, part: str, answer: Loglikelihood | RollingLoglikelihood, new: Replayed
    ) -> None:
        off = canon.number(answer["loglikelihood"]) - new.total
        self.tokens += len(new.logprobs)
        self._value(drawn, part, "its log-likelihood", Value(off, new.logprobs))
        lowest, tie = min(new.margins), self.rounding.tie
        if answer.get("is_greedy") is True and lowest < -tie:
            problem = f"recorded as the most probable text, {-lowest:.3g} behind"
            drawn.problems.append(f"{part}: {problem}")
        if answer.get("is_greedy") is False and lowest > tie:
            drawn.problems.append(f"{part}: is the most probable text and not recorded as that")

    def _generation(
        self, drawn: Drawn, request: Request, answer: Generation, new: Replayed
    ) -> None:
        settings, tokens, part = request.settings, tokens_of(answer), request.id
        assert settings is not None and tokens is not None, "what was replayed was generated"
        self.tokens += len(tokens)
        recorded = numbers(answer["logprobs"])
        if len(recorded) != len(tokens):
            drawn.problems.append(f"{part}: has not one log-probability for each token")
            return
        prompt = [int(token) for token in drawn.rows[part].tokens]
        decoded, stop = self.decode(prompt, tokens, settings)
        if any(decoded.get(name) != answer.get(name) for name in ("text", "raw", "thought")):
            drawn.problems.append(f"{part}: its text is not its tokens'")
        if stop != answer["stop"]:
            end = stop or "nowhere there"
            drawn.problems.append(f"{part}: recorded to end by {answer['stop']}, ends by {end}")
        replayed = zip(recorded, new.logprobs, new.margins, strict=True)
        for index, (old, logprob, margin) in enumerate(replayed):
            self._value(drawn, part, f"token {index}", Value(old - logprob, [logprob]))
            if margin < -self.rounding.tie and not settings.do_sample:
                problem = f"token {index} is {-margin:.3g} behind the best one"
                drawn.problems.append(f"{part}: {problem}")

    def _value(self, drawn: Drawn, part: str, what: str, value: Value) -> None:
        """Note a deviation; a NaN is never within what is allowed."""
        allowed = self.rounding.allowed(value.logprobs)
        unit = value.off / (self.rounding.logit * self.rounding.weight(value.logprobs))
        self.values.setdefault(drawn.name, []).append(math.inf if math.isnan(unit) else unit)
        self.worst = max(self.worst, abs(value.off) / allowed)
        if not abs(value.off) <= allowed:
            problem = f"{what} is off by {value.off:.3g}, {allowed:.3g} is noise"
            drawn.problems.append(f"{part}: {problem}")
