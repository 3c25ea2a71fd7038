"""A table's cells as entries to be judged: each with its numbers, what its row and its column are
called, and the records that its row names.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from evalkit.show.table_check import names, numbers
from evalkit.show.table_check.grid import Row, Table
from evalkit.show.table_check.numbers import Number


@dataclass(frozen=True, slots=True)
class Finding:
    """A number, or a cell that can't be read, and what was found of it. `outcome`: ok, wrong,
    unknown, stale, unreadable, or, from counts alone, impossible, unlike or unchecked; `hint` says
    what it should be."""

    line: int
    column: int
    text: str
    outcome: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f": {self.hint}" if self.hint else ""
        return f"line {self.line}, column {self.column}: {self.text} is {self.outcome}{hint}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A body cell that holds digits and is no text: `numbers` is empty where it can't be read."""

    line: int
    row: int
    column: int
    text: str
    numbers: tuple[Number, ...]
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What its row and its column are called."""
        return (*self.labels, *self.heads)

    @property
    def score(self) -> Number | None:
        """Its score, where it holds exactly one."""
        found = [number for number in self.numbers if number.kind == "score"]
        return found[0] if len(found) == 1 else None

    def finding(self, text: str, outcome: str, hint: str = "") -> Finding:
        """A finding at this cell."""
        return Finding(self.line, self.column, text, outcome, hint)


def of(table: Table, exempt: Collection[str]) -> list[Entry]:
    """The entries of a table, but those in columns that the reader exempts by name or number."""
    left_out = {names.plain(each) for each in exempt}
    found: list[Entry] = []
    above: tuple[str, ...] = ()
    for index, row in enumerate(table.rows):
        if len(row.cells) == 1 or (row.cells[0].span > 1 and not _has_numbers(row)):
            continue  # a heading over the rows below
        labels = _labels(row)
        if row.cells[0].text:
            above = labels[:1]
        else:  # below a name that goes over several rows
            labels = above + labels
        for cell in row.cells[1:]:
            content = numbers.read(cell.text)
            heads = tuple(head for head in table.head(cell.column) if head)
            called = {*map(names.plain, heads), str(cell.column)}
            if content.is_text or called & left_out or names.is_no_score(heads):
                continue
            shown = content.numbers
            if names.is_error(heads):  # of the score in the column to the left
                shown = tuple(Number(number.text, "error") for number in shown)
            found.append(
                Entry(cell.line, index, cell.column, cell.text, shown, heads, labels, row.ids)
            )
    return found


def left(entry: Entry, others: Sequence[Entry]) -> Number | None:
    """The score left of a column of errors, in the same row."""
    row = [e for e in others if e.row == entry.row and e.column < entry.column and e.score]
    return max(row, key=lambda e: e.column).score if row else None


def _has_numbers(row: Row) -> bool:
    return any(numbers.read(cell.text).numbers for cell in row.cells[1:])


def _labels(row: Row) -> tuple[str, ...]:
    """What a row is called: the texts left of its first number, the first cell's always."""
    found = [row.cells[0].text]
    for cell in row.cells[1:]:
        if not numbers.read(cell.text).is_text:
            break
        found.append(cell.text)
    return tuple(text for text in found if text)
