"""`check-table`: checks the numbers of a paper's tables against the records that they name, or,
without records, against what is possible with that number of documents.

Parsers (`latex`, `markdown`) read a file into one form (`table`), a cell's text becomes numbers
(`numbers`), and `records` or `counts` judges them. A comment names a row's or a table's record, as
`evalkit export` writes it: `% evalkit: sha256:...`, any of its ids, or 12 or more hex digits.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from decimal import localcontext
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.show.source import rows, source
from evalkit.show.table_check import counts, numbers, records
from evalkit.show.table_check.table import Finding, Table

MAX_BYTES = 4 << 20
MAX_BEGINS = 2_000  # a thesis has some hundred
MARKDOWN = (".md", ".markdown", ".mdx", ".qmd")
_FINE = {"ok", "unchecked"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The findings about every number of the checked tables. `by_records`: against records."""

    tables: int
    cells: list[Finding]
    by_records: bool

    @property
    def bad(self) -> list[Finding]:
        """The numbers that are not right, and the cells that can't be read."""
        return [cell for cell in self.cells if cell.outcome not in _FINE]

    @property
    def exit_code(self) -> Exit:
        """0 where every number is right, else 1."""
        return Exit.FAILED if self.bad else Exit.OK

    def lines(self) -> list[str]:
        """Return a line for each wrong number, then how many are right."""
        where = f"{self.tables} table" + ("s" if self.tables != 1 else "")
        count = Counter(cell.outcome for cell in self.cells)
        if self.by_records:
            right = f"{count['ok']:,} of {len(self.cells):,} numbers in {where} are the records'"
        else:
            right = (
                f"without records: {len(self.cells):,} numbers in {where}: {len(self.bad):,} to ask"
                f" about, {count['ok']:,} possible, {count['unchecked']:,} that can't be checked"
            )
        return [*map(str, self.bad), right]

    def to_json(self) -> dict[str, object]:
        """Return its fields by name."""
        cells = [asdict(cell) for cell in self.cells]
        return {"tables": self.tables, "by_records": self.by_records, "cells": cells}


def check(paper: Path, runs: Sequence[Path], exempt: Collection[str] = ()) -> Outcome:
    """Check the tables of a LaTeX or Markdown file against runs, each verified first, or without
    runs against counts of documents; `exempt` columns are left out. Raises EvalkitError (3) for a
    missing file, (1) for a BROKEN run, (2) where no table is found, or none names a record."""
    with localcontext() as context:
        context.prec = numbers.PRECISION
        return _check(paper, runs, exempt)


def _check(paper: Path, runs: Sequence[Path], exempt: Collection[str]) -> Outcome:
    tables = read(paper)
    if not tables:
        raise EvalkitError("there is no table in it", where=str(paper))
    if not runs:
        cells = [cell for table in tables for cell in counts.judge(table, exempt)]
        return Outcome(len(tables), cells, by_records=False)
    known = [_known(run) for run in runs]
    tables = [table for table in tables if table.shared or any(row.ids for row in table.rows)]
    if not tables:
        raise EvalkitError(
            "no table in it names a record", where=str(paper),
            fix="put `% evalkit: <record id>` at the end of each row"
            " (`evalkit export --to latex` does)",
        )  # fmt: skip
    cells = [cell for table in tables for cell in records.judge(table, known, exempt)]
    return Outcome(len(tables), cells, by_records=True)


def read(paper: Path) -> list[Table]:
    """Return the tables of a file: Markdown by its name's ending, else LaTeX."""
    data = canon.read_given(paper, MAX_BYTES, "it")
    if data.count(b"\\begin{") > MAX_BEGINS:
        raise EvalkitError(f"it is over the limit of {MAX_BEGINS:,} \\begin", where=str(paper))
    try:
        return _tables(paper, data.decode("utf-8", "replace"))
    except RecursionError:
        raise EvalkitError(
            "its braces are nested too deeply to be read", where=str(paper)
        ) from None


def _tables(paper: Path, text: str) -> list[Table]:
    if paper.suffix.lower() in MARKDOWN:
        from evalkit.show.table_check import markdown

        return markdown.tables(text)
    from evalkit.show.table_check import latex

    return latex.tables(text)


def _known(run: Path) -> records.Known:
    record = source(run).record
    ids = [*record["ids"].values(), record["execution"]]
    scores = [row.score for row in rows(record)]
    digits = tuple(str(id).removeprefix("sha256:") for id in ids)
    return records.Known(digits, record["model"]["reference"], scores)
