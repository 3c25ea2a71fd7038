"""Checks a table's numbers against the records that it names, correctly rounded and each with its
own error.

A cell's record follows from the ids at the end of its row, or from the table's ids and the model
that the row or column names; the task follows from the heads. Where either is not certain the
number is unknown: swapped rows or columns must not pass.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from evalkit.record.reading.score_table import Score
from evalkit.show.table_check import means, names
from evalkit.show.table_check.numbers import Number
from evalkit.show.table_check.table import Entry, Finding, Table, entries, left

HALF_WIDTH = 1.96  # standard errors: what many papers put behind ±


@dataclass(frozen=True, slots=True)
class Known:
    """A verified run: its ids without their prefix, its model's name, its scores."""

    ids: tuple[str, ...]
    model: str
    scores: Sequence[Score]

    def has(self, id: str) -> bool:
        """Return whether an id, or its beginning, is this run's."""
        return any(known.startswith(id) for known in self.ids)


def judge(table: Table, runs: Sequence[Known], exempt: Collection[str]) -> Iterator[Finding]:
    """Judge every number of a table, and every cell that can't be read."""
    cells = entries(table, exempt)
    for entry in cells:
        for finding in _findings(entry, left(entry, cells), table, runs):
            yield _by_other_cells(finding, entry, cells)


@dataclass(frozen=True, slots=True)
class _Place:
    """The run and the scores that the row and column of a cell name; or why there are none."""

    run: Known | None = None
    scores: Sequence[Score] = ()
    outcome: str = ""
    hint: str = ""


def _findings(
    entry: Entry, score_left: Number | None, table: Table, runs: Sequence[Known]
) -> Iterator[Finding]:
    place = _place(entry, table, runs)
    if not entry.numbers and place.scores:
        yield entry.finding(entry.text, "unreadable", "write one score, and its error")
    score, shift = None, 0
    if score_left is not None and names.is_error(entry.heads):
        _, score, shift = _score(score_left, entry, place, runs)
    for number in entry.numbers:
        if number.kind == "score":
            finding, score, shift = _score(number, entry, place, runs)
            yield finding
        elif number.kind == "error":
            yield _error(number, entry, score, shift)
        else:
            yield entry.finding(number.text, "difference")


def _place(entry: Entry, table: Table, runs: Sequence[Known]) -> _Place:
    ids = entry.ids or table.shared
    if not ids:
        return _Place(outcome="unknown", hint="its row names no record")
    by_id = [run for run in runs if any(run.has(id) for id in ids)]
    if not by_id:
        hint = f"it names {ids[0][:12]}, which is none of the given runs"
        return _Place(outcome="stale", hint=hint)
    by_name = [run for run in runs if names.is_model(entry.words, run.model)]
    by_both = [run for run in by_id if run in by_name]
    if len({run.model for run in by_id}) > 1 and not by_both:
        hint = f"nothing says which of its {len(by_id)} records it is of"
        return _Place(outcome="unknown", hint=hint)
    if by_name and not by_both:
        hint = f"its row says {by_name[0].model}, and names a record of {by_id[0].model}"
        return _Place(outcome="wrong", hint=hint)
    run = (by_both or by_id)[0]
    for words in (entry.heads, entry.labels):
        scores = names.scores_named(words, run.scores)
        if scores:
            return _Place(run, scores)
    return _Place(run, hint="its column names no task of the record", outcome="unknown")


def _score(
    number: Number, entry: Entry, place: _Place, runs: Sequence[Known]
) -> tuple[Finding, Score | None, int]:
    if not place.scores:
        rounds = place.run is None or any(
            _shift(number, score.value) is not None for score in place.run.scores
        )
        hint = place.hint if rounds else "no value of the records rounds to it"
        return entry.finding(number.text, place.outcome, hint), None, 0
    for score in place.scores:
        shift = _shift(number, score.value)
        if shift is not None:
            return entry.finding(number.text, "ok"), score, shift
    tasks = {score.task for score in place.scores}
    others = [s for run in runs if run is not place.run for s in run.scores if s.task in tasks]
    if any(_shift(number, score.value) is not None for score in others):
        return entry.finding(number.text, "stale", "it is another run's value"), None, 0
    hint = "should be " + _should(number, place.scores)
    return entry.finding(number.text, "wrong", hint), None, 0


def _shift(number: Number, value: float) -> int | None:
    """Return the power of ten (0 or 2) that makes the value this number, rounded; else None."""
    if not number.digits and abs(number.value) < 2 and float(number.value) != value:
        return None  # rounded, nearly any value is 0 or 1
    return next((shift for shift in (0, 2) if number.is_rounded(value, shift)), None)


def _error(number: Number, entry: Entry, score: Score | None, shift: int) -> Finding:
    """Judge the error of the score before it, on that score's scale."""
    if score is None:
        return entry.finding(number.text, "unknown", "the score before it is not the record's")
    if score.stderr is None:
        return entry.finding(number.text, "wrong", "its score has no standard error")
    if number.is_rounded(score.stderr, shift) or number.is_rounded(
        HALF_WIDTH * score.stderr, shift
    ):
        return entry.finding(number.text, "ok")
    return entry.finding(number.text, "wrong", "should be " + number.rounded(score.stderr, shift))


def _should(number: Number, scores: Sequence[Score]) -> str:
    """Return the task's values with the number's digits, on its scale."""
    shift = 2 if abs(number.value) > 1 else 0
    values = dict.fromkeys(number.rounded(score.value, shift) for score in scores)
    errors = dict.fromkeys(
        number.rounded(score.stderr, shift) for score in scores if score.stderr is not None
    )
    return " or ".join(values) + (f" (± {' or '.join(errors)})" if errors else "")


def _by_other_cells(finding: Finding, entry: Entry, cells: Sequence[Entry]) -> Finding:
    """Judge what follows from other cells: a mean of its row, a difference in its column."""
    if finding.outcome == "difference":
        return means.difference(finding, entry, cells)
    if finding.outcome == "unknown" and (means.is_mean(entry.heads) or means.is_mean(entry.labels)):
        outcome = means.mean(entry, cells)
        return replace(finding, outcome=outcome[0], hint=outcome[1]) if outcome else finding
    return finding
