"""Runs work on a stranger's files in a child process, with limits of time and memory.

evalkit's parsers take linear time and count what they hold; these limits are for cases that nobody
thought of. The child may use 60 seconds of processor time and 2 GiB of memory, and as much again
for each 64 MiB of input after the first. An error names the limit that was exceeded. Processor time
is counted, so that a busy machine does not make a file BROKEN. Other systems than Linux have no
limits.
"""

import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from evalkit.base.errors import EvalkitError, Exit

PORTION = 64 << 20  # bytes of input for which the limits hold once
SECONDS = 60  # of processor time for each portion
MEMORY = 2 << 30  # bytes for each portion
_LOOK_S = 0.05  # how often the parent looks at the child's memory
_MAX_ENTRIES = 100_000

Made = TypeVar("Made")


class OverLimit(EvalkitError):
    """Reading a file exceeded a limit, which `limit` names."""

    def __init__(self, limit: str) -> None:
        self.limit = limit
        super().__init__(f"BROKEN: over the limit of {limit} for its size", code=Exit.FAILED)

    def __reduce__(self) -> tuple[type["OverLimit"], tuple[str]]:
        return OverLimit, (self.limit,)


class Crashed(EvalkitError):
    """A bug in evalkit ended the child; `trace` is its traceback."""

    def __init__(self, trace: str) -> None:
        self.trace = trace
        super().__init__(f"a bug in evalkit: {trace.strip().splitlines()[-1]}", code=Exit.BUG)

    def __reduce__(self) -> tuple[type["Crashed"], tuple[str]]:
        return Crashed, (self.trace,)


def run(work: Callable[[], Made], paths: Iterable[Path]) -> Made:
    """Call `work` in a child process and return its result, which must be picklable. `paths` are
    the files that it reads.

    Raises EvalkitError (1) where it exceeds a limit, and the EvalkitError that the work raises.
    """
    if sys.platform != "linux":
        return work()
    portions = max(1, -(-sum(map(_size, paths)) // PORTION))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(work, theirs, SECONDS * portions))
    child.start()
    theirs.close()
    try:
        made: Any = _awaited(ours, child.pid or 0, MEMORY * portions)
        child.join()
        if isinstance(made, EvalkitError):
            raise made
        if made is not None:
            result: Made = made[0]
            return result
    finally:
        ours.close()
        if child.is_alive():
            child.kill()
        child.join()
    if child.exitcode == -signal.SIGXCPU:
        raise OverLimit(f"{SECONDS * portions:,} seconds of processor time")
    raise EvalkitError(f"the process that reads it ended by itself ({child.exitcode})",
                       fix="was it killed for its memory?", code=Exit.MISSING)  # fmt: skip


def _work(work: Callable[[], object], answer: Connection, seconds: int) -> None:
    """Limit the child's processor time, do the work and send one answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, most))
    try:
        made: object = (work(),)
    except EvalkitError as error:
        made = error
    except MemoryError:
        made = EvalkitError("this machine has too little memory to read it",
                            fix="free memory, or read it on a larger machine",
                            code=Exit.MISSING)  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception:  # sent to the parent, which raises it
        made = Crashed(traceback.format_exc())
    answer.send(made)
    answer.close()


def _awaited(answer: Connection, child: int, memory: int) -> Any:
    """Return the child's answer; None if it ends without one. Kill it if it exceeds its memory."""
    while not answer.poll(_LOOK_S):
        if _memory(child) > memory:
            os.kill(child, signal.SIGKILL)
            return OverLimit(f"{memory >> 30:,} GiB of memory")
    with suppress(EOFError):
        return answer.recv()
    return None


def _memory(child: int) -> int:
    """Return the bytes of a process's own memory, without what it shares with its parent."""
    with suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{child}/statm").read_text().split()
        return (int(words[1]) - int(words[2])) * resource.getpagesize()
    return 0


def _size(path: Path) -> int:
    """Return the bytes of the plain files at or below a path, without links."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    total = 0
    for count, each in enumerate(path.rglob("*")):
        if count > _MAX_ENTRIES:
            break
        if each.is_file() and not each.is_symlink():
            total += each.stat().st_size
    return total
