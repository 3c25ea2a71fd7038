"""One canonical JSON, one tagged hash, one way to write a file.

Every identity in evalkit is `sha256:<hex>` of canonical JSON: sorted keys, tight separators, UTF-8,
floats as the shortest decimals that give the same float64 back, non-finite ones as the strings
`nan`, `inf`, `-inf`. Reading refuses duplicate keys. No other module opens a file for writing, so
"written atomically" and "on the disk when we say so" are decided here alone.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit

MAX_VALUES = 10_000_000  # of a JSON text: the plan of a million requests holds a third of that
GROUP = "EVALKIT_GROUP"  # the number of a Unix group that may read what is made
Json = Any  # what json.loads gives: dict, list, str, int, float, bool, None
_FULL = "free space or choose another --out, then run the same command again"
_DENIED = "give --out a place of your own, or work on a copy in a folder of yours"
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def finite(value: Json) -> Json:
    """The value with every non-finite float replaced by its string, tuples by lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Json) -> float:
    """The float64 that canonical JSON stands for; raises ValueError for anything else."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"not a number: {value!r}")
    return float(value)


def total(values: Iterable[float]) -> float:
    """Floats added one by one, in order: Python's own `sum` rounds otherwise from 3.12 on."""
    result = 0.0
    for value in values:
        result += value
    return result


def dumps(value: Json) -> str:
    """Canonical JSON of a value made of dicts with string keys, lists, strings, numbers, None."""
    try:
        return _ENCODER.encode(value)
    except ValueError:  # a non-finite float somewhere: rare, so only then pay for the copy
        return _ENCODER.encode(finite(value))


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = sorted(k for k, times in Counter(key for key, _ in pairs).items() if times > 1)[:5]
        raise ValueError(f"duplicate keys {', '.join(twice)}")
    return found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def loads(text: str | bytes) -> Json:
    """Parse JSON; ValueError on duplicate keys, NaN or Infinity literals, and more values than fit
    into memory: 60 MiB of `[],` are two gigabytes of lists."""
    if len(text) > MAX_VALUES and _values(text) > MAX_VALUES:
        raise ValueError(f"it is over the limit of {MAX_VALUES:,} values")
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _values(text: str | bytes) -> int:
    """No fewer values than JSON text holds."""
    if isinstance(text, bytes):
        return text.count(b",") + text.count(b"[") + text.count(b"{")
    return text.count(",") + text.count("[") + text.count("{")


def digest_bytes(data: bytes) -> str:
    """`sha256:<hex>` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: Json) -> str:
    """`sha256:<hex>` of a value's canonical JSON."""
    return digest_bytes(dumps(value).encode())


def reader(path: Path) -> BufferedReader:
    """A regular file, opened for reading. OSError for anything else: what is read may be somebody
    else's, and a pipe or a device in a file's place would never end."""
    _require_regular(path.stat().st_mode, path)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(handle).st_mode, path)  # what was opened, whatever is there now
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _require_regular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a plain file", os.fspath(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; OSError for a larger one and for anything else."""
    with reader(path) as handle:
        data = handle.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", os.fspath(path))
    return data


def sha256_file(path: Path) -> str:
    """Bare hex sha256 of a regular file, read in blocks."""
    with reader(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path) -> Json:
    """A JSON file; EvalkitError when it is missing, torn or has duplicate keys."""
    try:
        with reader(path) as handle:
            return loads(handle.read())
    except (FileNotFoundError, NotADirectoryError):
        raise EvalkitError(f"there is no {path.name}", where=str(path), code=Exit.MISSING) from None
    except OSError as error:
        what = f"can't read {path.name}: {error.strerror}"
        raise EvalkitError(what, where=str(path), code=Exit.MISSING) from None
    except (ValueError, RecursionError) as error:
        raise EvalkitError(f"{path.name} is not readable JSON: {error}", where=str(path)) from None


def umask() -> int:
    """What others may not do with what is left: it is the user's alone, or a group may read it."""
    return 0o027 if os.environ.get(GROUP) else 0o077


