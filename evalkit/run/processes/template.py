"""A process that imports what workers need, once, and from which workers on CPUs are forked.

Importing torch and transformers takes each process seconds of a core and hundreds of MB. The
template only imports: it computes nothing, so there are no threads of a computation that a fork
would lose. A worker for a GPU is never forked, since CUDA may not survive it.
"""

import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from evalkit.base import stopping

COMMAND = (sys.executable, "-P", "-c", "from evalkit.cli import main; main()", "worker")
STREAMS = 3  # stdin, stdout, stderr of a worker; a fourth pipe is the template's, on how it ends
DIED = -signal.SIGKILL  # what a worker is said to return whose template can't tell any more


class Forked:
    """A worker's process, with the part of `subprocess.Popen` that its parent uses."""

    def __init__(self, stdin: int, stdout: int, stderr: int, status: int) -> None:
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb", 0)
        self.stderr = os.fdopen(stderr, "rb", 0)
        self._status = status  # first its process number, then what it returned, a line each
        self._lines = b""
        self._is_killed = False

    def kill(self) -> None:
        """End it at once, or as soon as it is there."""
        self._is_killed = True
        os.set_blocking(self._status, False)
        with suppress(BlockingIOError):
            self._read()
        os.set_blocking(self._status, True)
        self._strike()

    def wait(self) -> int:
        """Wait for its end; what it returned, negative for a signal."""
        while self._read():
            self._strike()
        os.close(self._status)
        _, _, returned = self._lines.partition(b"\n")
        return int(returned or DIED)

    def _read(self) -> bool:
        """Read on; whether there may be more."""
        data = os.read(self._status, 1 << 10)
        self._lines += data
        return bool(data)

    def _strike(self) -> None:
        if self._is_killed and self._lines.count(b"\n") == 1:
            with suppress(ProcessLookupError):
                os.kill(int(self._lines), signal.SIGKILL)


class Template:
    """The template as the parent of all workers has it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*COMMAND, "--template", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=environment,
            )  # fmt: skip

    def fork(self) -> Forked:
        """A new worker, as soon as the template has imported everything; OSError where the template
        is dead."""
        stdin, *others = [os.pipe() for _ in range(STREAMS + 1)]
        theirs = [stdin[0], *(write for _, write in others)]
        ours = [stdin[1], *(read for read, _ in others)]
        try:
            socket.send_fds(self._link, [b"fork"], theirs)
        except OSError:
            for end in ours:
                os.close(end)
            raise
        finally:
            for end in theirs:
                os.close(end)
        return Forked(*ours)

    def end(self) -> None:
        """End it; its workers have ended before."""
        self._link.close()
        try:
            self._process.wait(1)  # it counts what its workers took
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def template(environment: dict[str, str], *, wanted: bool) -> Iterator[Template | None]:
    """A template until the block ends, if it is `wanted`."""
    made = Template(environment) if wanted else None
    try:
        yield made
    finally:
        if made:
            made.end()


def serve(link: int) -> None:
    """Import everything and fork a worker whenever the parent sends its streams over `link`, a
    socket's number. Returns in each worker, with these as its streams; the template itself exits
    once the parent has closed the link and its workers have ended."""
    stopping.told(lambda: None)  # a signal to all: workers stop as their parent says, and then this
    from evalkit import engine

    engine.import_all()
    import evalkit.run.processes.serving  # noqa: F401

    gc.collect()
    gc.freeze()  # or the collections of each worker would copy the pages that they share
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    with socket.socket(fileno=link) as parent:
        streams = _to_be_forked(parent, woken)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in (woken, wake):
        os.close(end)
    if streams is None:
        sys.exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def _to_be_forked(parent: socket.socket, woken: int) -> list[int] | None:
    """In a worker its streams; in the template None, once nothing is left to do."""
    living: dict[int, int] = {}  # pipes that are told how workers end, by process number
    with selectors.DefaultSelector() as selector:
        selector.register(woken, selectors.EVENT_READ)
        selector.register(parent, selectors.EVENT_READ)
        while living or parent in selector.get_map():
            for key, _ in selector.select():
                if key.fileobj is not parent:
                    with suppress(BlockingIOError):
                        os.read(woken, 1 << 10)
                    continue
                message, streams, _, _ = socket.recv_fds(parent, 16, STREAMS + 1)
                if not message:
                    selector.unregister(parent)
                    continue
                *streams, status = streams
                if not (number := os.fork()):
                    for end in (*living.values(), status):
                        os.close(end)
                    return streams
                for stream in streams:
                    os.close(stream)
                os.write(status, b"%d\n" % number)
                living[number] = status
            _tell_ended(living)
    return None


def _tell_ended(living: dict[int, int]) -> None:
    """Tell the parent how the workers ended that have ended."""
    for number in list(living):
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            told = living.pop(number)
            with suppress(OSError):  # nobody may listen any more
                os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(told)
