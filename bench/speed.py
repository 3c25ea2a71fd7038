"""`make bench`: lm-eval and evalkit on the same real documents, in turns, in one run.

    python -m bench.speed [--repetitions 3] [--minutes 25]

lm-eval's `hf` model answers at batch size 4 and at the best of four other sizes, evalkit in one
process with a thread a core and with a process a core, a thread each. The order is such that each
measurement of one side stands next to one of the other. With three repetitions or more, the tables
go into docs/speed.md and the figures into bench/figures/bench.json; with fewer they are printed.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import agreement, data, model, passes, report, sides, tables, workloads
from bench.process import Process
from evalkit.plan.requests.request import Request

OTHER_SIZES = (16, 8, 32, 1)
ENOUGH = 3  # repetitions to publish
PICKING = 0.45  # of the time may be spent on finding the best other size


@dataclass
class Measured:
    """What is known of a workload: seconds of each repetition by side, and the last answers."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    runs: dict[str, sides.Ran] = field(default_factory=dict)
    sizes: dict[int, float] = field(default_factory=dict)  # lm-eval's, each measured once
    best: int = OTHER_SIZES[0]

    def add(self, side: str, ran: sides.Ran) -> None:
        """Note a run."""
        self.seconds.setdefault(side, []).append(ran.seconds)
        self.runs[side] = ran


class Clock:
    """The time that is left of what the whole command may take."""

    def __init__(self, minutes: float) -> None:
        self._started, self._seconds = time.monotonic(), minutes * 60

    def share(self) -> float:
        """How much of it is gone."""
        return (time.monotonic() - self._started) / self._seconds

    def room(self, seconds: float) -> bool:
        """Whether something that takes so long still fits."""
        return time.monotonic() - self._started + seconds < self._seconds


class Bench:
    """The sides, each loaded once, and what they are asked."""

    def __init__(self, folder: str, cores: int, asked: dict[str, list[Request]]) -> None:
        self.asked = asked
        self.theirs = Process(sides.LmEval, folder, cores)
        self.threads = sides.started(folder, cores)
        self.workers = sides.Workers(folder, cores)
        self.found = {name: Measured() for name in asked}

    def warm_up(self) -> None:
        """Let every process do everything once, untimed."""
        for name, requests in self.asked.items():
            few = requests[: 2 if name.startswith("BBH") else 16]
            self.theirs.call("answer", few, 4)
            self.threads.call("answer", few)
            self.workers.answer(few)

    def pick(self, clock: Clock) -> None:
        """Find lm-eval's best other batch size for each workload, sizes in turn."""
        for size in OTHER_SIZES:
            for name, requests in self.asked.items():
                if self.found[name].sizes and clock.share() > PICKING:
                    continue
                say(f"{name}: lm-eval at batch size {size}")
                self.found[name].sizes[size] = self.theirs.call("answer", requests, size).seconds
        for one in self.found.values():
            one.best = min(one.sizes, key=lambda size: one.sizes[size])

    def repeat(self, number: int) -> None:
        """Every side once for every workload, theirs and ours in turns."""
        for name, requests in self.asked.items():
            one = self.found[name]
            say(f"{name}: repetition {number}")
            one.add("lm-eval", self.theirs.call("answer", requests, 4))
            one.add("threads", self.threads.call("answer", requests))
            one.add("lm-eval best", self.theirs.call("answer", requests, one.best))
            one.add("workers", self.workers.answer(requests))

    def stop(self) -> None:
        """End every process."""
        self.theirs.stop()
        self.threads.stop()
        self.workers.stop()

    def figures(self) -> dict[str, Any]:
        """Everything, once all repetitions are done; the profiles are taken now."""
        peaks = [self.threads.call("matmul_peak") for _ in range(2)]
        peak = {shape: max(one[shape] for one in peaks) for shape in peaks[0]}
        total = {
            side: sum(statistics.median(one.seconds[side]) for one in self.found.values())
            for side in ("threads", "workers")
        }
        return {
            "matmul_peak_flops": peak,
            "variant": min(total, key=lambda side: total[side]),
            "workloads": {name: self._figures(name) for name in self.asked},
        }

    def _figures(self, name: str) -> dict[str, Any]:
        one, requests = self.found[name], self.asked[name]
        theirs, ours = one.runs["lm-eval"], one.runs["threads"]
        say(f"{name}: profile")
        return {
            "requests": len(requests),
            "seconds": one.seconds,
            "sizes": one.sizes,
            "best": one.best,
            "agreement": {
                side: agreement.compare(one.runs[side].answers, theirs.answers).to_json()
                for side in ("threads", "workers")
            },
            "stages": {side: one.runs[side].stages for side in ("threads", "workers")},
            "peak_bytes": {side: ran.peak for side, ran in one.runs.items()},
            "needed": asdict(self.threads.call("needed", requests)),
            "passes": {
                "lm-eval": counted(theirs.passes, passes.keys_grown),
                "evalkit": counted(ours.passes, passes.keys_in_slots),
            },
            "matmul_seconds": self.threads.call("matmul_seconds", ours.passes),
            "profile": self.threads.call("profile", requests),
        }


def counted(made: list[passes.Pass], keys: Callable[[list[passes.Pass]], int]) -> dict[str, int]:
    """The forward passes of a run in numbers; `keys` counts those that its decoding moves."""
    return {
        "tokens": passes.num_tokens(made),
        "head": passes.num_head(made),
        "steps": len(passes.steps(made)),
        "keys": keys(made),
        "flops": passes.flops(made, model.CONFIG),
    }


def say(text: str) -> None:
    """Tell what is being done."""
    print(text, file=sys.stderr, flush=True)


def measure(repetitions: int, minutes: float) -> dict[str, Any]:
    """The figures of everything."""
    clock = Clock(minutes)
    cores = len(os.sched_getaffinity(0))
    with data.served():
        folder = str(model.folder())
        asked = workloads.requests()
    bench = Bench(folder, cores, asked)
    bench.warm_up()
    bench.pick(clock)
    done, last = 0, 0.0
    while done < repetitions and (not done or clock.room(last * 1.1)):
        started = time.monotonic()
        bench.repeat(done + 1)
        done, last = done + 1, time.monotonic() - started
    figures = {"machine": tables.machine(), "documents": data.source(), "repetitions": done}
    figures |= {"model": model.described(), **bench.figures()}
    bench.stop()
    return figures


def main() -> None:
    """Measure, print, and publish what was repeated enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=ENOUGH)
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything together")
    given = parser.parse_args()
    figures = measure(given.repetitions, given.minutes)
    text = report.speed(figures)
    print(text)
    if figures["repetitions"] >= ENOUGH:
        tables.publish("bench", text, figures)


if __name__ == "__main__":
    main()
