"""A process that imports what workers need, once, and from which workers on CPUs are forked.

Importing torch and transformers takes each process seconds of a core and hundreds of MB. The
template only imports: it computes nothing, so there are no threads of a computation that a fork
would lose. A worker for a GPU is never forked, since CUDA may not survive it.
"""

import gc
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from evalkit.base import stopping

COMMAND = (sys.executable, "-P", "-c", "from evalkit.cli import main; main()", "worker")
STREAMS = 3  # stdin, stdout, stderr of a worker; a fourth pipe is the template's, on how it ends
DIED = 1 << 10  # what a worker is said to return whose template can't tell any more
DESCRIPTORS = 1 << 13  # of this process: four for each of as many workers as a host has cores


class Forked:
    """A worker's process, with the part of `subprocess.Popen` that its parent uses."""

    def __init__(
        self, template: "Template", stdin: int, stdout: int, stderr: int, status: int
    ) -> None:
        self._template = template
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb", 0)
        self.stderr = os.fdopen(stderr, "rb", 0)
        self._status = status  # first its process number, then what it returned, a line each
        self._lines = b""
        self._is_killed = False

    def kill(self) -> None:
        """End it at once. Where the template still imports, which may take minutes from a slow
        disk, that one is ended: nothing is forked from it any more."""
        self._is_killed = True
        os.set_blocking(self._status, False)
        with suppress(BlockingIOError):
            self._read()
        os.set_blocking(self._status, True)
        self._strike()
        if not self._template.is_up:
            self._template.kill()

    def wait(self) -> int:
        """Wait for its end; what it returned, negative for a signal."""
        while self._read():
            self._strike()
        os.close(self._status)
        _, _, returned = self._lines.partition(b"\n")
        return int(returned or DIED)

    def _read(self) -> bool:
        data = os.read(self._status, 1 << 10)
        self._lines += data
        self._template.is_up |= bool(data)
        return bool(data)

    def _strike(self) -> None:
        if self._is_killed and self._lines.count(b"\n") == 1:
            with suppress(ProcessLookupError):
                os.kill(int(self._lines), signal.SIGKILL)


class Template:
    """The template as the parent of all workers has it. `is_up`: whether it has forked a worker.
    Raises OSError where it can't be started."""

    def __init__(self, environment: dict[str, str]) -> None:
        _allow_descriptors()
        self.is_up = False
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*COMMAND, "--template", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=environment,
            )  # fmt: skip

    def fork(self) -> Forked:
        """A new worker, once the template has imported everything; OSError where it is dead."""
        ours, theirs = [], []
        try:
            for number in range(STREAMS + 1):
                read, write = os.pipe()
                ours.append(read if number else write)
                theirs.append(write if number else read)
            socket.send_fds(self._link, [b"fork"], theirs)
        except OSError:
            for end in ours:
                os.close(end)
            raise
        finally:
            for end in theirs:
                os.close(end)
        return Forked(self, *ours)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self) -> None:
        """End it; its workers have ended before."""
        self._link.close()
        # It counts what its workers took, and then ends by itself.
        late = threading.Timer(1.0 if self.is_up else 0.0, self._process.kill)
        late.start()
        self._process.wait()
        late.cancel()


def _allow_descriptors() -> None:
    """Let this process open as many files as workers need: many shells start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
                message, ends, _, _ = socket.recv_fds(parent, 16, STREAMS + 1)
                if not message:
                    selector.unregister(parent)
                    continue
                *streams, status = ends
                try:
                    number = os.fork()
                except OSError:  # too many processes: the parent sees the ends closed
                    streams.append(status)
                else:
                    if not number:
                        for end in (*living.values(), status):
                            os.close(end)
                        return streams
                    os.write(status, b"%d\n" % number)
                    living[number] = status
                for end in streams:
                    os.close(end)
            _tell_ended(living)
    return None


def _tell_ended(living: dict[int, int]) -> None:
    for number in list(living):
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            told = living.pop(number)
            with suppress(OSError):  # nobody may listen any more
                os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(told)
