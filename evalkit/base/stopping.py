"""The signals that end a run: SIGINT, SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP (the terminal has
closed).

All of them mean the same. Where little is lost, they end the process at once, as KeyboardInterrupt.
While batches are computed they are `deferred`, so that the current batch is kept if it ends within
a grace period. A signal that was ignored when the process started (nohup, a background job) stays
ignored.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_S = 20.0  # default for the current batches
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def _set(handler: Callable[..., Any]) -> dict[int, Any]:
    """Let the signals call `handler`, and return their former handlers."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    return before


def at_once() -> None:
    """Let every signal raise KeyboardInterrupt in the main thread."""
    main = os.getpid()

    def interrupt(number: int, _: Any) -> None:
        if os.getpid() != main:  # a child that inherited this, such as lm-eval's bootstrap pool
            os._exit(128 + number)
        raise KeyboardInterrupt

    _set(interrupt)


def told(notice: Callable[[], None]) -> None:
    """Let signals only call `notice` until the process ends: the parent of a worker decides."""
    _set(lambda *_: notice())


class Stop:
    """Whether a signal has asked the process to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if the process was asked to stop."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def deferred(grace_s: float, notice: Callable[[], None]) -> Iterator[Stop]:
    """Until the end of the block, let the first signal only mark `Stop` and call `notice`; the
    block should then end by itself. KeyboardInterrupt is raised after `grace_s` seconds, and on a
    second SIGINT."""
    stop = Stop()

    def handle(number: int, _: Any) -> None:
        if (stop.asked and number == signal.SIGINT) or grace_s <= 0:
            raise KeyboardInterrupt
        if not stop.asked:
            stop.asked = True
            signal.setitimer(signal.ITIMER_REAL, grace_s)
            notice()

    def over(*_: Any) -> None:
        raise KeyboardInterrupt

    before = _set(handle)
    alarm = signal.signal(signal.SIGALRM, over)
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for number, handler in before.items():
            signal.signal(number, handler)
