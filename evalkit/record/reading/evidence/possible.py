"""Whether an answer is one that a model can give at all, whichever model it is.

Probabilities are at most 1 and add up to it at most, a text is no longer than it may be and ends
where it says, and what is more likely than everything else is what a greedy model takes. Nothing
here needs weights or a tokenizer, so what is wrong here is wrong anywhere.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import mul, neg
from typing import Any

from evalkit.base import canon
from evalkit.plan.types import SettingsEntry

_ROUNDING = 1e-3  # nats: what the largest log-probability may lie above 0, by an engine's rounding
_FOREIGN_ROUNDING = 2e-2
_LEAST = 1 - 1e-2  # what all tokens at one place have together, by the same
_HALF = math.log(0.5) + _ROUNDING  # a token above is more likely than all others together
# A token that is likelier than each other one has a share of at least one in so many, which no
# model's vocabulary comes near to.
_VOCABULARY = 1 << 24
_RAREST = -math.log(_VOCABULARY) - _ROUNDING  # its log-probability
# Nats that two requests of one prompt, computed apart, may be off from each other: in float32, and
# in fewer bits, where docs/real.md has seen 0.66 from float32 in 2,280 requests.
_FLIP, _COARSE_FLIP = 0.5, 2.0

Answer = dict[str, Any]


def problem(answer: Answer, settings: SettingsEntry | None, *, foreign: bool = False) -> str:
    """Why no model gives this answer, or nothing; `settings`: a generated text's."""
    if settings is None:
        return likelihood(answer, foreign=foreign)
    return generation(answer, settings)


def likelihood(answer: Answer, *, foreign: bool = False) -> str:
    """What can't be of the log-likelihood of a text, or nothing. An engine of lm-eval's (`foreign`)
    may round a log-probability to 8 bits, and a server's tokens are compared as texts, which says
    too often that they were not the likeliest."""
    value = canon.number(answer["loglikelihood"])
    if value > (_FOREIGN_ROUNDING if foreign else _ROUNDING):
        return f"its log-likelihood is {value:g}, a probability above 1"
    if answer["num_tokens"] < 0 or ("is_greedy" in answer and answer["num_tokens"] < 1):
        return f"{answer['num_tokens']} tokens were scored"
    if foreign:
        return ""
    if answer.get("is_greedy") is True and value < _RAREST * answer["num_tokens"]:
        return f"its log-likelihood is {value:g}, too little for tokens that were the likeliest"
    if answer.get("is_greedy") is False and value > _HALF:
        return f"its log-likelihood is {value:g}, so each token was the likeliest, but not greedy"
    return ""


def generation(answer: Answer, settings: SettingsEntry) -> str:
    """What can't be of a generated text under its settings, or nothing. Where an engine of
    lm-eval's tells nothing but the text, there is nothing to see."""
    tokens, text, stop = answer["tokens"], answer["text"], answer["stop"]
    if isinstance(tokens, dict):
        return ""
    most = settings["max_gen_toks"]
    if not 1 <= len(tokens) <= most:
        return f"it has {len(tokens):,} tokens, {most:,} are allowed"
    if min(tokens) < 0:
        return f"it has a token {min(tokens)}"
    if stop == "length" and not _is_at_its_longest(answer, settings):
        return f"it ended at the length limit with {len(tokens):,} of {most:,} tokens"
    if stop == "stop_string" and not any(settings["until"]):
        return "it ended at a stop string, and there is none"
    if any(string and string in text for string in settings["until"]):
        return "its text goes on behind a stop string"
    return _chances(answer["logprobs"], answer["margins"], sampled=settings["do_sample"])


def _is_at_its_longest(answer: Answer, settings: SettingsEntry) -> bool:
    """Whether a text is as long as it may be; a thought may have a limit of its own."""
    tokens, most = len(answer["tokens"]), settings["max_gen_toks"]
    budget, thought = settings.get("max_think_toks", 0), answer.get("thought")
    if not budget or thought is None:
        return bool(tokens == most)
    spent = thought["tokens"]
    if spent and not thought["ended"]:
        return bool(tokens >= budget)
    return bool(tokens - spent == most - budget)


