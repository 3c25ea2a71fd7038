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

from evalkit.export.rows import Row

COLUMNS = [field.name for field in fields(Row) if field.name != "depth"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


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
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value  # a spreadsheet would run it
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _keys(runs: Sequence[Sequence[Row]]) -> list[tuple[str, str]]:
    """(task, metric) of every row of any run, in the order of their first."""
    return list(dict.fromkeys((row.task, row.name) for rows in runs for row in rows))


def _found(rows: Sequence[Row], key: tuple[str, str]) -> Row | None:
    return next((row for row in rows if (row.task, row.name) == key), None)


def to_markdown(runs: Sequence[Sequence[Row]]) -> str:
    """A table of tasks by models: score, plus or minus its standard error."""
    names = [_markdown(rows[0].model) for rows in runs]
    lines = ["| task | metric | " + " | ".join(names) + " |",
             "|---|---|" + "--:|" * len(runs)]  # fmt: skip
    for key in _keys(runs):
        cells = [_score(_found(rows, key), 4) for rows in runs]
        lines.append("| " + " | ".join([*map(_markdown, key), *cells]) + " |")
    named = [f"- {name}: run `{rows[0].run}`, answers `{rows[0].answers}`{_partial(rows)}"
             for name, rows in zip(names, runs, strict=True)]  # fmt: skip
    return "\n".join([*lines, "", *named]) + "\n"


def _partial(rows: Sequence[Row]) -> str:
    return ", **part of the suite only**" if rows[0].partial else ""


def _score(row: Row | None, digits: int) -> str:
    if row is None or not math.isfinite(row.value):
        return "-" if row is None else str(row.value)
    error = "" if row.stderr is None else f" ± {row.stderr:.{digits}f}"
    return f"{row.value:.{digits}f}{error}"


def _markdown(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return "".join("\\" + c if c in "\\`*_{}[]()#+!|<>~" else c for c in plain)


def to_latex(runs: Sequence[Sequence[Row]]) -> str:
    """A booktabs table of models by tasks, in per cent where a score is a share; the records stand
    in comments, one at the end of each row."""
    keys = _keys(runs)
    head = " & ".join([r"Model", *(_latex(task) for task, _ in keys)])
    below = " & ".join(["", *(_latex(metric) for _, metric in keys)])
    lines = [
        "% Made by evalkit; `evalkit check-table THIS.tex RUN ...` checks every number.",
        r"\begin{tabular}{l" + "r" * len(keys) + "}",
        r"\toprule",
        head + r" \\",
        below + r" \\",
        r"\midrule",
    ]
    for rows in runs:
        cells = [_percent(_found(rows, key)) for key in keys]
        ids = f" % evalkit: {rows[0].run} {rows[0].answers}"
        partial = " partial" if rows[0].partial else ""
        lines.append(" & ".join([_latex(rows[0].model), *cells]) + r" \\" + ids + partial)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _percent(row: Row | None) -> str:
    if row is None or not math.isfinite(row.value):
        return "--"
    scale = 100 if 0 <= row.value <= 1 and row.higher_is_better else 1
    digits = 1 if scale == 100 else 3
    error = "" if row.stderr is None else rf" $\pm$ {scale * row.stderr:.{digits}f}"
    return f"{scale * row.value:.{digits}f}{error}"


def _latex(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return "".join(_LATEX.get(c, c) for c in plain)
