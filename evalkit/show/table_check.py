"""`check-table`: holds the numbers of a LaTeX table against the records that it names.

A table is checked where a comment in it names records, as `evalkit export --to latex` writes them:
`% evalkit: sha256:...`, any of a record's ids, or 12 or more of its hex digits; at the end of a row
it stands for that row, on a line of its own for the table. Every number in a body cell must be a
value or a standard error of such a record, or a hundred times one, correctly rounded to the digits
shown; where a column's head names a task, one of that task's. TeX is read, never run.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import verify
from evalkit.record.reading import read
from evalkit.show.rows import Row, rows

MAX_BYTES = 16 << 20
_TABLE = re.compile(r"\\begin\{(tabular[*xy]?|longtable|tblr)\}(.*?)\\end\{\1\}", re.S)
_COMMENT = re.compile(r"(?<!\\)%(.*)")
_IDS = re.compile(r"(?:sha256:)?\b([0-9a-f]{12,64})\b")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?\.?\d+")
_RULES = re.compile(r"\\(?:top|mid|bottom|c?mid|h|c)(?:rule|line)\s*(?:\([^)]*\))?(?:\{[^}]*\})?")
_MARKUP = re.compile(r"\\(?:textbf|textit|underline|emph|mathbf|text|bm|num|textsuperscript)\b")


@dataclass(frozen=True, slots=True)
class Cell:
    """A number and what was found of it. `outcome`: ok, wrong (the column's task has another
    value), unknown (no value of the named records) or stale (its records are not among the given
    runs, or it is another run's value); `hint` says what it should be."""

    line: int
    column: int
    text: str
    outcome: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f": {self.hint}" if self.hint else ""
        return f"line {self.line}, column {self.column}: {self.text} is {self.outcome}{hint}"


@dataclass(frozen=True, slots=True)
class Found:
    """Every number of every checked table. `tables`: how many name records."""

    tables: int
    cells: list[Cell]

    @property
    def bad(self) -> list[Cell]:
        """What isn't a record's."""
        return [cell for cell in self.cells if cell.outcome != "ok"]

    @property
    def exit_code(self) -> Exit:
        """0 where every number is right, else 1."""
        return Exit.FAILED if self.bad else Exit.OK

    def lines(self) -> list[str]:
        """A line a wrong number, then how many are right."""
        told = [str(cell) for cell in self.bad]
        right = len(self.cells) - len(self.bad)
        where = f"{self.tables} table" + ("s" if self.tables != 1 else "")
        return [*told, f"{right:,} of {len(self.cells):,} numbers in {where} are the records'"]

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return {"tables": self.tables, "cells": [asdict(cell) for cell in self.cells]}


@dataclass(frozen=True, slots=True)
class _Run:
    ids: tuple[str, ...]
    rows: list[Row]


def check(paper: Path, runs: Sequence[Path]) -> Found:
    """Hold the tables of a TeX file against some runs, each verified first.

    Raises EvalkitError (3) where the file is missing, (1) where a run is BROKEN, and (2) where no
    table names a record.
    """
    try:
        data = paper.read_bytes()[: MAX_BYTES + 1]
    except OSError as error:
        raise EvalkitError(
            f"can't read it: {error.strerror}", where=str(paper), code=Exit.MISSING
        ) from None
    if len(data) > MAX_BYTES:
        raise EvalkitError("it is larger than 16 MiB", where=str(paper))
    known = [_run(run) for run in runs]
    text = data.decode("utf-8", "replace")
    tables = [(found, _around(text, found)) for found in _TABLE.finditer(text)]
    tables = [(found, around) for found, around in tables if _named(around)]
    if not tables:
        raise EvalkitError(
            "no table in it names a record", where=str(paper),
            fix="put `% evalkit: <record id>` at the end of each row"
            " (`evalkit export --to latex` does)",
        )  # fmt: skip
    cells = [
        cell
        for found, around in tables
        for cell in _Table(
            found[2], text.count("\n", 0, found.start(2)) + 1, _shared(around), known
        ).cells()
    ]
    return Found(len(tables), cells)


def _run(run: Path) -> _Run:
    report = verify(run)
    if not report.consistent or not report.readable:
        raise EvalkitError(report.verdict, where=str(run), code=Exit.FAILED)
    record = read.record(run)
    ids = [*record["ids"].values(), record["execution"]]
    return _Run(tuple(each.removeprefix("sha256:") for each in ids), rows(record))


def _named(text: str) -> list[str]:
    """The record ids in a text's comments that speak of evalkit."""
    comments = (found[1] for found in _COMMENT.finditer(text))
    return [each for comment in comments if "evalkit" in comment for each in _IDS.findall(comment)]


def _around(text: str, found: re.Match[str]) -> str:
    """The table environment around a tabular, or the tabular alone."""
    start = text.rfind(r"\begin{table", 0, found.start())
    end = text.find(r"\end{table", start)
    return text[start:end] if start >= 0 and end >= found.end() else found[0]


def _shared(around: str) -> list[str]:
    """The ids that stand on lines of their own, for every row."""
    own = [line for line in around.splitlines() if line.lstrip().startswith("%")]
    return _named("\n".join(own))


class _Table:
    """One tabular's content, which starts on `first_line`; `shared`: the ids for all its rows."""

    def __init__(self, body: str, first_line: int, shared: list[str], runs: list[_Run]) -> None:
        self._body, self._first, self._shared, self._runs = body, first_line, shared, runs

    def cells(self) -> Iterator[Cell]:
        """Every number of the body: below the first rule behind the head, right of the names."""
        heads: list[str] = []
        in_body = False
        for line, text, ids in self._rows():
            parts = [part.strip() for part in re.split(r"(?<!\\)&", text)]
            if not in_body and not ids:
                heads = [f"{a} {b}" for a, b in zip(_padded(heads, parts), _padded(parts, heads),
                                                    strict=True)]  # fmt: skip
                continue
            in_body = True
            for column, part in enumerate(parts[1:], 2):
                head = heads[column - 1] if column <= len(heads) else ""
                for number in _numbers(part):
                    yield self._judge(line, column, number, head, ids)

    def _rows(self) -> Iterator[tuple[int, str, list[str]]]:
        """Each row's line, text without comments and rules, and the ids that it names; the head's
        rows name none."""
        text, start, behind_rule, seen = "", self._first, False, False
        for offset, raw in enumerate(self._body.splitlines()):
            comment = _COMMENT.search(raw)
            plain = raw[: comment.start()] if comment else raw
            behind_rule |= r"\midrule" in plain or (r"\hline" in plain and seen)
            plain = _RULES.sub(" ", plain)
            if not text.strip():
                start = self._first + offset
            text += plain + " "
            if r"\\" in plain:
                row, _, text = text.rpartition(r"\\")
                seen = True
                own = _named(raw) if not raw.lstrip().startswith("%") else []
                yield start, row, own or (self._shared if behind_rule else [])

    def _judge(self, line: int, column: int, number: str, head: str, ids: list[str]) -> Cell:
        named = [run for run in self._runs if any(_is(run, each) for each in ids)]
        others = [run for run in self._runs if run not in named]
        of_task = [row for run in named for row in run.rows if _speaks_of(head, row)]
        wanted = of_task or [row for run in named for row in run.rows]
        if any(_fits(number, row) for row in wanted):
            return Cell(line, column, number, "ok")
        if not ids:
            return Cell(line, column, number, "unknown", "its row names no record")
        if not named:
            hint = f"it names {ids[0][:12]}, which is none of the given runs"
            return Cell(line, column, number, "stale", hint)
        if any(_fits(number, row) for run in others for row in run.rows):
            return Cell(line, column, number, "stale", "it is another run's value")
        if of_task:
            return Cell(line, column, number, "wrong", "should be " + _should(number, of_task))
        return Cell(line, column, number, "unknown", "no value of the records rounds to it")


def _padded(one: list[str], other: list[str]) -> list[str]:
    return one + [""] * (len(other) - len(one))


def _numbers(cell: str) -> list[str]:
    """The numbers of a cell that holds nothing but numbers, signs and emphasis."""
    plain = _MARKUP.sub(" ", cell)
    plain = re.sub(r"\\pm|±|\\%|\\,|\\;|[{}$()\[\]*~%]|\\(?:dagger|ddagger|ast)\b|\^", " ", plain)
    words = plain.replace("\u2212", "-").split()
    return [word.replace(",", "") for word in words] if all(map(_NUMBER.fullmatch, words)) else []


def _is(run: _Run, each: str) -> bool:
    return any(known.startswith(each) for known in run.ids)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\\textbf|\\textit|\\emph", "", text).lower())


def _speaks_of(head: str, row: Row) -> bool:
    """Whether a column's head names a row's task, and its metric where it names one."""
    words = {_plain(word) for word in re.split(r"[\s&{}]+", head)}
    if _plain(row.task) not in words:
        return False
    metrics = words - {_plain(row.task), ""}
    return not metrics or _plain(row.metric) in metrics or _plain(row.name) in metrics


def _rounded(value: float, digits: int, how: str) -> Decimal:
    return Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), rounding=how)


