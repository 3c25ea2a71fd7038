"""The structured log of a run, and the progress that people see.

Each event is one JSON line in `events/<segment>.jsonl`. On a terminal a progress bar shows the
phase, the share that is done, tokens a second and the time left; without a terminal a JSON line on
stderr says the same at least every 30 s. Nothing here changes a result.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from evalkit.base import canon
from evalkit.base.errors import printable

NEEDED = ("environment", "segment.start")  # events without which answers make no record
QUIET_INTERVAL_S = 30.0  # how often a run without a terminal prints its progress


def now() -> str:
    """Return the time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Events:
    """The log of a run and its messages. Before the run has a folder, events are kept in memory."""

    def __init__(self, console: Console | None = None) -> None:
        width = None if sys.stderr.isatty() else 160  # a log has room for the longest names
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True, width=width)
        self._log: canon.Appender | None = None
        self.path: Path | None = None  # of the events file
        self._kept: list[dict[str, object]] = []

    def open(self, path: Path) -> None:
        """Open a run's events file and write the events that were kept."""
        self.close()
        self._log, self.path = canon.Appender(path), path
        for event in self._kept:
            self._log.append(event, sync=False)
        self._kept = []

    def close(self) -> None:
        """Close the events file, if one is open."""
        if self._log:
            self._log.close()
        self._log = self.path = None

    def log(self, event: str, **fields: object) -> None:
        """Write an event: its time, its name, its fields."""
        line = {"time": now(), "event": event, **fields}
        if self._log:
            self._log.append(line, sync=event in NEEDED)
        else:
            self._kept.append(line)

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        self.console.print("\n".join(map(printable, text.split("\n"))), markup=False)

    @contextmanager
    def phase(
        self, name: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator["Phase"]:
        """Show and log one phase of a run. `total` is its work in `unit`s, 0 where it is not known;
        `before` is the part that was done before the phase began."""
        phase = Phase(self, name, total, unit, before)
        self.log("phase.start", phase=name, total=total, unit=unit)
        with phase:
            yield phase
        self.log("phase.done", phase=name, seconds=round(phase.seconds, 3),
                 done=phase.done - before)  # fmt: skip


class Phase:
    """The progress of one phase. `advance` is cheap enough to be called for every batch."""

    def __init__(self, events: Events, name: str, total: int, unit: str, before: int = 0) -> None:
        self.events, self.name, self.total, self.unit = events, name, total, unit
        self.done = self._before = before
        self._started = time.monotonic()
        self._stopped: float | None = None
        self._over = threading.Event()
        self._progress: Progress | None = None
        self._bar = TaskID(0)

    @property
    def seconds(self) -> float:
        """The wall time of the phase so far, or of the whole phase once it is over."""
        return (self._stopped or time.monotonic()) - self._started

    def __enter__(self) -> "Phase":
        if self.events.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.events.console,
                transient=True,
            )
            self._progress.start()
            self._bar = self._progress.add_task(
                self.name, total=self.total or None, completed=self.done, rate=""
            )
        else:
            self._say_line()
            threading.Thread(target=self._say_now_and_then, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = time.monotonic()
        self._over.set()
        if self._progress:
            self._progress.stop()

    def advance(self, amount: int, note: str = "") -> None:
        """Count `amount` units as done."""
        self.done += amount
        rate = (self.done - self._before) / max(self.seconds, 1e-9)
        if self._progress:
            shown = f"{rate:,.0f} {self.unit}/s {note}"
            self._progress.update(self._bar, advance=amount, rate=shown)

    def _say_now_and_then(self) -> None:
        """Print the progress from a thread, so that a long batch does not silence a run."""
        while not self._over.wait(QUIET_INTERVAL_S):
            self._say_line()

    def _say_line(self) -> None:
        rate = (self.done - self._before) / max(self.seconds, 1e-9)
        left = (self.total - self.done) / rate if rate and self.total else None
        status = {
            "time": now(),
            "phase": self.name,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "per_second": round(rate, 1),
            "seconds_left": round(left) if left is not None else None,
        }
        print(canon.dumps(status), file=sys.stderr, flush=True)
