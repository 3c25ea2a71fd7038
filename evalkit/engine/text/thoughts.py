"""A text that thinks before it answers, as it grows: where it stands, when it ends, how it reads.

The task's stop strings act on the answer only, from its first character that is no blank; thought
and answer have room of their own where the suite gives a thought some. What ends a thought is
looked for by its token where the tokenizer has one, else in the decoded text.
"""

from dataclasses import dataclass
from typing import Any

from evalkit.inputs.chat import texts
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.requests.request import Settings

TAIL_TOKENS = 8  # beyond a word's bytes (a token is one at least): what stands around it


@dataclass
class Thought:
    """How far a text has thought: whether it has `begun` to, and how many of its tokens reach to
    the last end of a thought (0: none has ended)."""

    begun: bool
    ended: int = 0

    def to_json(self, tokens: int) -> dict[str, Any]:
        """What the journal holds of it: the tokens that are no answer."""
        thought = self.ended or (tokens if self.begun else 0)
        return {"tokens": thought, "ended": bool(self.ended)}


def of(tokenizer: Tokenizer, settings: Settings, prompt: list[int]) -> Thought | None:
    """A thought at the end of a prompt; None where texts don't think."""
    if not settings.think_end:
        return None
    (text,) = tokenizer.decode([prompt], skip_special_tokens=False)
    return Thought(texts.is_open(text, settings.think_start, settings.think_end))


def see(tokenizer: Tokenizer, thought: Thought, tokens: list[int], settings: Settings) -> str:
    """Note what the last of a text's tokens does to it; why it ends with that, or nothing. That an
    end-of-text token ends it is seen elsewhere."""
    if _ends(tokenizer, tokens[thought.ended :], settings.think_end):
        thought.begun, thought.ended = True, len(tokens)
    elif settings.think_start and not thought.begun:
        thought.begun = _ends(tokenizer, tokens, settings.think_start)
    room = settings.max_gen_toks - settings.max_think_toks  # for the answer, and for all without
    if thought.begun and not thought.ended:
        most = settings.max_think_toks or room
        return "length" if len(tokens) >= most else ""
    answer = _answer_tail(tokenizer, tokens, thought, settings)
    if any(stop and stop in answer for stop in settings.until):
        return "stop_string"
    spent = len(tokens) - thought.ended if settings.max_think_toks else len(tokens)
    return "length" if spent >= room else ""


def _ends(tokenizer: Tokenizer, tokens: list[int], word: str) -> bool:
    """Whether a word stands in the last of some tokens that did not hold it before."""
    if (single := tokenizer.token_of(word)) is not None:
        return bool(tokens) and tokens[-1] == single
    (tail,) = tokenizer.decode(
        [tokens[-(len(word.encode()) + TAIL_TOKENS) :]], skip_special_tokens=False
    )
    return word in tail


def _answer_tail(
    tokenizer: Tokenizer, tokens: list[int], thought: Thought, settings: Settings
) -> str:
    longest = max((len(stop.encode()) for stop in settings.until), default=0)
    if not longest:
        return ""
    first = max(thought.ended, len(tokens) - longest - TAIL_TOKENS)
    (tail,) = tokenizer.decode([tokens[first:]], skip_special_tokens=False)
    return (
        tail.lstrip() if thought.ended and not _reads(tokenizer, tokens, thought, first) else tail
    )


def _reads(tokenizer: Tokenizer, tokens: list[int], thought: Thought, before: int) -> bool:
    """Whether an answer has begun, with more than blanks, before some token."""
    (text,) = tokenizer.decode([tokens[thought.ended : before]], skip_special_tokens=False)
    return bool(text.strip())


def raw(tokenizer: Tokenizer, tokens: list[int], settings: Settings) -> str:
    """A text as it was written, its thoughts included: special tokens are skipped but for those
    that begin or end a thought."""
    words = [word for word in (settings.think_start, settings.think_end) if word]
    special = {tokenizer.token_of(word): word for word in words if tokenizer.is_special(word)}
    parts: list[list[int]] = [[]]
    between: list[str] = []
    for token in tokens:
        if token in special:
            between.append(special[token])
            parts.append([])
        else:
            parts[-1].append(token)
    decoded = tokenizer.decode(parts, skip_special_tokens=True)
    return decoded[0] + "".join(a + b for a, b in zip(between, decoded[1:], strict=True))
