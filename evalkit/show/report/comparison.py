"""What the report of two or more runs shows: the first held against each of the others, as
`compare` does it, and every document whose score changed, with both answers.

`compare` decides what is paired and what a difference is worth; here it is only drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.judge import compare
from evalkit.judge.compare import Flip, Pair, Row, Side
from evalkit.judge.verify import Wanted
from evalkit.record.reading.evidence import samples
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.reading.lm_eval import results
from evalkit.show.report import single
from evalkit.show.report.parts import head, leaves, matrix, statements, texts
from evalkit.show.report.parts.matrix import Entry
from evalkit.show.source import source

FLIPS = {"lost": "right before, wrong after", "gained": "wrong before, right after",
         "moved": "another score"}  # fmt: skip
ANSWER = ("choices", "texts", "found")


@dataclass(frozen=True, slots=True)
class Change:
    """A row with its interval, and all three in per cent of the plot's width."""

    row: Row
    low: float | None
    high: float | None
    zero: float
    at: float
    at_low: float
    at_high: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pair as the template shows it: its headline and group rows, then its leaf tasks from most
    lost to most gained; `said`: what was signed on the first run about the other as its
    reproduction."""

    pair: Pair
    rows: list[Change]
    leaves: list[Change]
    said: list[dict[str, Any]]


def context(
    runs: Sequence[Path], *, everything: bool = False, wanted: Wanted | None = None
) -> dict[str, Any]:
    """What the template `compare.html.j2` shows; each side is verified, by what the reader asks."""
    found = compare.compare(runs, teacher=True)
    entries = _entries(found.sides, runs, wanted)
    folders = {side.label: run for side, run in zip(found.sides, runs, strict=True)}
    by_leaf = [
        (pair, task, [flip for flip in pair.flips if flip.task == task])
        for pair in found.pairs
        for task in dict.fromkeys(flip.task for flip in pair.flips)
    ]
    kept = texts.Texts(len(by_leaf), everything=everything)
    flipped = {(flip.task, flip.doc_id) for pair in found.pairs for flip in pair.flips}
    told = {label: dict(_told(run, flipped)) for label, run in folders.items()}
    columns, packed = [], []
    for pair, task, flips in by_leaf:
        sides = [(side.label, told[side.label]) for side in (pair.before, pair.after)]
        text, count = _texts(sides, flips, kept)
        packed.append(text)
        columns.append(_columns(pair, task, flips, count, several=len(found.pairs) > 1))
    names = " and ".join(side.model for side in found.sides)
    return {
        "title": f"{names} compared",
        "comparison": found,
        "judged": entries,
        "matrix": matrix.build("", entries) if len(entries) > 2 else None,
        "glossary": head.TERMS,
        "pairs": [_drawn(pair, folders) for pair in found.pairs],
        "index": {"flags": {}, "flips": FLIPS, "leaves": columns},
        "packed": packed,
        "documents": sum(leaf["count"] for leaf in columns),
        "num_texts": sum(leaf["texts"] for leaf in columns),
        "rule": "spread evenly over each leaf task's flips",
        "everything": everything,
    }


def _entries(sides: Sequence[Side], runs: Sequence[Path], wanted: Wanted | None) -> list[Entry]:
    """The sides with what verify says of each."""
    judged = [source(run, unverified=True, wanted=wanted) for run in runs]
    return [
        Entry(side.label, "", Path(side.path).name, each.record, each.report,
              single.verdict_word(each.report), single.tone(each.report))
        for side, each in zip(sides, judged, strict=True)
    ]  # fmt: skip


def _drawn(pair: Pair, folders: dict[str, Path]) -> Drawn:
    tops = [row for row in pair.rows if row.top or row.is_group]
    rest = [row for row in pair.rows if not row.is_group and row.headline and not row.nats]
    rest.sort(key=lambda row: row.difference.value)
    said = statements.reproductions(folders[pair.before.label], folders[pair.after.label])
    return Drawn(pair, _changes(tops), _changes(rest) if len(rest) > 1 else [], said)


def _changes(rows: list[Row]) -> list[Change]:
    # an error of 0 says that nothing moved, not how far off the difference may be
    intervals = [
        (row.difference.interval() if row.difference.error else None) or (None, None)
        for row in rows
    ]
    ends = [abs(end) for pair in intervals for end in pair if end is not None]
    widest = max([*ends, *(abs(row.difference.value) for row in rows), 1e-9])

    def place(value: float) -> float:
        return float(50 + 49 * value / widest)

    return [
        Change(
            row, low, high, 50.0, place(row.difference.value),
            place(row.difference.value if low is None else low),
            place(row.difference.value if high is None else high),
        )
        for row, (low, high) in zip(rows, intervals, strict=True)
    ]  # fmt: skip


def _columns(
    pair: Pair, task: str, flips: list[Flip], count: int, *, several: bool
) -> dict[str, Any]:
    name = f"{pair.before.label} and {pair.after.label}"
    return {
        "name": f"{task} ({name})" if several else task,
        "family": name,
        "metric": flips[0].metric,
        "count": len(flips),
        "ids": [flip.doc_id for flip in flips],
        "scores": [flip.after for flip in flips],
        "margins": None,
        "flags": {},
        "flips": [_kind(flip) for flip in flips],
        "texts": count,
    }


def _kind(flip: Flip) -> str:
    if {flip.before, flip.after} == {0.0, 1.0}:
        return "gained" if flip.after else "lost"
    return "moved"


Key = tuple[str, int]  # leaf task, doc_id
Told = dict[Key, dict[str, Any]]


def _texts(sides: list[tuple[str, Told]], flips: list[Flip], kept: texts.Texts) -> tuple[str, int]:
    """The flipped documents of a leaf task, with both sides' answers, compressed."""
    kept.begin(len(flips))
    for flip in flips:
        bodies = [told.get((flip.task, flip.doc_id), {}) for _, told in sides]
        if not all(bodies):
            continue
        answers = [
            {"label": label, "score": score} | {k: body[k] for k in ANSWER if k in body}
            for (label, _), score, body in zip(
                sides, (flip.before, flip.after), bodies, strict=True
            )
        ]
        shared = {key: bodies[0][key] for key in ("id", "prompt", "target")}
        kept.offer(None, False, shared | {"sides": answers})
    return kept.end()


def _told(run: Path, wanted: set[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The texts of the wanted documents, from one pass over a run's samples."""
    if (run / "record.json").is_file():
        found = samples.documents(Folder(run), samples.Samples())
    else:
        found = results.find(run).documents()
    for document in found:
        key = (document.leaf, document.doc_id)
        if key in wanted:
            try:
                yield key, leaves.told(document, leaves.likelihoods(document.first["resps"]))
            except BROKEN:
                continue
