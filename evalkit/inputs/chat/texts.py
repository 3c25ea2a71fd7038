"""Generated texts: where a thought ends, what is scored, and what a record says of a leaf task's
texts.

A thinking text is scored as lm-eval's `hf` model does with its `think_end_token`: the answer
follows the last end of a thought, up to the first stop string, and is empty where the thought never
ends. A record says how many texts were cut, and what those score that ended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, cast

from evalkit.base import canon
from evalkit.base.machine.types import Unknown

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


class Spent(TypedDict):
    """Tokens that texts spent on thinking and on answering."""

    thinking: int
    answering: int


class EndedEntry(TypedDict):
    """How many documents' texts all ended, and the means of metrics over these documents."""

    n: int
    metrics: dict[str, float | str]  # a non-finite number is a string


class TextsEntry(TypedDict):
    """What a record says of a leaf task's texts; see `Texts`."""

    count: int
    cut: int | Unknown
    tokens: Spent | Unknown
    ended: EndedEntry | None
    endless: NotRequired[int]


def thought_words(template: str, tokens: Iterable[str]) -> tuple[str, str] | None:
    """Return the words around a thought that a chat template names, or that are tokens of their
    own; None where neither is so."""
    known = set(tokens)
    for pair in KNOWN:
        if any(word in template for word in pair) or all(word in known for word in pair):
            return pair
    return None


def is_open(text: str, start: str, end: str) -> bool:
    """Whether a prompt ends within a thought. Without a `start` every text begins in one."""
    return not start or text.rfind(start) > text.rfind(end)


def cut(text: str, until: Iterable[str]) -> str:
    """Return a text up to the first of the stop strings, as lm-eval cuts it."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


def scored_part(raw: str, settings: Mapping[str, Any], *, thinks: bool) -> str:
    """Return what is scored of a text. `settings`: a generation's, as the plan holds them;
    `thinks`: whether the text begins within a thought, or begins one."""
    end = settings.get("think_end", "")
    if end and end in raw:
        raw = raw.split(end)[-1].lstrip()
    elif end and thinks:
        return ""
    return cut(raw, settings["until"])


@dataclass(slots=True)
class Texts:
    """Counts over a leaf task's generated answers. `untold` says why some counts are unknown."""

    count: int = 0
    cut: int = 0
    endless: int = 0
    thinks: bool = False
    thinking: int = 0  # tokens
    answering: int = 0
    untold: Unknown | None = None
    documents: set[int] = field(default_factory=set)
    cut_documents: set[int] = field(default_factory=set)

    def add(self, doc_id: int, answer: Mapping[str, Any]) -> None:
        """Count one text of a document."""
        self.count += 1
        self.documents.add(doc_id)
        self.endless += is_endless(answer)
        thought = answer.get("thought")
        self.thinks = self.thinks or thought is not None
        if isinstance(answer["stop"], dict):
            self.untold = cast(Unknown, answer["stop"])
            return
        if answer["stop"] == "length":
            self.cut += 1
            self.cut_documents.add(doc_id)
        spent = thought["tokens"] if thought else 0
        self.thinking += spent
        self.answering += len(answer["tokens"]) - spent

    def to_json(
        self, values: Mapping[str, Sequence[Any]], metrics: Mapping[str, Mapping[str, Any]]
    ) -> TextsEntry:
        """Return what the record says. `values`: of each metric, by its key in the record, a value
        for each document in order; `metrics`: the record's own, of all documents."""
        tokens: Spent = {"thinking": self.thinking, "answering": self.answering}
        entry: TextsEntry = {
            "count": self.count,
            "cut": self.untold or self.cut,
            "tokens": self.untold or tokens,
            "ended": self._ended(values, metrics) if self.cut_documents else None,
        }
        if self.thinks:
            entry["endless"] = self.endless
        return entry

    def _ended(
        self, values: Mapping[str, Sequence[Any]], metrics: Mapping[str, Mapping[str, Any]]
    ) -> EndedEntry:
        """Return how many documents have no cut text, and the means of metrics over them."""
        means: dict[str, float | str] = {}
        for key in sorted(values.keys() & metrics.keys()):
            whole = _mean(values[key])
            if whole is None or not _is_close(whole, metrics[key]["value"]):
                continue
            if len(values[key]) != len(self.documents):
                continue  # a task's own code gave some documents no value: whose is which is lost
            kept = [v for n, v in enumerate(values[key]) if n not in self.cut_documents]
            if (mean := _mean(kept)) is not None:
                means[key] = mean
        return {"n": len(self.documents - self.cut_documents), "metrics": means}