def _chances(logprobs: Sequence[Any], margins: Sequence[Any], *, sampled: bool) -> str:
    """What can't be of tokens' log-probabilities and their margins to the runner-up."""
    if _fine(logprobs, margins):  # millions of tokens: one by one only where something is wrong
        return ""
    for number, (said, ahead) in enumerate(zip(logprobs, margins, strict=True)):
        value, margin = canon.number(said), canon.number(ahead)
        if value > _ROUNDING:
            return f"token {number} has log-probability {value:g}, a probability above 1"
        if margin < 0 and not sampled:
            return f"token {number} was not the likeliest, and none was drawn"
        if margin >= 0 and math.exp(value) * (1 + math.exp(-margin)) > 1 + _ROUNDING:
            return f"token {number} and its runner-up have a probability above 1 together"
        if not sampled and math.exp(value) * (1 + _VOCABULARY * math.exp(-margin)) < _LEAST:
            return f"token {number} and all others have a probability below 1 together"
    return ""


def _fine(logprobs: Sequence[Any], margins: Sequence[Any]) -> bool:
    """Whether all of `_chances` holds of tokens that were the likeliest."""
    if {*map(type, logprobs), *map(type, margins)} - {float, int} or min(margins) < 0:
        return False
    shares, behind = list(map(math.exp, logprobs)), list(map(math.exp, map(neg, margins)))
    both = map(mul, shares, map((1.0).__add__, behind))
    least = min(map(mul, shares, [1 + _VOCABULARY * each for each in behind]))
    return bool(max(logprobs) <= _ROUNDING and max(both) <= 1 + _ROUNDING and least >= _LEAST)


def flip(numerics: Answer) -> float:
    """How far apart, in nats, two requests of one prompt may be that were computed apart."""
    return _FLIP if numerics["dtype"] == "float32" else _COARSE_FLIP


def choices(answers: Iterable[tuple[int, Answer]], most: float) -> str:
    """What can't be of the answers to one prompt, or nothing; each is the answer to one token, and
    stands behind that token's id. Different tokens at one place share a probability of 1; `most` is
    what `flip` allows them. Two choices may well be one token: one that stands for whatever a
    vocabulary lacks, say."""
    single = dict(answers)
    values = {token: float(answer["loglikelihood"]) for token, answer in single.items()}
    if len(values) < 2 or any(value != value for value in values.values()):
        return ""
    total = math.fsum(map(math.exp, values.values()))
    if total > 1 + most:
        return f"its choices of one token have a probability of {total:.3g} together"
    greedy = [values[token] for token, answer in single.items() if answer["is_greedy"]]
    if greedy and max(greedy) - min(greedy) > most:
        return "two of its choices of one token were the likeliest"
    if greedy and max(values.values()) - min(greedy) > most:
        return "another choice of one token was likelier than the likeliest token"
    return ""


@dataclass(slots=True)
class Endings:
    """Which tokens ended texts as an end-of-text, and which stand elsewhere: no token can do both,
    as a text would have ended there."""

    ending: set[int] = field(default_factory=set)
    inside: set[int] = field(default_factory=set)

    def note(self, answer: Answer) -> None:
        """Take in a text's tokens."""
        tokens, ended = answer["tokens"], answer["stop"] == "eos"
        if isinstance(tokens, dict) or not tokens:
            return
        self.inside.update(tokens[:-1] if ended else tokens)
        if ended:
            self.ending.add(tokens[-1])

    @property
    def problem(self) -> str:
        """The tokens that do both, or nothing."""
        both = sorted(self.ending & self.inside)
        named = f"token {both[0]}" if both else ""
        return f"{named} ended texts as an end-of-text, and others go on behind it" if both else ""


def is_unknown(value: Any) -> bool:
    """Whether a value says that it can't be known, and why."""
    return isinstance(value, dict) and value.keys() == {"unknown"} and bool(value["unknown"])


def are_numbers(values: list[Any]) -> bool:
    """Whether all of a list are numbers as the journal writes them."""
    return set(map(type, values)) <= {float, int} or all(map(is_number, values))


def is_number(value: Any) -> bool:
    """A number, or one of the texts that stand for what is not finite."""
    return type(value) in (float, int) or value in ("nan", "inf", "-inf")
