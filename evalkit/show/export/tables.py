"""Scores as tables: CSV for programs, Markdown and LaTeX for papers.

CSV holds every score to the last digit. Markdown and LaTeX hold the suite's members, a model each,
rounded, and name the records, so that `evalkit check-table` and a reader can find them again. Text
from a record is escaped in each: no cell becomes a formula, a link or a command.
"""

import csv
import io
import math
from collections.abc import Sequence

from evalkit.record.reading import output, score_table
from evalkit.record.reading.score_table import Score
from evalkit.show.source import COLUMNS, Cell, Row

CSV = [name for name in COLUMNS if name != "depth"]


def to_csv(rows: Sequence[Row]) -> str:
    """Return all rows, values as the shortest decimals that give the same float again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV)
    for row in rows:
        cells = row.to_json()
        writer.writerow([_cell(cells[name]) for name in CSV])
    return text.getvalue()


def _cell(value: Cell) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return output.csv_cell(value)
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _keys(runs: Sequence[Sequence[Row]]) -> list[tuple[str, str]]:
    """Return (task, metric) of each score that any run has, in the order of their first."""
    return list(dict.fromkeys((row.score.task, row.score.name) for rows in runs for row in rows))


def _score(rows: Sequence[Row], key: tuple[str, str]) -> Score | None:
    scores = (row.score for row in rows)
    return next((score for score in scores if (score.task, score.name) == key), None)


def to_markdown(runs: Sequence[Sequence[Row]]) -> str:
    """Return a table of tasks by models: score, plus or minus its standard error."""
    names = [_markdown(_model(rows[0])) for rows in runs]
    lines = ["| task | metric | " + " | ".join(names) + " |",
             "|---|---|" + "--:|" * len(runs)]  # fmt: skip
    for key in _keys(runs):
        cells = [_plain(_score(rows, key)) for rows in runs]
        lines.append("| " + " | ".join([*map(_markdown, key), *cells]) + " |")
    lines.append("")
    for name, rows in zip(names, runs, strict=True):
        ids, partial = rows[0].record["ids"], rows[0].record["suite"]["partial"]
        note = ", **part of the suite only**" if partial else ""
        lines.append(f"- {name}: run `{ids['run']}`, answers `{ids['answers']}`{note}")
    return "\n".join(lines) + "\n"


def _model(row: Row) -> str:
    name = score_table.model_name(row.record)
    return f"{row.mark}: {name}" if row.mark else name


def _plain(score: Score | None) -> str:
    if score is None or not math.isfinite(score.value):
        return "-" if score is None else str(score.value)
    error = f" ± {score.stderr:.4f}" if score.stderr else ""  # 0: none is known
    return f"{score.value:.4f}{error}"


def _markdown(text: str) -> str:
    return output.markdown(text, special="\\`*_{}[]()#+!|<>~")


def to_latex(runs: Sequence[Sequence[Row]]) -> str:
    """Return a booktabs table of models by tasks, in per cent where a column's scores are shares.
    A comment at the end of each row names its record."""
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
        cells = [_scaled(_score(rows, key), percent=in_percent[key]) for key in keys]
        ids, partial = rows[0].record["ids"], rows[0].record["suite"]["partial"]
        note = f" % evalkit: {ids['run']} {ids['answers']}" + (" partial" if partial else "")
        lines.append(" & ".join([output.latex(_model(rows[0])), *cells]) + r" \\" + note)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _all_shares(runs: Sequence[Sequence[Row]], key: tuple[str, str]) -> bool:
    """Return whether a column may be in per cent: all its scores are shares."""
    scores = (_score(rows, key) for rows in runs)
    return all(score.share for score in scores if score and math.isfinite(score.value))


def _scaled(score: Score | None, *, percent: bool) -> str:
    if score is None or not math.isfinite(score.value):
        return "--"
    scale, digits = (100, 1) if percent else (1, 3)
    error = rf" $\pm$ {scale * score.stderr:.{digits}f}" if score.stderr else ""
    return f"{scale * score.value:.{digits}f}{error}"
