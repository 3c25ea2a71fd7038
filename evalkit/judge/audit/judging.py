"""Holds one drawn sample against its replay: whether each recorded token is what the model would
have chosen, and each recorded number the model's.

A token must be the most probable one, or tied with it as far as rounding goes; a log-probability
or log-likelihood must be as near to the model's as rounding leaves it; a text must be its tokens'
and must end where it says it does. What an engine did not record is skipped and counted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from evalkit.base import canon
from evalkit.judge.audit.drawing import Drawn, Name, answered
from evalkit.judge.audit.rounding import Rounding, Value
from evalkit.plan.requests.request import Request, Settings
from evalkit.record.journal import Answer

Retell = Callable[[list[int], list[int], Settings], tuple[dict[str, Any], str]]


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
class Judged:
    """What came of all samples: `values`, recorded ones against the model's own, in a logit's
    noise, by sample; `skipped` answers that hold nothing to replay; `tokens` looked at."""

    values: dict[Name, list[float]] = field(default_factory=dict)
    skipped: int = 0
    tokens: int = 0
    worst: float = 0.0  # of all deviations, in what is allowed


def judge(
    drawn: Drawn, replayed: Mapping[str, Replayed], rounding: Rounding, retell: Retell,
    found: Judged,
) -> None:  # fmt: skip
    """Note what is wrong with a sample's answers, in words."""
    for part, row in sorted(drawn.rows.items()):
        request = row.targets[0].request
        answer = drawn.answers.get(part)
        if answer is None:
            continue
        if part not in replayed:
            found.skipped += 1
        elif request.kind == "generate_until":
            _generation(drawn, request, answer, replayed[part], rounding, retell, found)
        else:
            _likelihood(drawn, part, answer, replayed[part], rounding, found)


def _likelihood(
    drawn: Drawn, part: str, answer: Answer, new: Replayed, rounding: Rounding, found: Judged
) -> None:
    off = canon.number(answer["loglikelihood"]) - new.total
    found.tokens += len(new.logprobs)
    _hold(drawn, part, "its log-likelihood", Value(off, new.logprobs), rounding, found)
    lowest = min(new.margins)
    if answer.get("is_greedy") is True and lowest < -rounding.tie:
        drawn.problems.append(f"{part}: recorded as the most probable text, {-lowest:.3g} behind")
    if answer.get("is_greedy") is False and lowest > rounding.tie:
        drawn.problems.append(f"{part}: is the most probable text and not recorded as that")


def _generation(
    drawn: Drawn, request: Request, answer: Answer, new: Replayed, rounding: Rounding,
    retell: Retell, found: Judged,
) -> None:  # fmt: skip
    settings, tokens, part = request.settings, answered(answer), request.id
    assert settings is not None and tokens is not None, "what was replayed was generated"
    found.tokens += len(tokens)
    recorded = [canon.number(value) for value in answer["logprobs"]]
    if len(recorded) != len(tokens):
        drawn.problems.append(f"{part}: has not one log-probability for each token")
        return
    prompt = [int(token) for token in drawn.rows[part].tokens]
    told, stop = retell(prompt, tokens, settings)
    if any(told.get(name) != answer.get(name) for name in ("text", "raw", "thought")):
        drawn.problems.append(f"{part}: its text is not its tokens'")
    if stop != answer["stop"]:
        ends = stop or "nowhere there"
        drawn.problems.append(f"{part}: recorded to end by {answer['stop']}, ends by {ends}")
    for index, (old, now, margin) in enumerate(
        zip(recorded, new.logprobs, new.margins, strict=True)
    ):
        _hold(drawn, part, f"token {index}", Value(old - now, [now]), rounding, found)
        if margin < -rounding.tie and not settings.do_sample:
            drawn.problems.append(f"{part}: token {index} is {-margin:.3g} behind the best one")


def _hold(
    drawn: Drawn, part: str, what: str, value: Value, rounding: Rounding, found: Judged
) -> None:
    """Note a deviation; a NaN is never within anything."""
    allowed = rounding.allowed(value.logprobs)
    unit = value.off / (rounding.logit * rounding.weight(value.logprobs))
    found.values.setdefault(drawn.name, []).append(math.inf if math.isnan(unit) else unit)
    found.worst = max(found.worst, abs(value.off) / allowed)
    if not abs(value.off) <= allowed:
        drawn.problems.append(f"{part}: {what} is off by {value.off:.3g}, {allowed:.3g} is noise")
