"""A worker's process as its parent has it: started, told, listened to, ended."""

import json
import os
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import IO, Any

from evalkit.inputs.models.model import Model
from evalkit.inputs.types import RunInputs
from evalkit.run.preparing.engines import Place
from evalkit.run.processes import serving
from evalkit.run.processes.template import COMMAND, DIED, Forked, Template

HUGE_PAGES = "glibc.malloc.hugetlb=1"  # of the kernel: fewer addresses to look up in large weights
LAST_LINES = 20  # of what a worker says on stderr: what a dead one leaves
BLOCK = 1 << 16


def environment() -> dict[str, str]:
    """What a worker's process has in its environment. glibc reads its tunables at the start only;
    where there is another C library they mean nothing."""
    tunables = filter(None, (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES))
    return {**os.environ, "GLIBC_TUNABLES": ":".join(tunables)}


class Child:
    """A new process that runs `serving.serve`, forked from a template where there is one. It is
    given what to load by `load`."""

    def __init__(self, template: Template | None = None) -> None:
        self._process = _forked(template) or subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(),
        )  # fmt: skip
        self.place: Place | None = None
        self.probes = False
        self._buffer = b""
        self._said: deque[str] = deque(maxlen=LAST_LINES)
        for stream in (self.stdout, self.stderr):
            os.set_blocking(stream.fileno(), False)

    def load(self, place: Place, order: dict[str, Any]) -> None:
        """Let it load the weights, by a `serving.order`."""
        self.place, self.probes = place, bool(order["probes"])
        self.tell(**order)

    @property
    def stdout(self) -> IO[bytes]:
        """Where its messages come from."""
        assert self._process.stdout is not None, "a pipe"
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """Where its libraries write."""
        assert self._process.stderr is not None, "a pipe"
        return self._process.stderr

    def tell(self, **message: Any) -> None:
        """Send it a message; that it is dead shows elsewhere."""
        assert self._process.stdin is not None, "a pipe"
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> list[dict[str, Any]] | None:
        """What it has said since the last call; None once it has ended and all is read."""
        data = _read(self.stdout)
        *lines, self._buffer = (self._buffer + (data or b"")).split(b"\n")
        return [json.loads(line) for line in lines] if data is not None else None

    def listen(self) -> bool:
        """Take in what stands on its stderr; whether there may come more."""
        data = _read(self.stderr)
        self._said.extend((data or b"").decode(errors="replace").splitlines())
        return data is not None

    @property
    def last_words(self) -> str:
        """The last line of its stderr."""
        return self._said[-1] if self._said else ""

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def ended(self) -> int:
        """Wait for its end and close its streams; what it returned, negative for a signal."""
        returned = self._process.wait()
        self.listen()
        for stream in (self._process.stdin, self.stdout, self.stderr):
            with suppress(OSError):  # what was not sent yet has nobody to go to
                assert stream is not None, "a pipe"
                stream.close()
        return returned


def started(
    inputs: RunInputs, model: Model, place: Place, max_length: int | None = None,
    *, probes: bool = False, spare: Child | None = None, template: Template | None = None,
) -> Child:  # fmt: skip
    """A worker that loads the weights, a new process or a `spare` one; on a CPU one that is forked
    from a `template`. `probes`: it need not wait to be told to check its level. `inputs`: a run's,
    `max_length`: of its plan, for an engine of lm-eval's."""
    one = spare or Child(template if place.device == "cpu" else None)
    one.load(place, serving.order(inputs, model, place, max_length=max_length, probes=probes))
    return one


def template() -> Template | None:
    """What workers on CPUs are forked from, to save time; None where no fork is to be had."""
    try:
        return Template(environment()) if sys.platform == "linux" else None
    except OSError:
        return None


def spare() -> Child:
    """A worker's process that only imports what our own engine needs: it knows of no model yet."""
    one = Child()
    one.tell(imports=True)
    return one


def _forked(template: Template | None) -> Forked | None:
    """A worker that is forked from a template; None where there is none that lives."""
    try:
        return template.fork() if template else None
    except OSError:
        return None


def _read(stream: IO[bytes]) -> bytes | None:
    """What is there to read, b"" where there is nothing yet, None at the end."""
    try:
        return os.read(stream.fileno(), BLOCK) or None
    except BlockingIOError:
        return b""


def how(returned: int) -> str:
    """How a process ended, in words."""
    if returned == DIED:
        return "with the process that it was forked from"
    if returned == -9:
        return "killed, perhaps for lack of memory"
    return f"signal {-returned}" if returned < 0 else f"exit code {returned}"
