"""A side of a comparison in a process of its own: its threads, switches and memory are its alone.

What torch is told globally (threads, deterministic kernels) must not reach the other side, and a
process's peak memory can only be its own.
"""

import multiprocessing as mp
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Process:
    """An object that lives in a new process; `call` runs its methods there."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = mp.get_context("spawn")
        self.connection, inner = context.Pipe()
        self._process = context.Process(target=_serve, args=(inner, make, arguments), daemon=True)
        self._process.start()
        inner.close()

    def send(self, method: str, *arguments: Any) -> None:
        """Start a method; `receive` waits for what it returns."""
        self.connection.send((method, arguments))

    def receive(self) -> Any:
        """What the method that was started first returned."""
        ended, value = self.connection.recv()
        if ended != "returned":
            raise RuntimeError(f"in the other process:\n{value}")
        return value

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method and return what it does."""
        self.send(method, *arguments)
        return self.receive()

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.join()


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    made: Any = None
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            made = make(*arguments) if made is None else made
            connection.send(("returned", getattr(made, method)(*given)))
        except Exception:
            connection.send(("raised", traceback.format_exc()))
