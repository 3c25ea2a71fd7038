"""When devices compute, by their own word, and streams in which lanes do not wait for each other.

The host only hands work to a GPU, so its clock says nothing of when that is computed: an event in
the device's stream does. A CPU computes when it is called, so there the host's clock is right.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

Mark = Callable[[], float]  # the moment in seconds, asked for once the work is done


class Clock:
    """Marks moments in the work of devices, all on one scale: seconds of the monotonic clock."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._bases: dict[torch.device, tuple[float, Any]] = {}
        for device in dict.fromkeys(devices):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                self._bases[device] = (time.monotonic(), _event(device))

    def mark(self, device: torch.device) -> Mark:
        """The moment at which a device comes to what it is given from now on."""
        if device not in self._bases:
            now = time.monotonic()
            return lambda: now
        begin, base = self._bases[device]
        event = _event(device)

        def moment() -> float:
            event.synchronize()
            return begin + float(base.elapsed_time(event)) / 1000

        return moment


def _event(device: torch.device) -> Any:
    untyped: Any = torch.cuda
    event = untyped.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def streams(devices: Iterable[torch.device]) -> list[Any]:
    """A stream of its own on each GPU among the devices, behind all that was given to it so far."""
    found: list[Any] = []
    untyped: Any = torch.cuda
    for device in dict.fromkeys(devices):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            found.append(untyped.Stream(device))
    return found


@contextmanager
def within(own: Iterable[Any]) -> Iterator[None]:
    """Give what this thread gives to GPUs to these streams, until the end of the block."""
    with ExitStack() as stack:
        for stream in own:
            stack.enter_context(torch.cuda.stream(stream))
        yield
