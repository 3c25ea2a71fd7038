"""What a record says of a leaf task's texts: how many were cut, what they spent on thinking and on
answering, how those score that ended by themselves; and whether the text that was scored is what is
left of the text as it was written.

A text that is cut may have been about to answer, so the score of all texts says less of the model
than the score of those that ended. Written when a run is finished, and recomputed by `verify`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.base import canon
from evalkit.inputs.chat import thinking

Answer = dict[str, Any]  # of a generation, as the journal holds it


@dataclass(slots=True)
class Texts:
    """Counts over a leaf task's generated answers; `untold`: why some are not known."""

    count: int = 0
    cut: int = 0
    endless: int = 0
    thinks: bool = False
    thinking: int = 0  # tokens
    answering: int = 0
    untold: dict[str, str] | None = None
    cut_documents: set[int] = field(default_factory=set)

    def add(self, doc_id: int, answer: Answer) -> None:
        """Take in one text of a document."""
        self.count += 1
        self.endless += is_endless(answer)
        thought = answer.get("thought")
        self.thinks = self.thinks or thought is not None
        if isinstance(answer["stop"], dict):
            self.untold = answer["stop"]
            return
        if answer["stop"] == "length":
            self.cut += 1
            self.cut_documents.add(doc_id)
        spent = thought["tokens"] if thought else 0
        self.thinking += spent
        self.answering += len(answer["tokens"]) - spent

    def to_json(
        self, values: Mapping[str, Sequence[Any]], reported: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The record's words. `values`: of each metric, by its key in the record, a value for each
        document in order; `reported`: each metric's score of all documents."""
        tokens = {"thinking": self.thinking, "answering": self.answering}
        found = {
            "count": self.count,
            "cut": self.untold or self.cut,
            "tokens": self.untold or tokens,
            "ended": self._ended(values, reported) if self.cut_documents else None,
        }
        return found | ({"endless": self.endless} if self.thinks else {})

    def _ended(
        self, values: Mapping[str, Sequence[Any]], reported: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The documents none of whose texts was cut, and the means over them, of metrics that are
        means."""
        metrics: dict[str, float] = {}
        longest = max((len(each) for each in values.values()), default=0)
        for key in sorted(values.keys() & reported.keys()):
            whole = _mean(values[key])
            if whole is None or not _is_close(whole, reported[key]):
                continue
            kept = [v for n, v in enumerate(values[key]) if n not in self.cut_documents]
            if (mean := _mean(kept)) is not None:
                metrics[key] = mean
        return {"n": longest - len(self.cut_documents), "metrics": metrics}


def is_endless(answer: Answer) -> bool:
    """Whether a text began to think and never ended."""
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
    """A metric over those of a group's leaf tasks' documents whose texts ended, each document
    counting alike: (mean, documents, of how many); None where none was cut or a leaf lacks it.
    `leaves`: the record's entries."""
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


def cut_problem(answer: dict[str, Any], settings: dict[str, Any]) -> str:
    """How a generation's text is not what its settings leave of it, or nothing."""
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
    wanted = thinking.answer(raw, settings, thinks=thinks)
    return "" if answer["text"] == wanted else "is not what is left of it once it is cut"


def _tokens_problem(answer: dict[str, Any], thought: dict[str, Any], *, thinks: bool) -> str:
    tokens, spent = answer["tokens"], thought["tokens"]
    if not isinstance(tokens, list) or not isinstance(spent, int):
        return ""
    if spent > len(tokens) or (thinks and not thought["ended"] and spent != len(tokens)):
        return "says that it thought for another number of tokens than it has"
    return ""


def fits_a_text(answer: dict[str, Any]) -> bool:
    """Whether the fields that only some texts have are of their kinds."""
    thought = answer.get("thought", {"tokens": 0, "ended": False})
    if not isinstance(answer.get("raw", ""), str) or not isinstance(thought, dict):
        return False
    if thought.keys() != {"tokens", "ended"} or not isinstance(thought["ended"], bool):
        return False
    spent = thought["tokens"]
    return isinstance(spent, dict) or (type(spent) is int and spent >= 0)
