"""Texts that think before they answer: where a thought ends, and what is left of a text to score.

What lm-eval's `hf` model does with its `think_end_token`: the answer is what stands behind the last
end of a thought, without the blanks before it, up to the first of the task's stop strings. A text
that begins to think and never ends is no answer: it is empty. These are pure functions over text,
which the engine, an audit and `verify` all use.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# How the chat templates and vocabularies of thinking models begin and end a thought.
KNOWN = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def found_in(template: str, tokens: Iterable[str]) -> tuple[str, str] | None:
    """The words around a thought that a chat template speaks of, or that are tokens of their own;
    None where neither says."""
    known = set(tokens)
    for pair in KNOWN:
        if any(word in template for word in pair) or all(word in known for word in pair):
            return pair
    return None


def is_open(text: str, start: str, end: str) -> bool:
    """Whether a prompt ends within a thought. Without a `start` every text begins in one."""
    return not start or text.rfind(start) > text.rfind(end)


def cut(text: str, until: Iterable[str]) -> str:
    """A text up to the first of the stop strings, as lm-eval cuts it."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


def answer(raw: str, settings: Mapping[str, Any], *, thinks: bool) -> str:
    """What is scored of a text. `settings`: a generation's, as the plan holds them; `thinks`:
    whether the text begins within a thought, or begins one."""
    end = settings.get("think_end", "")
    if end and end in raw:
        raw = raw.split(end)[-1].lstrip()
    elif end and thinks:
        return ""
    return cut(raw, settings["until"])
