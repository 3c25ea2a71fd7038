"""A table as `check-table` sees it, whichever language it was written in: what its columns are
called, and each body row with its cells' text, made plain.

Plain text keeps what a number's part is told by: `±` before an error, `_(...)` around what is set
below the line or smaller, `^(...)` around what is set above it, arrows and signs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

IDS = re.compile(r"(?:sha256:)?\b([0-9a-f]{12,64})\b")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its line in the file, its first column (from 1), its plain text, and over how many
    columns it goes."""

    line: int
    column: int
    text: str
    span: int = 1


@dataclass(slots=True)
class Row:
    """A body row; `ids`: the records that it names by itself."""

    line: int
    cells: list[Cell]
    ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Table:
    """A table: where it starts, its columns' heads from the top, its body, and the records that
    comments name for all of it."""

    line: int
    heads: list[list[str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    shared: tuple[str, ...] = ()

    def head(self, column: int) -> list[str]:
        """What stands above a column, from the top."""
        return [level[column - 1] for level in self.heads if column <= len(level)]


def named(comment: str) -> list[str]:
    """The records that a comment of evalkit's names."""
    return IDS.findall(comment) if "evalkit" in comment else []


def build(line: int, rows: Sequence[Row], num_heads: int, shared: Sequence[str]) -> Table:
    """A table of all its rows, the first `num_heads` of which are its head."""
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
