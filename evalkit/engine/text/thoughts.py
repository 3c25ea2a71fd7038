"""A text that thinks before it answers, while it is generated: how far it is, and when it ends.

The task's stop strings apply to the answer only, from its first character that is no blank. Thought
and answer each have a limit of tokens where the suite sets one for thoughts. The end of a thought
is its token, where the tokenizer has one for it, or else its string in the decoded text.
"""

from dataclasses import dataclass

from evalkit.inputs.chat import texts
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import Thought as ThoughtEntry
from evalkit.plan.requests.request import Settings

TAIL_TOKENS = 8  # more than the bytes of a string (a token has one at least): its surroundings


@dataclass
class Thought:
    """The thought of a text: whether it has `begun`, and how many tokens there are up to its last
    end (0: it has not ended)."""

    begun: bool
    ended: int = 0

    def to_json(self, tokens: int) -> ThoughtEntry:
        """Return the thought as the journal holds it, in a text of so many tokens."""
        thought = self.ended or (tokens if self.begun else 0)
        return {"tokens": thought, "ended": bool(self.ended)}


def of(tokenizer: Tokenizer, settings: Settings, prompt: list[int]) -> Thought | None:
    """Return the thought at the end of a prompt; None where texts don't think."""
    if not settings.think_end:
        return None
    (text,) = tokenizer.decode([prompt], skip_special_tokens=False)
    return Thought(texts.is_open(text, settings.think_start, settings.think_end))


def see(tokenizer: Tokenizer, thought: Thought, tokens: list[int], settings: Settings) -> str:
    """Update a thought by the last of a text's tokens. Return why the text ends with this token;
    empty where it does not. End-of-text tokens are checked elsewhere."""
    if _ends(tokenizer, tokens[thought.ended :], settings.think_end):
        thought.begun, thought.ended = True, len(tokens)
    elif settings.think_start and not thought.begun:
        thought.begun = _ends(tokenizer, tokens, settings.think_start)
    room = settings.max_gen_toks - settings.max_think_toks  # of the answer; of all without a limit
    if thought.begun and not thought.ended:
        most = settings.max_think_toks or room
        return "length" if len(tokens) >= most else ""
    answer = _answer_tail(tokenizer, tokens, thought, settings)
    if any(stop and stop in answer for stop in settings.until):
        return "stop_string"
    spent = len(tokens) - thought.ended if settings.max_think_toks else len(tokens)
    return "length" if spent >= room else ""


def _ends(tokenizer: Tokenizer, tokens: list[int], word: str) -> bool:
    """Return whether the last token completes a word that was not in the tokens before."""
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
    """Return whether the answer has more than blanks before a token."""
    (text,) = tokenizer.decode([tokens[thought.ended : before]], skip_special_tokens=False)
    return bool(text.strip())


def raw(tokenizer: Tokenizer, tokens: list[int], settings: Settings) -> str:
    """Return a text as it was generated, with its thoughts. Special tokens are left out, except
    those that begin or end a thought."""
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
