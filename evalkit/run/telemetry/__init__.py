"""What the machine did meanwhile: load, power, heat and memory, and the energy of a phase.

A `Meter` reads /proc, /sys and NVML; `Telemetry` writes samples to `telemetry/<segment>.jsonl` from
a thread. Nothing that fails or hangs in them is raised into the run or holds it up. Values are the
whole machine's or GPU's, whoever else works there; what no meter tells is None.
"""

import threading
import time
import weakref
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from evalkit.base import canon, events
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.base.machine.types import Unknown
from evalkit.run.telemetry.gpu import Gpus, GpuSample
from evalkit.run.telemetry.host import Cpu, memory
from evalkit.run.telemetry.threads import start

SHARE = 0.01  # of the time, at most, may go into sampling
LEAVE_S = 0.3  # how long the end of a run waits for the last sample
COUNT_S = 20.0  # how often the energy counters are read, whether or not anyone asks

Joules = dict[str, float | None]
Energy = dict[str, float | Unknown]  # joules by part


class Sample(TypedDict):
    """A line of telemetry/<segment>.jsonl: what the meters show at a time."""

    time: str
    cpu: dict[str, float | None]
    memory: dict[str, int | None]
    gpus: list[GpuSample]


class Meter:
    """A machine's meters, as far as there are any and we may read them. Never raises when made.
    `missing` says for `cpu` and `gpu` why energy is or was not told. `root` is where /proc and /sys
    are."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.missing: dict[str, str] = {}
        self._root = root
        self._cpu = Cpu(root)
        self._gpus = Gpus()
        if any(counter is not None for counter in self.joules().values()):
            with suppress(EvalkitError):  # without it a long pause is unknown, not wrong
                start(_keep_counting, weakref.ref(self))

    def sample(self) -> Sample:
        """What the meters show now; for one thread, as loads are those since the last sample.
        Raises EvalkitError where the NVIDIA driver fails or hangs."""
        return {
            "time": events.now(),
            "cpu": self._cpu.sample(),
            "memory": memory(self._root),
            "gpus": self._gpus.sample(),
        }

    def joules(self) -> Joules:
        """Energy of `cpu` and `gpu` since the Meter was made; None where `missing` says why."""
        found: Joules = {}
        for part, counter in (("cpu", self._cpu.joules), ("gpu", self._gpus.joules)):
            try:
                found[part] = counter()
            except EvalkitError as error:
                found[part], self.missing[part] = None, error.what
        return found


def _keep_counting(held: "weakref.ref[Meter]") -> None:
    """A thread's work while a Meter is in use: counters overflow, and power has to be summed up."""
    while True:
        time.sleep(COUNT_S)
        meter = held()
        if meter is None:
            return
        meter.joules()
        del meter  # or it would be in use for as long as we sleep


def energy(before: Joules, after: Joules, missing: dict[str, str]) -> Energy:
    """Return the joules between two readings, or why they are unknown. `before` and `after` are a
    Meter's `joules()`, `missing` is its `missing` after both."""
    spent: Energy = {}
    for part, first in before.items():
        last = after[part]
        if first is None or last is None:
            spent[part] = stamp.unknown(missing.get(part, "its meter was not read in time"))
        elif last < first:  # a driver that was loaded again, a laptop that slept
            spent[part] = stamp.unknown("its meter was set back meanwhile")
        else:
            spent[part] = round(last - first, 3)
    return spent


@cache
def meter() -> Meter:
    """This process's meter."""
    return Meter()


class Span:
    """Measures a stretch of time, which starts now."""

    def __init__(self) -> None:
        self._started, self._before = time.monotonic(), meter().joules()

    def taken(self, peak_memory_bytes: int | None = None) -> dict[str, Any]:
        """Return what it took so far. The peak is that of this process, unless it is given: where
        other processes worked."""
        after = meter().joules()
        return {
            "seconds": time.monotonic() - self._started,
            "peak_memory_bytes": peak_memory_bytes or stamp.peak_memory_bytes(),
            "energy_joules": energy(self._before, after, meter().missing),
        }


class Telemetry:
    """Appends a meter's samples to a file while its block runs: at the start, at the end and every
    `interval_s` seconds, or more seldom so that sampling takes under 1% of the time. The first
    failure ends it, and `stopped_because` says why."""

    def __init__(self, path: Path, meter: Meter, interval_s: float = 10.0) -> None:
        self.stopped_because: str | None = None
        self._path, self._meter, self._interval_s = path, meter, interval_s
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._left = False
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Telemetry":
        try:
            self.thread = start(self._work)
        except EvalkitError as error:
            self.stopped_because = error.what
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self.thread:
            return
        self.thread.join(LEAVE_S)
        # The record digests the file next: a thread that hangs must not add to it later.
        locked = self._writing.acquire(timeout=LEAVE_S / 3)
        self._left = True
        if locked:
            self._writing.release()
        if self.thread.is_alive():
            self.stopped_because = "the last sample took too long"

    def _work(self) -> None:
        """The thread's work; the file is opened here as well, for a disk can hang too."""
        try:
            with closing(canon.Appender(self._path)) as log:
                while not self._over.wait(self._write_sample(log)):
                    pass
                self._write_sample(log)
        except EvalkitError as error:
            self.stopped_because = error.what
        except OSError as error:
            self.stopped_because = str(error)

    def _write_sample(self, log: canon.Appender) -> float:
        """Take and write a sample; how many seconds to wait before the next."""
        began = time.monotonic()
        line = self._meter.sample()
        with self._writing:
            if not self._left:
                log.append(line, sync=False)
        return max(self._interval_s, (time.monotonic() - began) / SHARE)
