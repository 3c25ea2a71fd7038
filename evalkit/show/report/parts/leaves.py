"""One pass over a record's samples: scores, margins and flags of all documents of each leaf task,
and the texts of some, compressed.

The samples are not trusted: sizes and shapes are checked, nothing in them is run.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from evalkit.harness.samples import Sample, flat, value_of
from evalkit.record.reading import score_table
from evalkit.record.reading.evidence import samples
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.types import AnyRecord
from evalkit.show.report.parts.texts import Texts

CUT, NOT_FOUND, EMPTY, TIE, NAN, CLOSE_CALL, UNCLOSED = 1, 2, 4, 8, 16, 32, 64
FLAGS = {
    CUT: "cut at the length limit",
    NOT_FOUND: "no answer found",
    EMPTY: "empty answer",
    TIE: "exact tie",
    NAN: "NaN",
    CLOSE_CALL: "close call",
    UNCLOSED: "thinking not closed",
}
CLOSE = 0.1  # nats between the two likeliest choices: below it, other numerics may choose otherwise


class Shown(TypedDict):
    """What the report shows of a document: `texts` and, by filter, the answers `found` in them, or
    `choices`: (text, log-likelihood, and its own prompt where they differ)."""

    id: int
    prompt: Any
    target: Any
    metrics: Mapping[str, Any]
    texts: NotRequired[list[str]]
    found: NotRequired[dict[str, list[Any]]]
    choices: NotRequired[list[list[Any]]]


@dataclass(slots=True)
class Leaf:
    """A leaf task's documents, in order: `scores` by the headline metric (None: no number),
    `margins` in nats by which the likeliest choice leads (None: no choices), `flags` as bits of
    FLAGS, and the likeliest choice's softmax share (`confidences`)."""

    name: str
    metric: str
    ids: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    margins: list[float | None] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    flags: dict[int, int] = field(default_factory=dict)
    texts: str = ""  # compressed, base64
    num_texts: int = 0
    _guesses: list[float] = field(default_factory=list)

    @property
    def by_choice(self) -> bool:
        """Whether its questions come with choices."""
        return any(margin is not None for margin in self.margins)

    @property
    def chance(self) -> float:
        """What guessing would score."""
        return math.fsum(self._guesses) / max(len(self._guesses), 1)

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return all(score in (0.0, 1.0) for score in self.scores)

    def add(self, document: samples.Document, flags: int) -> Shown:
        """Add a document; return its text for the report."""
        sample = _of_filter(document, self.metric)
        position = len(self.ids)
        self.ids.append(document.doc_id)
        self.scores.append(_number(sample.get(self.metric.split(",")[0])))
        values = likelihoods(sample["resps"])
        margin = None
        if values is not None:
            margin, more = self._note_choices(values)
            flags |= more
        else:
            flags |= _flags(document)
        self.margins.append(margin)
        self._guesses.append(document.chance)
        if flags:
            self.flags[position] = flags
        return shown(document, values)

    def _note_choices(self, likelihoods: list[float]) -> tuple[float | None, int]:
        if any(map(math.isnan, likelihoods)):
            return None, NAN
        if len(likelihoods) < 2:
            return None, 0
        best, second = sorted(likelihoods, reverse=True)[:2]
        if best == -math.inf:
            self.confidences.append(1 / len(likelihoods))
            return 0.0, TIE
        share = 1 / math.fsum(math.exp(value - best) for value in likelihoods)
        self.confidences.append(share)
        margin = min(best - second, 1e9)
        return margin, (TIE if not margin else 0) | (CLOSE_CALL if margin < CLOSE else 0)


def read(
    folder: Folder, record: AnyRecord, cut: dict[str, set[int]], texts: Texts
) -> tuple[list[Leaf], int]:
    """Return every leaf task of a valid record, and how many documents could not be read."""
    seen = samples.Samples()
    read, bad = of_documents(samples.documents(folder, seen), record, cut, texts)
    return read, bad + seen.shape.count + seen.order.count


def of_documents(
    documents: Iterable[samples.Document],
    record: AnyRecord,
    cut: dict[str, set[int]],
    texts: Texts,
) -> tuple[list[Leaf], int]:
    """Do as `read` for documents that come one leaf task after another."""
    by_name: dict[str, Leaf] = {}
    bad = 0
    for document in documents:
        task = record["tasks"].get(document.leaf)
        if task is None:
            bad += 1
            continue
        if document.leaf not in by_name:
            _close(by_name, texts)
            by_name[document.leaf] = Leaf(
                document.leaf, score_table.headline(task["metrics"]) or ",none"
            )
            texts.begin(task["n"])
        leaf = by_name[document.leaf]
        was_cut = document.doc_id in cut.get(document.leaf, ())
        try:
            text = leaf.add(document, CUT if was_cut else 0)
        except BROKEN:
            bad += 1
            continue
        flagged = leaf.flags.get(len(leaf.ids) - 1, 0) & ~CLOSE_CALL
        texts.offer(leaf.margins[-1], bool(flagged), text)
    _close(by_name, texts)
    return list(by_name.values()), bad


def _close(by_name: dict[str, Leaf], texts: Texts) -> None:
    if by_name:
        last = list(by_name.values())[-1]
        last.texts, last.num_texts = texts.end()


def _of_filter(document: samples.Document, metric: str) -> Sample:
    wanted = metric.split(",", 1)[1]
    return next((s for s in document.samples if s["filter"] == wanted), document.first)


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return float(value)
    return None


def likelihoods(responses: list[Any]) -> list[float] | None:
    """Return each choice's log-likelihood, or None for texts."""
    firsts = [repeats[0] for repeats in responses]
    if not all(isinstance(first, list) and len(first) == 2 for first in firsts):
        return None
    return [float(first[0]) for first in firsts]


def _flags(document: samples.Document) -> int:
    flags = 0
    if any("[invalid]" in flat(sample["filtered_resps"]) for sample in document.samples):
        flags |= NOT_FOUND
    texts = list(flat(document.first["resps"]))
    if any(isinstance(t, str) and not t.strip() for t in texts):
        flags |= EMPTY
    if any(isinstance(t, str) and "<think>" in t and "</think>" not in t for t in texts):
        flags |= UNCLOSED
    return flags


def shown(document: samples.Document, values: list[float] | None) -> Shown:
    """Return what the report shows of a document; `values`: its choices' log-likelihoods."""
    sample = document.first
    arguments = list(sample["arguments"].values())
    prompts = [argument["arg_0"] for argument in arguments]
    body: Shown = {
        "id": document.doc_id,
        "prompt": prompts[0],
        "target": sample["target"],
        "metrics": {f"{name},{s['filter']}": value_of(s, name) for s in document.samples
                    for name in s["metrics"]},
    }  # fmt: skip
    if values is None:
        body["texts"] = [str(text) for text in flat(sample["resps"])]
        body["found"] = {s["filter"]: list(flat(s["filtered_resps"])) for s in document.samples}
    else:
        alike = len(set(prompts)) == 1
        body["choices"] = [
            [argument["arg_1"], repeats[0][0], *([] if alike else [argument["arg_0"]])]
            for argument, repeats in zip(arguments, sample["resps"], strict=True)
        ]
    return body
