"""A table's numbers held against the records that it names: each must be the value that its row and
its column say, correctly rounded, with the error that belongs to it.

Which record a cell is of follows from the ids at its row's end, or from the ids for the whole table
and the model that its row or column names; which task from its column's heads, or in a table of
tasks by models from its row. Where that is left open a number is unknown: a table in which two
rows, columns or errors are swapped is not right.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from evalkit.show.scores.rows import Row as Score
from evalkit.show.table_check import entries, means, names
from evalkit.show.table_check.entries import Entry, Finding
from evalkit.show.table_check.grid import Table
from evalkit.show.table_check.numbers import Number

HALF_WIDTH = 1.96  # standard errors: what many papers put behind ±


@dataclass(frozen=True, slots=True)
class Known:
    """A verified run: its ids without their prefix, its model's name, its scores."""

    ids: tuple[str, ...]
    model: str
    scores: Sequence[Score]

    def has(self, each: str) -> bool:
        """Whether an id, or its beginning, is this run's."""
        return any(known.startswith(each) for known in self.ids)


def judge(table: Table, runs: Sequence[Known], exempt: Collection[str]) -> Iterator[Finding]:
    """Every number of a table, and every cell that can't be read."""
    every = entries.of(table, exempt)
    found = [_entry(entry, entries.left(entry, every), table, runs) for entry in every]
    for entry, findings in found:
        for finding in findings:
            yield _of_others(finding, entry, [e for e, _ in found], table)


@dataclass(frozen=True, slots=True)
class _Place:
    """What a cell is of: the run, and the scores that its row or column names; or why not."""

    run: Known | None = None
    scores: Sequence[Score] = ()
    outcome: str = ""
    hint: str = ""


def _entry(
    entry: Entry, left: Number | None, table: Table, runs: Sequence[Known]
) -> tuple[Entry, list[Finding]]:  # fmt: skip
    place = _place(entry, table, runs)
    if not entry.numbers:  # a cell that holds digits and is no score: is it of a task?
        if not place.scores:
            return entry, []
        return entry, [entry.finding(entry.text, "unreadable", "write one score, and its error")]
    found, score, shift = [], None, 0
    if left is not None and names.is_error(entry.heads):
        _, score, shift = _score(left, entry, place, runs)
    for number in entry.numbers:
        if number.kind == "score":
            finding, score, shift = _score(number, entry, place, runs)
        elif number.kind == "error":
            finding = _error(number, entry, place, score, shift)
        else:
            finding = entry.finding(number.text, "difference")
        found.append(finding)
    return entry, found


def _place(entry: Entry, table: Table, runs: Sequence[Known]) -> _Place:
    ids = entry.ids or table.shared
    if not ids:
        return _Place(outcome="unknown", hint="its row names no record")
    told = [run for run in runs if any(run.has(each) for each in ids)]
    if not told:
        hint = f"it names {ids[0][:12]}, which is none of the given runs"
        return _Place(outcome="stale", hint=hint)
    named = [run for run in runs if names.is_model(entry.words, run.model)]
    both = [run for run in told if run in named]
    if len({run.model for run in told}) > 1 and not both:
        hint = f"nothing says which of its {len(told)} records it is of"
        return _Place(outcome="unknown", hint=hint)
    if named and not both:
        hint = f"its row says {named[0].model}, and names a record of {told[0].model}"
        return _Place(outcome="wrong", hint=hint)
    run = (both or told)[0]
    for words in (entry.heads, entry.labels):
        scores = names.speaking_of(words, run.scores)
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
    """The power of ten, 0 or 2, by which a number is a value; None where it is neither."""
    if not number.digits and abs(number.value) < 2 and float(number.value) != value:
        return None  # 0 and 1 would be nearly anything, rounded
    return next((shift for shift in (0, 2) if number.is_rounded(value, shift)), None)


def _error(
    number: Number, entry: Entry, place: _Place, score: Score | None, shift: int
) -> Finding:  # fmt: skip
    """An error belongs to the score before it, on its scale."""
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
    """The task's values with the number's digits, on its scale."""
    shift = 2 if abs(number.value) > 1 else 0
    found = [number.rounded(score.value, shift) for score in scores]
    errors = [number.rounded(s.stderr, shift) for s in scores if s.stderr is not None]
    told = " or ".join(dict.fromkeys(found))
    return told + (f" (± {' or '.join(dict.fromkeys(errors))})" if errors else "")


def _of_others(
    finding: Finding, entry: Entry, all_entries: Sequence[Entry], table: Table
) -> Finding:
    """What follows from other cells: a mean of its row, a difference in its column."""
    if finding.outcome == "difference":
        return means.difference(finding, entry, all_entries)
    if finding.outcome == "unknown" and (means.is_mean(entry.heads) or means.is_mean(entry.labels)):
        told = means.mean(entry, all_entries)
        return finding if told is None else replace(finding, outcome=told[0], hint=told[1])
    return finding
