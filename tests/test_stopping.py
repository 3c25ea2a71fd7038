"""Signals: what they end at once, and what they let come to its end."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from evalkit.base import stopping


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signals' handlers, put back."""
    numbers = (*stopping.SIGNALS, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in stopping.SIGNALS:  # a test run in the background has some of them ignored
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_every_signal_ends_what_can_be_done_again(number: int) -> None:
    stopping.at_once()
    with pytest.raises(KeyboardInterrupt):
        send(number)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_deferred_signal_only_marks_that_it_came(number: int) -> None:
    told: list[str] = []
    with stopping.deferred(20.0, lambda: told.append("now")) as stop:
        assert not stop.asked
        stop.check()
        send(number)
        assert stop.asked and told == ["now"]
    with pytest.raises(KeyboardInterrupt):
        stop.check()


def test_the_second_interrupt_ends_it_at_once_and_a_second_termination_does_not() -> None:
    with pytest.raises(KeyboardInterrupt), stopping.deferred(20.0, lambda: None):
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        pytest.fail("it went on")


def test_what_is_not_done_within_the_grace_is_dropped() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopping.deferred(0.2, lambda: None):
        send(signal.SIGTERM)
        while time.monotonic() - started < 10:
            time.sleep(0.01)
        pytest.fail("it went on")
    assert time.monotonic() - started < 5


def test_no_grace_is_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stopping.deferred(0.0, lambda: None):
        send(signal.SIGTERM)
        pytest.fail("it went on")


def test_a_grace_that_was_not_needed_interrupts_nothing_later() -> None:
    with stopping.deferred(0.1, lambda: None):
        send(signal.SIGTERM)
    time.sleep(0.3)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """nohup, and a shell's background jobs."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopping.at_once()
    with stopping.deferred(20.0, lambda: None) as stop:
        send(signal.SIGHUP)
        assert not stop.asked
    send(signal.SIGHUP)
