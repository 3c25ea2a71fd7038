"""Scores as tables: CSV for programs, Markdown and LaTeX for papers.

CSV holds every score to the last digit. Markdown and LaTeX hold the suite's members, a model each,
rounded, and name the records, so that `evalkit check-table` and a reader can find them again. What
a record brings is escaped for each: no cell becomes a formula, a link or a command.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import fields

from evalkit.record.reading import output
from evalkit.show.scores.rows import Row

COLUMNS = [field.name for field in fields(Row) if field.name != "depth"]


def to_csv(rows: Sequence[Row]) -> str:
    """Every row, values as the shortest decimals that give the same float again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    return text.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return output.csv_cell(value)
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _keys(runs: Sequence[Sequence[Row]]) -> list[tuple[str, str]]:
    """(task, metric) of every row of any run, in the order of their first."""
    return list(dict.fromkeys((row.task, row.name) for rows in runs for row in rows))


def _found(rows: Sequence[Row], key: tuple[str, str]) -> Row | None:
    return next((row for row in rows if (row.task, row.name) == key), None)


def to_markdown(runs: Sequence[Sequence[Row]]) -> str:
    """A table of tasks by models: score, plus or minus its standard error."""
    names = [_markdown(_named(rows)) for rows in runs]
    lines = ["| task | metric | " + " | ".join(names) + " |",
             "|---|---|" + "--:|" * len(runs)]  # fmt: skip
    for key in _keys(runs):
        cells = [_score(_found(rows, key), 4) for rows in runs]
        lines.append("| " + " | ".join([*map(_markdown, key), *cells]) + " |")
    named = [f"- {name}: run `{rows[0].run}`, answers `{rows[0].answers}`{_partial(rows)}"
             for name, rows in zip(names, runs, strict=True)]  # fmt: skip
    return "\n".join([*lines, "", *named]) + "\n"


def _named(rows: Sequence[Row]) -> str:
    """A model's name, with the mark of a record that contradicts itself."""
    return f"{rows[0].mark}: {rows[0].model}" if rows[0].mark else rows[0].model


def _partial(rows: Sequence[Row]) -> str:
    return ", **part of the suite only**" if rows[0].partial else ""


def _score(row: Row | None, digits: int) -> str:
    if row is None or not math.isfinite(row.value):
        return "-" if row is None else str(row.value)
    error = f" ± {row.stderr:.{digits}f}" if row.stderr else ""  # 0: none is known
    return f"{row.value:.{digits}f}{error}"


def _markdown(text: str) -> str:
    return output.markdown(text, special="\\`*_{}[]()#+!|<>~")


def to_latex(runs: Sequence[Sequence[Row]]) -> str:
    """A booktabs table of models by tasks, in per cent where a column's scores are shares; the
    records stand in comments, one at the end of each row."""
    keys = _keys(runs)
    head = " & ".join([r"Model", *(output.latex(task) for task, _ in keys)])
    below = " & ".join(["", *(output.latex(metric) for _, metric in keys)])
    lines = [
        "% Made by evalkit; `evalkit check-table THIS.tex RUN ...` checks every number.",
        r"\begin{tabular}{l" + "r" * len(keys) + "}",
        r"\toprule",
        head + r" \\",
        below + r" \\",
        r"\midrule",
    ]
    in_percent = {key: _all_shares(runs, key) for key in keys}
    for rows in runs:
        cells = [_scaled(_found(rows, key), percent=in_percent[key]) for key in keys]
        ids = f" % evalkit: {rows[0].run} {rows[0].answers}"
        partial = " partial" if rows[0].partial else ""
        lines.append(" & ".join([output.latex(_named(rows)), *cells]) + r" \\" + ids + partial)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _all_shares(runs: Sequence[Sequence[Row]], key: tuple[str, str]) -> bool:
    """Whether a column may be in per cent: one scale for all that stands in it."""
    found = [row for rows in runs if (row := _found(rows, key)) and math.isfinite(row.value)]
    return all(row.share for row in found)


def _scaled(row: Row | None, *, percent: bool) -> str:
    if row is None or not math.isfinite(row.value):
        return "--"
    scale, digits = (100, 1) if percent else (1, 3)
    error = rf" $\pm$ {scale * row.stderr:.{digits}f}" if row.stderr else ""
    return f"{scale * row.value:.{digits}f}{error}"
