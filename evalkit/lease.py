"""One process works on a run: a lock file that names its owner.

Created exclusively, so it works where flock does not. A lock whose owner on this host is gone is
taken over; one of another host is only ever removed by a person.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evalkit import canon
from evalkit.errors import EvalkitError, Exit

NAME = ".lock"
UNSIGNED_S = 5.0  # how long a new lock may be without its owner's name


@contextmanager
def held(folder: Path, name: str = NAME, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder's lock for the block.

    Raises EvalkitError (3) naming the owner when another process still has it after `wait_s`
    seconds, or when the folder can't be written.
    """
    path = folder / name
    deadline = time.monotonic() + wait_s
    while not _take(path):
        if not _removed_if_stale(path):
            if time.monotonic() >= deadline:
                raise _locked(path)
            time.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path) -> bool:
    owner = canon.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.write(handle, owner.encode())
        except OSError:
            path.unlink()  # a lock without an owner would never be stale
            raise
        finally:
            os.close(handle)
    except FileExistsError:
        return False
    except OSError as error:
        raise EvalkitError(
            f"the folder can't be written: {error.strerror}",
            where=str(path.parent),
            fix="free space or mend its permissions, or choose another --out",
            code=Exit.MISSING,
        ) from None
    return True


def is_held(folder: Path, name: str = NAME) -> bool:
    """Whether a process works on a folder now: its lock is there, and not of a dead one here."""
    path = folder / name
    return path.exists() and not _is_dead(*_owner(path))


def _owner(path: Path) -> tuple[str, int]:
    try:
        owner = canon.loads(path.read_bytes())
        return str(owner["host"]), int(owner["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown", 0


def _locked(path: Path) -> EvalkitError:
    host, pid = _owner(path)
    return EvalkitError(
        f"process {pid} on {host} is already working here",
        where=str(path.parent),
        fix=f"wait for it, or remove {path.name} there if it is gone",
        code=Exit.MISSING,
    )


def _is_dead(host: str, pid: int) -> bool:
    """Whether a lock's owner was a process of this host that is no more."""
    if host != socket.gethostname() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # alive, and another user's
    return False


def _removed_if_stale(path: Path) -> bool:
    """Remove the lock of an owner that died on this host; whether it is gone now."""
    owner = _owner(path)
    unsigned = False
    if owner[1] <= 0:  # killed before it could say who it is, or another is just about to
        with suppress(FileNotFoundError):
            unsigned = time.time() - path.stat().st_mtime > UNSIGNED_S
    if unsigned or _is_dead(*owner):
        _take_away(path, owner)
    return not path.exists()


def _take_away(path: Path, owner: tuple[str, int]) -> None:
    """Remove a dead owner's lock, and put back what another process has meanwhile locked."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _owner(aside) != owner:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