def share(group: str) -> None:
    """Let a Unix group, by name or number, read what is made from now on, here and in processes
    that start from here; EvalkitError where the user is not in it."""
    import grp

    try:
        number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise EvalkitError(f"there is no group '{group}'", fix="`id` lists yours") from None
    if number not in (os.getgid(), *os.getgroups()) and os.getuid() != 0:
        raise EvalkitError(f"you are not in the group '{group}'", fix="`id` lists yours")
    os.environ[GROUP] = str(number)
    os.umask(umask())


def make_folder(path: Path) -> None:
    """Create a folder and its parents, private to the user or readable for the group that it is
    shared with; EvalkitError (3) where it can't be."""
    try:
        made = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in made if os.environ.get(GROUP) else ():
            _share(each, int(os.environ[GROUP]))
    except OSError as error:
        what = f"can't make the folder: {error.strerror}"
        fix = "choose another --out, or mend what is there"
        raise EvalkitError(what, where=str(path), fix=fix, code=Exit.MISSING) from None


def _share(folder: Path, group: int) -> None:
    """Give a folder that was just made to a group to read, and all that will be made in it."""
    with suppress(OSError):  # a container that knows no such group: it is taken from the parent
        os.chown(folder, -1, group)
    folder.chmod(0o2750)


def write_atomic(
    path: Path, data: bytes | str | Iterable[bytes], *, private: bool = False, sync: bool = True
) -> None:
    """Write a whole file or nothing: a temporary neighbour, synced, then renamed over `path`.

    `private`: for the user alone, whatever the process's umask is. `sync`: not for what is thrown
    away again, of which there may be 20,000 files.
    """
    blocks = [data.encode()] if isinstance(data, str) else data
    blocks = [blocks] if isinstance(blocks, bytes) else blocks
    part = beside(path)
    try:
        with part.open("wb") as handle:
            if private:
                os.fchmod(handle.fileno(), 0o600)
            for block in blocks:
                handle.write(block)
            if sync:
                handle.flush()
                os.fsync(handle.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        fix = _DENIED if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else _FULL
        what = f"can't write {path.name}: {error.strerror}"
        raise EvalkitError(what, where=str(path.parent), fix=fix, code=Exit.MISSING) from None
    if sync:
        _sync_folder(path.parent)


def beside(path: Path) -> Path:
    """A hidden neighbour of `path`, under a name that no process has anywhere: processes of two
    containers, or of two nodes that share a disk, may have one number."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


def write_json(path: Path, value: Json) -> None:
    """Write JSON for people to read as well: sorted keys, indent 2, same numbers as `dumps`."""
    write_atomic(path, pretty(value))


def pretty(value: Json) -> str:
    """JSON for people to read as well: sorted keys, indent 2, same numbers as `dumps`."""
    text = json.dumps(finite(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Appender:
    """A file that only grows, a canonical JSON line at a time, each on the disk before we go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_folder(path.parent)
            is_new = not path.exists()
            self._handle = path.open("ab+")
            if is_new:  # a synced line in a file whose name is lost is lost too
                _sync_folder(path.parent)
            self._end_torn_line()
        except OSError as error:
            raise self._error(error) from None

    def _end_torn_line(self) -> None:
        """A writer before us may have died in mid-line: what we add starts on a line of its own."""
        if self._handle.tell():
            self._handle.seek(-1, os.SEEK_END)
            if self._handle.read(1) != b"\n":
                self._handle.write(b"\n")

    def append(self, value: Json, *, sync: bool = True) -> None:
        """Write one line; EvalkitError when the disk is full or the folder turned read-only.
        Without `sync` the line may be lost with the power."""
        try:
            self._handle.write(dumps(value).encode() + b"\n")
            self._handle.flush()
            if sync:
                os.fsync(self._handle.fileno())
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file; what was appended is already on the disk."""
        try:
            self._handle.close()
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> EvalkitError:
        return EvalkitError(
            f"can't write {self.path.name}: {error.strerror}", where=str(self.path.parent),
            fix="free space or mend the folder, then run the same command again", code=Exit.MISSING,
        )  # fmt: skip
