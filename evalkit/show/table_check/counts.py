"""Checks of a table's numbers without any record: impossible proportions, errors that don't belong
to their scores, means that aren't those of their parts.

Proportions are tested by GRIM (Brown and Heathers 2017): of n documents k are right, so only n + 1
scores exist. A mean of several runs may be any number: a finding is a question to the authors, not
a proof.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import cache

from evalkit.inputs import locked
from evalkit.inputs import suite as suites
from evalkit.show.table_check import means, names
from evalkit.show.table_check.numbers import Number
from evalkit.show.table_check.table import Entry, Finding, Table, entries, left

# Documents of other benchmarks' test sets, as lm-eval 0.4.13's tasks ask them, where each scores 0
# or 1.
DOCUMENTS = {
    "arceasy": 2376, "boolq": 3270, "commonsenseqa": 1221, "copa": 100, "gpqadiamond": 198,
    "gsm8k": 1319, "humaneval": 164, "lambadaopenai": 5153, "logiqa": 651, "nqopen": 3610,
    "openbookqa": 500, "piqa": 1838, "sciq": 1000, "truthfulqamc1": 817, "winogrande": 1267,
}  # fmt: skip
METRICS = {"ppl", "perplexity", "f1", "bleu", "rouge", "rougel", "bpb", "bitsperbyte", "nll",
           "ece", "brier", "time", "tokens", "length", "loss", "cost"}  # fmt: skip
WIDTHS = (1.0, 1.96, 1.645)  # standard errors that are shown behind ±
FEW = 5  # proportions that no such table has by chance
TOLERANCE = 0.03  # of an error: n or n - 1, pooled or not


@cache
def documents() -> dict[str, int]:
    """Return the number of documents of leaf tasks by plain name: from the shipped suites' locks
    and DOCUMENTS. Groups have none: their score may be a mean over tasks, which can be any
    number."""
    counts = dict(DOCUMENTS)
    for path in sorted(suites.FOLDER.glob("*.lock.yaml")):
        for name, task in locked.read_lock(path).tasks.items():
            counts[names.plain(name)] = task["documents"]
    return counts


def judge(table: Table, exempt: Collection[str]) -> Iterator[Finding]:
    """Judge every number of a table: proportions of known documents, errors, means."""
    cells = entries(table, exempt)
    in_percent = {e.column for e in cells if e.score is not None and e.score.value > 1}
    judged = [finding for e in cells for finding in _findings(e, cells, _scale(e, in_percent))]
    tested = [f for f in judged if f.outcome == "impossible" or "documents" in f.hint]
    impossible = [f for f in tested if f.outcome == "impossible"]
    if len(impossible) > max(FEW, len(tested) / 2):
        question = f"{len(impossible)} of this table's {len(tested)} proportions are none of so"
        question += " many documents: are they means of several runs?"
        first = impossible[0]
        yield replace(first, hint=f"{first.hint}; {question}")
        left_out = set(impossible)
        judged = [
            replace(e, outcome="unchecked") if e in left_out else e for e in judged if e != first
        ]
    yield from judged


def _findings(entry: Entry, others: Sequence[Entry], scale: int) -> Iterator[Finding]:
    if not entry.numbers:
        if _count(entry):
            yield entry.finding(entry.text, "unreadable", "write one score, and its error")
        return
    for number in entry.numbers:
        yield _judged(number, entry, others, scale)


def _judged(number: Number, entry: Entry, others: Sequence[Entry], scale: int) -> Finding:
    if number.kind == "difference":
        finding = means.difference(entry.finding(number.text, "difference"), entry, others)
        return finding if finding.outcome == "ok" else entry.finding(number.text, "unchecked")
    count = _count(entry)
    if number.kind == "error":
        score = entry.score or left(entry, others)
        return _error(number, entry, score, count)
    if means.is_mean(entry.heads) or means.is_mean(entry.labels):
        outcome = means.mean(entry, others)
        if outcome is not None:
            return entry.finding(number.text, *outcome)
    if count is None or not 0 <= number.value <= scale:
        return entry.finding(number.text, "unchecked")
    if Decimal(1).scaleb(-number.digits) * count > scale:
        return entry.finding(
            number.text, "unchecked"
        )  # so few decimals that any number is possible
    if _is_possible(number, count, scale):
        return entry.finding(number.text, "ok", f"of {count:,} documents")
    near = [Decimal(scale * k) / count for k in _near(number, count, scale)]
    digits = Decimal(1).scaleb(-number.digits)
    possible = " or ".join(str(value.quantize(digits, ROUND_HALF_EVEN)) for value in near)
    hint = f"{count:,} documents give {possible}, and nothing between"
    return entry.finding(number.text, "impossible", hint)


def _near(number: Number, count: int, scale: int) -> list[int]:
    below = int(number.value * count / scale)
    return [k for k in (below, below + 1) if k <= count]


def _is_possible(number: Number, count: int, scale: int) -> bool:
    """Return whether some k of `count` gives the number, rounded in a usual way or cut."""
    step = Decimal(1).scaleb(-number.digits)
    hows = (ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_DOWN)
    return any(
        (Decimal(scale * k) / count).quantize(step, how) == number.value
        for k in _near(number, count, scale)
        for how in hows
    )


def _error(number: Number, entry: Entry, score: Number | None, count: int | None) -> Finding:
    scale = 1 if score is not None and score.value <= 1 else 100
    if count is None or score is None or not 0 < score.value < scale or count < 2:
        return entry.finding(number.text, "unchecked")
    share = float(score.value) / scale
    error = scale * math.sqrt(share * (1 - share) / (count - 1))
    for width in WIDTHS:
        slack = float(number.half) + TOLERANCE * width * error
        if abs(float(number.value) - width * error) <= slack:
            return entry.finding(number.text, "ok")
    hint = f"the standard error of {score.text} over {count:,} documents is {error:.3g}"
    return entry.finding(number.text, "unlike", hint)


def _count(entry: Entry) -> int | None:
    """Return the number of documents of the task that a cell's column, else its row, names."""
    known = documents()
    for words in (entry.heads, entry.labels):
        forms = [form for text in words for form in names.forms(text)]
        if any(form in METRICS for form in forms):
            return None
        counts = {known[form] for form in forms if form in known}
        if len(counts) == 1:
            return counts.pop()
    return None


def _scale(entry: Entry, in_percent: Collection[int]) -> int:
    """Return 1 for a share in a column without scores above 1, else 100."""
    own = entry.score
    if own is not None and own.value <= 1 and own.digits >= 3:
        return 1
    return 100 if entry.column in in_percent else 1
