"""Evaluates with one seed or several, and prints what came of it.

For several seeds it prints each score's mean over them and how far they lie apart, beside the
standard error, which says how far another draw of documents would move the score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.base import statistics
from evalkit.base.events import Events
from evalkit.record.reading import score_table
from evalkit.record.reading.identity import read_record
from evalkit.record.reading.score_table import Score
from evalkit.record.types import Record
from evalkit.run import evaluate
from evalkit.run.preparing.prepare import Options
from evalkit.show import summary


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The runs' folders, in the order of their seeds, and the highest of their exit codes."""

    folders: tuple[Path, ...]
    code: int


@dataclass(frozen=True, slots=True)
class Spread:
    """A score over several seeds: its value for each, their mean and sample standard deviation, and
    the mean standard error (None where a run has none)."""

    task: str
    metric: str
    scores: list[float]
    mean: float
    spread: float
    stderr: float | None


def evaluate_all(
    options: Options, seeds: Sequence[int], argv: Sequence[str], *,
    workers: int | None, grace_s: float, seal: Callable[[Path], None] | None,
) -> Evaluated:  # fmt: skip
    """Evaluate once, or once with each of the seeds, and print the scores."""
    folders, code = [], 0
    for variant in [replace(options, seed=seed) for seed in seeds] or [options]:
        events = Events()
        folder = evaluate.evaluate(
            variant, events, argv, workers=workers, grace_s=grace_s, seal=seal
        )
        folders.append(folder)
        code = max(code, summary.show(folder, events.console))
    if seeds:
        _show([read_record(folder) for folder in folders], seeds)
    return Evaluated(tuple(folders), code)


def spread(records: Sequence[Record]) -> list[Spread]:
    """Return how each score that all these runs of one suite have varies over them."""
    by_metric: dict[tuple[str, str], list[Score]] = {}
    for record in records:
        for score in score_table.scores(record):
            by_metric.setdefault((score.task, score.metric), []).append(score)
    return [_spread(scores) for scores in by_metric.values() if len(scores) >= len(records)]


def _spread(scores: list[Score]) -> Spread:
    values = [score.value for score in scores]
    errors = [score.stderr for score in scores if score.stderr is not None]
    return Spread(
        scores[0].task, scores[0].name, values, statistics.mean(values),
        statistics.sample_stddev(values),
        statistics.mean(errors) if len(errors) == len(values) else None,
    )  # fmt: skip


def _show(records: Sequence[Record], seeds: Sequence[int]) -> None:
    console: Console = Events().console
    spreads = spread(records)
    title = f"over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("mean", "± over seeds", "± stderr", "lowest", "highest"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in spreads:
        table.add_row(
            escape(row.task), escape(row.metric), f"{row.mean:.4f}", f"{row.spread:.4f}",
            f"{row.stderr:.4f}" if row.stderr else "",
            f"{min(row.scores):.4f}", f"{max(row.scores):.4f}",
        )  # fmt: skip
    console.print(table)
    if all(row.spread == 0 for row in spreads):
        console.print(
            "no score moved: no text is sampled, and no worked example is drawn by a seed",
            markup=False,
        )
