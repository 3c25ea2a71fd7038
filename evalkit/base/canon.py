"""Canonical JSON, digests, and the only functions that write files.

Every identity in evalkit is `sha256:<hex>` of canonical JSON: sorted keys, tight separators, UTF-8,
floats as the shortest decimals that give the same float64 back, non-finite ones as the strings
`nan`, `inf`, `-inf`. Reading refuses duplicate keys. No other module opens a file for writing, so
only this one decides what is written atomically and when it is on the disk.
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

from evalkit.base import private
from evalkit.base.errors import EvalkitError, Exit

MAX_VALUES = 10_000_000  # of a JSON text: the plan of a million requests holds a third of that
Json = Any  # a value from json.loads: dict, list, str, int, float, bool, None
_FULL = "free space or choose another --out, then run the same command again"
_DENIED = "give --out a place of your own, or work on a copy in a folder of yours"
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def finite(value: Json) -> Json:
    """Return a value with every non-finite float replaced by its string, and tuples by lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Json) -> float:
    """Return the float64 of a number in canonical JSON; ValueError for anything else."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"not a number: {value!r}")
    return float(value)


def total(values: Iterable[float]) -> float:
    """Add floats one by one, in order: Python's `sum` rounds otherwise from 3.12 on."""
    result = 0.0
    for value in values:
        result += value
    return result


def dumps(value: Json) -> str:
    """Return the canonical JSON of dicts with string keys, lists, strings, numbers and None."""
    try:
        return _ENCODER.encode(value)
    except ValueError:  # it holds a non-finite float, which is rare: only then make a copy
        return _ENCODER.encode(finite(value))


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = sorted(k for k, times in Counter(key for key, _ in pairs).items() if times > 1)[:5]
        raise ValueError(f"duplicate keys {', '.join(twice)}")
    return made


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def loads(text: str | bytes) -> Json:
    """Parse JSON; ValueError on duplicate keys, NaN or Infinity literals, and more values than fit
    into memory: 60 MiB of `[],` are two gigabytes of lists."""
    if len(text) > MAX_VALUES and _values(text) > MAX_VALUES:
        raise ValueError(f"it is over the limit of {MAX_VALUES:,} values")
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _values(text: str | bytes) -> int:
    """Return an upper bound for the lists and objects in JSON text, and for other values by what
    they take: a number takes a fourth of an empty list."""
    data = text.encode() if isinstance(text, str) else text
    return data.count(b",") // 4 + data.count(b"[") + data.count(b"{")


def digest_bytes(data: bytes) -> str:
    """Return `sha256:<hex>` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: Json) -> str:
    """Return `sha256:<hex>` of a value's canonical JSON."""
    return digest_bytes(dumps(value).encode())


def reader(path: Path) -> BufferedReader:
    """Open a regular file for reading. OSError for anything else: the path may come from somebody
    else, and reading a pipe or a device might never end."""
    _require_regular(path.stat().st_mode, path)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # check the opened file: the path may lead elsewhere by now
        _require_regular(os.fstat(handle).st_mode, path)
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
    """Read a regular file of at most `limit` bytes; OSError for a larger one or anything else."""
    with reader(path) as handle:
        data = handle.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", os.fspath(path))
    return data


def read_given(path: Path, limit: int, what: str) -> bytes:
    """Do as `read_bytes` for a file that the user named; EvalkitError (3) says that `what` can't be
    read."""
    try:
        return read_bytes(path, limit)
    except OSError as error:
        problem = f"can't read {what}: {error.strerror}"
        raise EvalkitError(problem, where=str(path), code=Exit.MISSING) from None


def sha256_file(path: Path) -> str:
    """Return the sha256 (bare hex) of a regular file, read in blocks."""
    with reader(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path) -> Json:
    """Read a JSON file; EvalkitError where it is missing, torn or has duplicate keys."""
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


def make_folder(path: Path) -> None:
    """Create a folder and its parents for the user alone, or readable for the group that files are
    shared with (`private.share`). Raises EvalkitError (3) where that fails."""
    try:
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in created if os.environ.get(private.GROUP) else ():
            _share(folder, int(os.environ[private.GROUP]))
    except OSError as error:
        what = f"can't make the folder: {error.strerror}"
        fix = "choose another --out, or mend what is there"
        raise EvalkitError(what, where=str(path), fix=fix, code=Exit.MISSING) from None


def _share(folder: Path, group: int) -> None:
    """Let a group read a new folder and all that will be created in it."""
    with suppress(OSError):  # a container without that group: it is inherited from the parent
        os.chown(folder, -1, group)
    folder.chmod(0o2750)


def write_atomic(
    path: Path, data: bytes | str | Iterable[bytes], *, private: bool = False, sync: bool = True
) -> None:
    """Write a whole file or nothing: a temporary file beside it is synced and renamed to `path`.

    `private`: for the user alone, whatever the umask is. `sync` is not needed for temporary files,
    of which there may be 20,000.
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
        raise _cannot_write(path, error) from None
    if sync:
        _sync_folder(path.parent)


def _cannot_write(path: Path, error: OSError) -> EvalkitError:
    return EvalkitError(
        f"can't write {path.name}: {error.strerror}",
        where=str(path.parent),
        fix=_DENIED if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else _FULL,
        code=Exit.MISSING,
    )


def beside(path: Path) -> Path:
    """Return a hidden path beside `path`, for a file that is not complete yet. Its name is random:
    two containers, or two nodes that share a disk, may have the same process number."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


def write_json(path: Path, value: Json) -> None:
    """Write `pretty` JSON."""
    write_atomic(path, pretty(value))


def pretty(value: Json) -> str:
    """Return JSON that people can read: sorted keys, indent 2, the same numbers as `dumps`."""
    text = json.dumps(finite(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Appender:
    """A file that grows by a line of canonical JSON at a time, which is then on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_folder(path.parent)
            is_new = not path.exists()
            self._handle = path.open("ab+")
            if is_new:  # without its name in the folder, a synced line is lost too
                _sync_folder(path.parent)
            self._end_torn_line()
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def _end_torn_line(self) -> None:
        """End a line that another writer left unfinished, so that the next one starts anew."""
        if self._handle.tell():
            self._handle.seek(-1, os.SEEK_END)
            if self._handle.read(1) != b"\n":
                self._handle.write(b"\n")

    def append(self, value: Json, *, sync: bool = True) -> None:
        """Write one line; EvalkitError where the disk is full or the folder is read-only now.
        Without `sync`, a line may be lost with the power."""
        try:
            self._handle.write(dumps(value).encode() + b"\n")
            self._handle.flush()
            if sync:
                os.fsync(self._handle.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the file; all lines are on the disk already."""
        try:
            self._handle.close()
        except OSError as error:
            raise _cannot_write(self.path, error) from None
