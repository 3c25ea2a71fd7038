"""What the report of two or more runs shows: the first compared with each of the others, and every
document whose score changed, with both answers.

`compare` decides what is paired and how large a difference must be; this module only shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.judge import compare
from evalkit.judge.compare import Flip, Pair, Row, Side
from evalkit.judge.verify import Wanted
from evalkit.record.reading import lm_eval
from evalkit.record.reading.evidence import samples
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.show.report.parts import leaves, matrix, scores, texts, verdict
from evalkit.show.report.parts.matrix import Entry
from evalkit.show.report.parts.verdict import Statement
from evalkit.show.report.single import Columns
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
    lost to most gained; the signed statements that the second run reproduces the first."""

    pair: Pair
    rows: list[Change]
    leaves: list[Change]
    statements: list[Statement]


def context(
    runs: Sequence[Path], *, everything: bool = False, wanted: Wanted | None = None
) -> dict[str, object]:
    """Return what the template `compare.html.j2` shows; each side is verified first."""
    compared = compare.compare(runs, teacher=True)
    entries = _entries(compared.sides, runs, wanted)
    folders = {side.label: run for side, run in zip(compared.sides, runs, strict=True)}
    by_leaf = [
        (pair, task, [flip for flip in pair.flips if flip.task == task])
        for pair in compared.pairs
        for task in dict.fromkeys(flip.task for flip in pair.flips)
    ]
    kept = texts.Texts(len(by_leaf), everything=everything)
    flipped = {(flip.task, flip.doc_id) for pair in compared.pairs for flip in pair.flips}
    shown = {label: dict(_documents(run, flipped)) for label, run in folders.items()}
    columns, packed = [], []
    for pair, task, flips in by_leaf:
        sides = [(side.label, shown[side.label]) for side in (pair.before, pair.after)]
        text, count = _texts(sides, flips, kept)
        packed.append(text)
        columns.append(_columns(pair, task, flips, count, several=len(compared.pairs) > 1))
    names = " and ".join(side.model for side in compared.sides)
    return {
        "title": f"{names} compared",
        "comparison": compared,
        "judged": entries,
        "matrix": matrix.build("", entries) if len(entries) > 2 else None,
        "glossary": scores.TERMS,
        "pairs": [_drawn(pair, folders) for pair in compared.pairs],
        "index": {"flags": {}, "flips": FLIPS, "leaves": columns},
        "packed": packed,
        "documents": sum(leaf["count"] for leaf in columns),
        "num_texts": sum(leaf["texts"] for leaf in columns),
        "rule": "spread evenly over each leaf task's flips",
        "everything": everything,
    }


def _entries(sides: Sequence[Side], runs: Sequence[Path], wanted: Wanted | None) -> list[Entry]:
    judged = [source(run, unverified=True, wanted=wanted) for run in runs]
    return [
        Entry(side.label, "", Path(side.path).name, run.record, run.report)
        for side, run in zip(sides, judged, strict=True)
    ]


def _drawn(pair: Pair, folders: dict[str, Path]) -> Drawn:
    tops = [row for row in pair.rows if row.top or row.is_group]
    rest = [row for row in pair.rows if not row.is_group and row.headline and not row.nats]
    rest.sort(key=lambda row: row.difference.value)
    signed = verdict.reproductions(folders[pair.before.label], folders[pair.after.label])
    return Drawn(pair, _changes(tops), _changes(rest) if len(rest) > 1 else [], signed)


def _changes(rows: list[Row]) -> list[Change]:
    # an error of 0 says that no score changed, not how far off the difference may be
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


def _columns(pair: Pair, task: str, flips: list[Flip], count: int, *, several: bool) -> Columns:
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
Documents = dict[Key, leaves.Shown]


def _texts(
    sides: list[tuple[str, Documents]], flips: list[Flip], kept: texts.Texts
) -> tuple[str, int]:
    """Return a leaf task's flipped documents with both answers, compressed, and their number."""
    kept.begin(len(flips))
    for flip in flips:
        key = (flip.task, flip.doc_id)
        if not all(key in documents for _, documents in sides):
            continue
        answers = []
        for (label, documents), score in zip(sides, (flip.before, flip.after), strict=True):
            answer = {name: value for name, value in documents[key].items() if name in ANSWER}
            answers.append({"label": label, "score": score} | answer)
        document = sides[0][1][key]
        shared = {"id": document["id"], "prompt": document["prompt"], "target": document["target"]}
        kept.offer(None, False, shared | {"sides": answers})
    return kept.end()


def _documents(run: Path, wanted: set[Key]) -> Iterator[tuple[Key, leaves.Shown]]:
    """Yield the texts of the wanted documents, from one pass over a run's samples."""
    if (run / "record.json").is_file():
        documents = samples.documents(Folder(run), samples.Samples())
    else:
        documents = lm_eval.find(run).documents()
    for document in documents:
        key = (document.leaf, document.doc_id)
        if key in wanted:
            try:
                yield key, leaves.shown(document, leaves.likelihoods(document.first["resps"]))
            except BROKEN:
                continue
