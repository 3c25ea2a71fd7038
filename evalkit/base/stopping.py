"""The signals that end a run: SIGINT, SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP (the terminal is
gone).

They all mean the same. Where nothing much is lost by it they end the process at once, as
KeyboardInterrupt; while batches are computed they are `deferred`, so that the one in hand can be
kept if it is done within a grace. A signal that was ignored when the process started (nohup, a
background job) stays ignored.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_S = 20.0  # that batches in hand get unless the user says otherwise
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def _set(handler: Callable[..., Any]) -> dict[int, Any]:
    """Let the signals call `handler`; what they called before."""
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
    """Let every signal only call `notice`, for good: in a worker, whose parent decides."""
    _set(lambda *_: notice())


class Stop:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """KeyboardInterrupt if it was."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def deferred(grace_s: float, notice: Callable[[], None]) -> Iterator[Stop]:
    """Within the block the first signal only marks `Stop`, and `notice` is called; the block is to
    end by itself soon. KeyboardInterrupt comes after `grace_s` seconds, and on a second SIGINT."""
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
