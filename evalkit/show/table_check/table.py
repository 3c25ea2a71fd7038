"""A table as `check-table` sees it in any language: cells with their numbers, the names of row and
column, and the records.

A cell's plain text keeps what separates a number's parts: `±` before an error, `_(...)` for what is
set lower or smaller, `^(...)` for what is set higher, arrows and signs.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from evalkit.show.table_check import names, numbers
from evalkit.show.table_check.numbers import Number

IDS = re.compile(r"(?:sha256:)?\b([0-9a-f]{12,64})\b")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its line in the file, first column (from 1), plain text, and width in columns."""

    line: int
    column: int
    text: str
    span: int = 1


@dataclass(slots=True)
class Row:
    """A body row. `ids`: the records that a comment in the row names."""

    line: int
    cells: list[Cell]
    ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Table:
    """A table: its first line, the heads of its columns from the top, its body rows, and `shared`,
    the records that comments name for the whole table."""

    line: int
    heads: list[list[str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    shared: tuple[str, ...] = ()

    def head(self, column: int) -> list[str]:
        """Return the heads of a column, from the top."""
        return [level[column - 1] for level in self.heads if column <= len(level)]


def named(comment: str) -> list[str]:
    """Return the record ids in a comment, if the comment is one for evalkit."""
    return IDS.findall(comment) if "evalkit" in comment else []


def build(line: int, rows: Sequence[Row], num_heads: int, shared: Sequence[str]) -> Table:
    """Return a table of these rows; the first `num_heads` are its head."""
    table = Table(line, shared=tuple(dict.fromkeys(shared)))
    width = max((c.column + c.span - 1 for row in rows for c in row.cells), default=0)
    for row in rows[:num_heads]:
        level = [""] * width
        for cell in row.cells:
            for column in range(cell.column, cell.column + cell.span):
                level[column - 1] = cell.text
        table.heads.append(level)
    table.rows = list(rows[num_heads:])
    return table


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about a number, or about a cell that can't be read. `outcome`: ok, wrong,
    unknown, stale, unreadable, or, from counts alone, impossible, unlike or unchecked; `hint` says
    what the number should be."""

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
    """A body cell that holds digits and is no text. `numbers` is empty where it can't be read;
    `heads` and `labels` are the names of its column and its row."""

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
        """The names of its row and its column."""
        return (*self.labels, *self.heads)

    @property
    def score(self) -> Number | None:
        """Its score, where it holds exactly one."""
        scores = [number for number in self.numbers if number.kind == "score"]
        return scores[0] if len(scores) == 1 else None

    def finding(self, text: str, outcome: str, hint: str = "") -> Finding:
        """Return a finding about this cell."""
        return Finding(self.line, self.column, text, outcome, hint)


def entries(table: Table, exempt: Collection[str]) -> list[Entry]:
    """Return the entries of a table, except those in the columns `exempt` (names or numbers)."""
    left_out = {names.plain(column) for column in exempt}
    made: list[Entry] = []
    above: tuple[str, ...] = ()
    for index, row in enumerate(table.rows):
        if len(row.cells) == 1 or (row.cells[0].span > 1 and not _has_numbers(row)):
            continue  # a heading of the rows below
        labels = _labels(row)
        if row.cells[0].text:
            above = labels[:1]
        else:  # below a name that spans several rows
            labels = above + labels
        for cell in row.cells[1:]:
            content = numbers.read(cell.text)
            heads = tuple(head for head in table.head(cell.column) if head)
            column_names = {*map(names.plain, heads), str(cell.column)}
            if content.is_text or column_names & left_out or names.is_no_score(heads):
                continue
            shown = content.numbers
            if names.is_error(heads):  # of the score in the column to the left
                shown = tuple(Number(number.text, "error") for number in shown)
            made.append(
                Entry(cell.line, index, cell.column, cell.text, shown, heads, labels, row.ids)
            )
    return made


def left(entry: Entry, others: Sequence[Entry]) -> Number | None:
    """Return the nearest score to the left of an entry, in the same row."""
    row = [e for e in others if e.row == entry.row and e.column < entry.column and e.score]
    return max(row, key=lambda e: e.column).score if row else None


def _has_numbers(row: Row) -> bool:
    return any(numbers.read(cell.text).numbers for cell in row.cells[1:])


def _labels(row: Row) -> tuple[str, ...]:
    """Return the names of a row: the texts left of its first number, the first cell's always."""
    labels = [row.cells[0].text]
    for cell in row.cells[1:]:
        if not numbers.read(cell.text).is_text:
            break
        labels.append(cell.text)
    return tuple(text for text in labels if text)
