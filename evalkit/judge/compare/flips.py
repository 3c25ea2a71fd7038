"""Finds the documents whose score changed, and shows the texts of a few: what was asked, what is
right, what each side answered.

Texts are cut, and their control characters are escaped. A record that may not publish its texts
holds none, so it has none to show.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evalkit.harness.samples import Sample
from evalkit.judge.compare.pairs import Row
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.folder import BROKEN
from evalkit.record.reading.scored import Scored

MAX_TEXT = 240
MISSING = "(the samples do not hold it)"


@dataclass(frozen=True, slots=True)
class Flip:
    """A document whose headline score differs between the sides."""

    task: str
    doc_id: int
    metric: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The texts that a reader needs to judge a flip, each cut to `MAX_TEXT` characters."""

    flip: Flip
    question: str
    target: str
    answer_before: str
    answer_after: str


def flips(before: Scored, after: Scored, rows: Iterable[Row]) -> list[Flip]:
    """Return every document whose score differs in a leaf task's headline metric."""
    flipped = []
    for row in rows:
        if row.is_group or not row.headline or row.nats:
            continue
        old, new = before.leaves[row.task], after.leaves[row.task]
        pairs = zip(old.metrics[row.metric].values, new.metrics[row.metric].values, strict=True)
        for doc_id, ((a, _), (b, _)) in zip(old.doc_ids, pairs, strict=True):
            if a != b:
                flipped.append(Flip(row.task, doc_id, row.metric, a, b))
    return flipped


def choose(flips: list[Flip], count: int) -> list[Flip]:
    """Return `count` of the flips, spread evenly over them: the same ones each time."""
    if len(flips) <= count:
        return flips
    return [flips[index * len(flips) // count] for index in range(count)]


def excerpts(before: Scored, after: Scored, chosen: list[Flip]) -> list[Excerpt]:
    """Return the chosen flips with their texts, from one pass over each side's samples."""
    wanted = {(flip.task, flip.doc_id) for flip in chosen}
    texts = [
        {
            (document.leaf, document.doc_id): _texts(document)
            for document in side.read()
            if (document.leaf, document.doc_id) in wanted
        }
        for side in (before, after)
        if wanted
    ]
    return [
        Excerpt(flip, *texts[0][flip.task, flip.doc_id], texts[1][flip.task, flip.doc_id][2])
        for flip in chosen
    ]


def _texts(document: Document) -> tuple[str, str, str]:
    """Return the question's end, the target and the answer, as far as the sample holds them."""
    sample = document.first
    try:
        arguments = list(sample["arguments"].values())
        question, target = arguments[0]["arg_0"], sample["target"]
        if len(arguments) > 1:
            target = _choice(arguments, int(target)) if str(target).isdecimal() else target
        return cut(question, end=True), cut(str(target)), cut(_answer(sample, arguments))
    except BROKEN:
        return MISSING, MISSING, MISSING


def _answer(sample: Sample, arguments: list[Any]) -> str:
    responses = [repeats[0] for repeats in sample["resps"]]
    if not isinstance(responses[0], list):  # a text that was generated
        return str(responses[0])
    likelihoods = [float(response[0]) for response in responses]
    best = likelihoods.index(max(likelihoods))
    return f"{_choice(arguments, best)} ({likelihoods[best]:.4f})"


def _choice(arguments: list[Any], index: int) -> str:
    """Return a choice's text, or its number where the choices stand in the prompts."""
    if index >= len(arguments) or len({a["arg_0"] for a in arguments}) > 1:
        return f"choice {index}"
    return str(arguments[index]["arg_1"])


def cut(text: str, *, end: bool = False) -> str:
    """Return a text's beginning or end on one line, fit for a terminal."""
    line = " ".join(text.split())
    if len(line) > MAX_TEXT:
        line = f"... {line[-MAX_TEXT:]}" if end else f"{line[:MAX_TEXT]} ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
