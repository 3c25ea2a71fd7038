"""Tables of the docs that a test writes, between `<!-- table -->` and `<!-- end -->`: a row a line,
below two lines of head."""

from collections.abc import Iterable
from pathlib import Path

Key = tuple[str, ...]  # a row's first cells
START, END = "<!-- table -->\n", "<!-- end -->"


def _parts(page: Path) -> tuple[str, list[str], str]:
    """What stands before a page's table, its lines, and what stands behind it."""
    before, start, rest = page.read_text().partition(START)
    table, end, after = rest.partition(END)
    assert start and end, f"{page} has no place for the table"
    return before + start, table.splitlines(), end + after


def rows(page: Path, columns: int) -> dict[Key, str]:
    """A page's rows by their first `columns` cells."""
    _, (_, _, *lines), _ = _parts(page)
    cells = {line: [cell.strip() for cell in line.split("|")] for line in lines}
    return {tuple(cell[1 : columns + 1]): line for line, cell in cells.items()}


def write(page: Path, lines: Iterable[str]) -> None:
    """Let a page's table have these rows, below the head that it has."""
    before, (title, rule, *_), after = _parts(page)
    page.write_text(before + "\n".join([title, rule, *lines]) + "\n" + after)
