"""Evaluating with one seed or several, and showing what came of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.base.events import Events
from evalkit.run import evaluate
from evalkit.run.preparing.prepare import Options
from evalkit.show import summary
from evalkit.show.scores import seeds as spreads


@dataclass(frozen=True, slots=True)
class Shown:
    """The runs' folders, in the order of their seeds, and the exit code of the worst of them."""

    folders: tuple[Path, ...]
    code: int


def each(
    options: Options, seeds: Sequence[int], argv: Sequence[str], *,
    workers: int | None, grace_s: float, seal: Callable[[Path], None] | None,
) -> Shown:  # fmt: skip
    """Evaluate as `options` say, or once with each of the seeds, and print the scores; of several
    seeds also how far they lie apart. `seal`: as `evaluate.evaluate` has it."""
    folders, code = [], 0
    asked = [replace(options, seed=seed) for seed in seeds] or [options]
    for one in asked:
        events = Events()
        folders.append(
            evaluate.evaluate(one, events, argv, workers=workers, grace_s=grace_s, seal=seal)
        )
        code = max(code, summary.show(folders[-1], events.console))
    if seeds:
        spreads.show(folders, seeds, Events().console)
    return Shown(tuple(folders), code)