def _scaled(row: Row) -> list[float]:
    found = [value for value in (row.value, row.stderr) if value is not None and value == value]
    return [value for value in found if abs(value) != float("inf")]


def _fits(number: str, row: Row) -> bool:
    digits = len(number.partition(".")[2])
    if not digits and abs(Decimal(number)) < 2:
        return False  # 0 and 1 would be nearly anything, rounded
    shown = Decimal(number)
    return any(
        shown == _rounded(value, digits + shift, how).scaleb(shift)
        for value in _scaled(row)
        for shift in (0, 2)
        for how in (ROUND_HALF_EVEN, ROUND_HALF_UP)
    )


def _should(number: str, of_task: list[Row]) -> str:
    """The task's values with the number's digits, on its scale."""
    digits = len(number.partition(".")[2])
    shift = 2 if abs(Decimal(number)) > 1 else 0
    found = [_rounded(row.value, digits + shift, ROUND_HALF_EVEN).scaleb(shift) for row in of_task]
    errors = [_rounded(row.stderr, digits + shift, ROUND_HALF_EVEN).scaleb(shift)
              for row in of_task if row.stderr is not None]  # fmt: skip
    told = " or ".join(dict.fromkeys(map(str, found)))
    return told + (f" (± {' or '.join(dict.fromkeys(map(str, errors)))})" if errors else "")
