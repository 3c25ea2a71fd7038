"""A lock on a folder, for one process at a time: a file that names its owner, who rewrites it
again and again (a beat).

The file is created exclusively and written in place, so it works where flock does not. Where the
owner's process can be seen (same boot of the same host, same container), it is known at once
whether the owner is alive. Elsewhere the file is watched: if it does not change for `STALE_S` of
this host's monotonic clock, its owner is dead. So no two clocks have to agree.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

NAME = ".lock"
LAUNCHER = "EVALKIT_LAUNCHER"  # in a container: the process outside that started it
BEAT_S = 10.0
# NFS may show the content of a minute ago, unless the file is opened again, as is done here.
STALE_S = 60.0
_BEAT_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a lock. `seen_from` is where the process can be seen: a boot of a host
    and a namespace of processes. `started` is the kernel's time of its start, since process numbers
    are used again. Both are empty where the kernel does not tell. `mark` is random."""

    host: str = "unknown"
    pid: int = 0
    seen_from: str = ""
    started: str = ""
    mark: str = ""

    def to_json(self) -> dict[str, str | int]:
        """Return the owner as the lock file holds it."""
        return {name: getattr(self, name) for name in self.__slots__}

    def is_dead(self) -> bool | None:
        """Return whether its process has ended; None where that can't be seen from here."""
        if not self.seen_from or self.seen_from != _seen_from():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # alive, and another user's
        return bool(self.started) and _started(self.pid) != self.started


class Lease:
    """A lock that this process holds. A thread rewrites it at every beat."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._over, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise EvalkitError (75) where the lock was lost: this process stood still for so long
        that another one took it for dead."""
        if self._lost.is_set():
            raise EvalkitError(
                "another process has taken this over, because this one stood still",
                where=str(self._path.parent),
                fix="what is done is kept; look whether the other one still works on it",
                code=Exit.STOPPED,
            )

    def release(self) -> None:
        """Remove the lock."""
        self._over.set()
        self._thread.join()
        if not self._lost.is_set() and _read(self._path)[0] == self._owner:
            with suppress(OSError):  # the folder is read-only now; the lock goes stale
                self._path.unlink()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_S):
            count += 1
            try:
                if _read(self._path)[0] != self._owner:
                    self._lost.set()
                    return
                _write(self._path, os.O_WRONLY, self._owner, count)
            except OSError:
                pass  # the file server may be back at the next beat


@contextmanager
def held(
    folder: Path, name: str = NAME, *, wait_s: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Lease]:  # fmt: skip
    """Hold a folder's lock until the end of the block.

    Wait up to `wait_s` seconds for a live owner. An owner that can't be seen from here is always
    watched for up to `STALE_S`, which `say` announces, and its lock is taken over if it does not
    beat. Raises EvalkitError (3), which names the owner, where the lock is held, and where the
    folder can't be written.
    """
    path = folder / name
    owner = this_process(secrets.token_hex(8))
    deadline = time.monotonic() + wait_s
    watched = _Watched(path, say)
    while not _taken(path, owner):
        if watched.is_dead():
            _take_away(path, watched.owner)
        elif time.monotonic() >= deadline and watched.is_alive():
            raise _locked(path, watched.owner)
        else:
            watched.wait()
    lease = Lease(path, owner)
    try:
        yield lease
    finally:
        lease.release()


class _Watched:
    """A lock of another process, which is read again and again."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self._say = path, say
        self.owner = Owner()
        self._text: bytes | None = None
        self._beats = 0
        self._announced = False
        self._since = time.monotonic()  # of the last change

    def is_dead(self) -> bool:
        """Read the lock. Return whether its owner has ended, or has not beaten for too long."""
        owner, text = _read(self.path)
        if text != self._text:
            same = self._text is not None and owner == self.owner
            self._beats = self._beats + 1 if same else 0
            self.owner, self._text, self._since = owner, text, time.monotonic()
        dead = owner.is_dead()
        return dead if dead is not None else time.monotonic() - self._since > STALE_S

    def is_alive(self) -> bool:
        """Return whether its owner is known to live: its process is seen, or the lock beats."""
        return self.owner.is_dead() is False or self._beats > 0

    def wait(self) -> None:
        """Wait until the next look: longer, and with a message, where the owner can't be seen."""
        if self.owner.is_dead() is False:
            time.sleep(0.05)
            return
        if not self._announced:
            self._announced = True
            who = f"process {self.owner.pid} on {self.owner.host}" if self.owner.pid else "somebody"
            self._say(f"{who} holds {self.path}: seeing for {STALE_S:.0f} s whether it lives")
        time.sleep(min(0.5, STALE_S / 10))


def is_held(folder: Path) -> bool:
    """Return whether a lock is there whose owner is not known to be dead."""
    path = folder / NAME
    return path.exists() and not _read(path)[0].is_dead()


def launched() -> str:
    """Return this process as `LAUNCHER` names it to a container that it starts and that ends with
    it. In the container a process number means nothing to other hosts and containers."""
    return f"{os.getpid()}:{_started(os.getpid())}:{_seen_from()}"


def this_process(mark: str = "") -> Owner:
    """Return this process as an owner; in a container, the process outside that started it."""
    pid, started, seen_from = [*os.environ.get(LAUNCHER, "").split(":", 2), "", "", ""][:3]
    if pid.isdecimal():
        return Owner(socket.gethostname(), int(pid), seen_from, started, mark)
    return Owner(socket.gethostname(), os.getpid(), _seen_from(), _started(os.getpid()), mark)


def _seen_from() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: the host's name identifies its processes
        return "" if Path("/proc/self").exists() else socket.gethostname()


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty where this is not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(path: Path) -> tuple[Owner, bytes]:
    """Return a lock's owner and its whole content; an empty owner where it can't be read."""
    text = b""
    try:
        text = path.read_bytes()
        stored = canon.loads(text)["owner"]
        fields: Any = {name: type(empty)(stored[name]) for name, empty in _FIELDS.items()}
        return Owner(**fields), text
    except (OSError, ValueError, KeyError, TypeError):
        return Owner(), text


_FIELDS = Owner().to_json()


def _write(path: Path, flags: int, owner: Owner, count: int) -> None:
    """Write a lock in place. Its length never changes, so a beat can't fill a disk."""
    text = canon.dumps({"beat": f"{count:0{_BEAT_DIGITS}}", "owner": owner.to_json()})
    handle = os.open(path, flags, 0o600)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _taken(path: Path, owner: Owner) -> bool:
    try:
        _write(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, owner, 0)
    except FileExistsError:
        return False
    except OSError as error:
        if _read(path)[0] in (Owner(), owner):  # it was created, and then the disk was full
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise EvalkitError(
            f"the folder can't be written: {error.strerror}",
            where=str(path.parent),
            fix="free space or mend its permissions, or choose another --out",
            code=Exit.MISSING,
        ) from None
    return True


def _locked(path: Path, owner: Owner) -> EvalkitError:
    return EvalkitError(
        f"process {owner.pid} on {owner.host} is already working here",
        where=str(path.parent),
        fix=f"wait for it, or remove {path.name} there if it is gone",
        code=Exit.MISSING,
    )


def _take_away(path: Path, owner: Owner) -> None:
    """Remove a dead owner's lock. If another process has locked meanwhile, put its lock back."""
    aside = canon.beside(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside)[0] != owner:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