def is_endless(answer: Mapping[str, Any]) -> bool:
    """Whether a text began a thought that never ended."""
    thought = answer.get("thought")
    return thought is not None and not thought["ended"] and thought["tokens"] != 0


def _mean(values: Sequence[Any]) -> float | None:
    """The mean of numbers; None where there are none, or other values among them."""
    numbers = [float(value) if isinstance(value, bool) else value for value in values]
    if not numbers or not all(isinstance(value, (int, float)) for value in numbers):
        return None
    return math.fsum(numbers) / len(numbers)


def _is_close(one: float, reported: Any) -> bool:
    try:
        return math.isclose(one, canon.number(reported), rel_tol=1e-9, abs_tol=1e-12)
    except (TypeError, ValueError):
        return False


def of_group(leaves: Sequence[Mapping[str, Any]], key: str) -> tuple[float, int, int] | None:
    """Return (mean, documents, of how many) of a metric over those documents of a group whose texts
    ended, each document weighted the same; None where none was cut or a leaf task lacks the
    metric. `leaves`: the record's entries."""
    total, ended, documents, any_cut = 0.0, 0, 0, False
    for leaf in leaves:
        texts = leaf.get("texts") or {}
        kept = texts.get("ended")
        any_cut = any_cut or bool(kept)
        n, value = leaf["n"], leaf["metrics"].get(key, {}).get("value")
        if kept:
            n, value = kept["n"], kept["metrics"].get(key) if kept["n"] else 0.0
        if value is None:
            return None
        total, ended, documents = total + n * canon.number(value), ended + n, documents + leaf["n"]
    return (total / ended, ended, documents) if any_cut and ended else None


def cut_problem(answer: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return how a generation's text differs from what its settings leave of it, or ""."""
    raw, thought = answer.get("raw", answer["text"]), answer.get("thought")
    thinks = False
    if end := settings.get("think_end", ""):
        if not isinstance(thought, dict):
            return "does not say how long it thought"
        if thought["ended"] != (end in raw):
            return "says otherwise whether its thought ended than its text does"
        thinks = thought["tokens"] != 0
        start = settings.get("think_start", "")
        if not thinks and (start in raw or thought["ended"]):
            return "says that it did not think, and its text does"
        if wrong := _tokens_problem(answer, thought, thinks=thinks):
            return wrong
    elif thought is not None:
        return "thinks, which its settings do not know of"
    wanted = scored_part(raw, settings, thinks=thinks)
    return "" if answer["text"] == wanted else "is not what is left of it once it is cut"


def _tokens_problem(answer: Mapping[str, Any], thought: Mapping[str, Any], *, thinks: bool) -> str:
    tokens, spent = answer["tokens"], thought["tokens"]
    if not isinstance(tokens, list) or not isinstance(spent, int):
        return ""
    if spent > len(tokens) or (thinks and not thought["ended"] and spent != len(tokens)):
        return "says that it thought for another number of tokens than it has"
    return ""


def fits_a_text(answer: Mapping[str, Any]) -> bool:
    """Whether the fields that only some texts have are of their kinds."""
    thought = answer.get("thought", {"tokens": 0, "ended": False})
    if not isinstance(answer.get("raw", ""), str) or not isinstance(thought, dict):
        return False
    if thought.keys() != {"tokens", "ended"} or not isinstance(thought["ended"], bool):
        return False
    spent = thought["tokens"]
    return isinstance(spent, dict) or (type(spent) is int and spent >= 0)
