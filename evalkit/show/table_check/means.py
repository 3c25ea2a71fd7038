"""What the cells of a table say about each other: that one is the mean of others of its row, or the
difference of two scores of its column.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

from evalkit.show.table_check import names
from evalkit.show.table_check.numbers import Number
from evalkit.show.table_check.table import Entry, Finding

_MEANS = {"avg", "average", "mean", "averages", "avgacc", "meanacc", "overallavg", "macroavg",
          "avgscore", "averagescore", "avgaccuracy", "meanscore"}  # fmt: skip
_NO_PART = re.compile(
    r"param|size|token|flop|ppl|perplex|wiki|↓|rank|year|step|epoch|memory|latency|time|speed|cost"
    r"|length|\bbits?\b|ratio|\bgb\b|sparsity|#|^n$|geo", re.I,
)  # fmt: skip
FEWEST = 2  # parts of a mean


def is_mean(heads: Sequence[str]) -> bool:
    """Return whether a head says that its column holds means."""
    return any(names.plain(names.bare(head)) in _MEANS for head in heads)


def mean(entry: Entry, others: Sequence[Entry]) -> tuple[str, str] | None:
    """Return (outcome, hint): whether a mean is that of its parts; None where it has none. Parts
    are all scores of its row, those beside it up to the next mean, or those below the same head. It
    is ok as the plain mean of any of these, unlike where it lies between them (it may be
    weighted)."""
    shown = entry.score
    scored = [e for e in others if e.score is not None and e is not entry]
    if is_mean(entry.labels):  # a row of means, below their parts
        sets = list(_above(entry, [e for e in scored if e.column == entry.column]))
    else:
        sets = list(_parts(entry, [e for e in scored if e.row == entry.row]))
    sets = [part for part in sets if len(part) >= FEWEST]
    if any(not e.numbers and (e.row == entry.row or e.column == entry.column) for e in others):
        return None  # a part can't be read
    if shown is None or not sets:
        return None
    for parts in sets:
        if _is_mean(shown, [part.score for part in parts if part.score is not None]):
            return "ok", ""
    parts = sets[0]
    value = sum((p.score.value for p in parts if p.score), Decimal(0)) / len(parts)
    hint = f"the mean of its {len(parts)} parts is {value.quantize(Decimal('0.001'))}"
    known = [p.score.value for p in parts if p.score]
    if min(known) <= shown.value <= max(known):
        return "unlike", f"{hint}; only a weighted one can be this"
    return "wrong", hint


def _parts(entry: Entry, row: Sequence[Entry]) -> Iterator[list[Entry]]:
    scores = [e for e in row if not is_mean(e.heads) and not _NO_PART.search(" ".join(e.heads))]
    stops = [e.column for e in row if is_mean(e.heads)]
    left = max((c for c in stops if c < entry.column), default=0)
    right = min((c for c in stops if c > entry.column), default=10**6)
    beside = [e for e in scores if left < e.column < entry.column]
    yield beside
    yield [e for e in scores if entry.column < e.column < right]
    yield scores
    if len(entry.heads) > 1:
        yield [e for e in scores if e.heads[0] == entry.heads[0]]
    for start in range(1, len(beside) - 1):
        yield beside[start:]
    yield [e for e in row if e.column < entry.column]


def _above(entry: Entry, column: Sequence[Entry]) -> Iterator[list[Entry]]:
    stops = [e.row for e in column if is_mean(e.labels) and e.row < entry.row]
    above = [e for e in column if e.row < entry.row and not is_mean(e.labels)]
    yield [e for e in above if e.row > max(stops, default=-1)]
    yield above
    yield [e for e in column if e.row > entry.row and not is_mean(e.labels)]


def _is_mean(shown: Number, parts: Sequence[Number]) -> bool:
    value = sum((part.value for part in parts), Decimal(0)) / len(parts)
    slack = shown.half + sum((part.half for part in parts), Decimal(0)) / len(parts)
    return abs(shown.value - value) <= slack


def difference(finding: Finding, entry: Entry, others: Sequence[Entry]) -> Finding:
    """Judge a difference: its cell's score less another score of its column or its row."""
    number = next(n for n in entry.numbers if n.text == finding.text and n.kind == "difference")
    near = [e.score for e in others if e.score and e is not entry
            and (e.column == entry.column or e.row == entry.row)]  # fmt: skip
    own = [entry.score] if entry.score else [n for e in others if e.row == entry.row
                                             and (n := e.score)]  # fmt: skip
    for a in own:
        for b in near:
            off = abs(abs(a.value - b.value) - abs(number.value))
            if off <= number.half + a.half + b.half:
                return replace(finding, outcome="ok")
    if not own or not near:
        return replace(finding, outcome="unknown", hint="there is nothing that it could be of")
    hint = "no two scores of its row or column differ by it"
    return replace(finding, outcome="unknown", hint=hint)
