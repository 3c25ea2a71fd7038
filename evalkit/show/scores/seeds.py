"""A suite under several seeds: each score's mean over them, and how far they lie apart, beside the
standard error, which says how far another draw of documents would move it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.base import canon, statistics
from evalkit.record.reading.scores import score_table


def show(folders: Sequence[Path], seeds: Sequence[int], console: Console) -> None:
    """Print the table of runs that differ in their seeds alone."""
    records = [canon.read_json(folder / "record.json") for folder in folders]
    rows = spread(records)
    console.print(_table(rows, seeds))
    if all(row["spread"] == 0 for row in rows):
        console.print(
            "no score moved: no text is sampled, and no worked example is drawn by a seed",
            markup=False,
        )


def spread(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each score of runs of one suite: `scores` by seed, their `mean`, their standard deviation
    as `spread`, and the mean `stderr` (None where one has none)."""
    found: dict[tuple[str, str], list[score_table.Score]] = {}
    for record in records:
        for score in score_table.scores(record):
            found.setdefault((score.task, score.metric), []).append(score)
    rows = []
    for (task, _), scores in found.items():
        if len(scores) < len(records):
            continue
        values = [score.value for score in scores]
        errors = [score.stderr for score in scores if score.stderr is not None]
        rows.append(
            {
                "task": task,
                "metric": scores[0].name,
                "scores": values,
                "mean": statistics.mean(values),
                "spread": statistics.sample_stddev(values),
                "stderr": statistics.mean(errors) if len(errors) == len(values) else None,
            }
        )
    return rows


def _table(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> Table:
    title = f"over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("mean", "± over seeds", "± stderr", "lowest", "highest"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        stderr = row["stderr"]
        table.add_row(
            escape(row["task"]), escape(row["metric"]), f"{row['mean']:.4f}",
            f"{row['spread']:.4f}", f"{stderr:.4f}" if stderr else "",
            f"{min(row['scores']):.4f}", f"{max(row['scores']):.4f}",
        )  # fmt: skip
    return table
