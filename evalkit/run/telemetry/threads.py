"""Threads that nobody waits for long: work that may hang is done by them, never by the run."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from evalkit.base.errors import EvalkitError

T = TypeVar("T")


def start(work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Start a daemon thread; EvalkitError where the machine allows this process no more."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise EvalkitError(str(error)) from None
    return thread


class Patience:
    """Asks `what`, which may hang, one question at a time, each in a thread of its own. Nobody
    waits much longer than the patience that a question comes with, and while one hangs the next
    ones are refused at once. `failure` is the class of what `what` raises."""

    def __init__(self, what: str, failure: type[Exception]) -> None:
        self._what, self._failure = what, failure
        self._busy = threading.Lock()
        self._hangs = False

    def ask(self, question: Callable[[], T], patience_s: float) -> T:
        """The answer; EvalkitError where none comes in time (twice that where others ask too)."""
        if not self._busy.acquire(timeout=0 if self._hangs else patience_s):
            raise self._silent()
        answer: Future[T] = Future()
        try:
            start(self._answer, question, answer)
        except EvalkitError:
            self._busy.release()
            raise
        try:
            return answer.result(patience_s)
        except TimeoutError:
            raise self._silent() from None
        except self._failure as error:
            raise EvalkitError(f"{self._what} fails: {error}") from None

    def _silent(self) -> EvalkitError:
        self._hangs = True
        return EvalkitError(f"{self._what} does not answer")

    def _answer(self, question: Callable[[], T], answer: "Future[T]") -> None:
        """A thread's work; it gives the lock back, however late, so that others may ask again."""
        try:
            answer.set_result(question())
        except (self._failure, EvalkitError) as error:
            answer.set_exception(error)
        finally:
            self._hangs = False
            self._busy.release()
