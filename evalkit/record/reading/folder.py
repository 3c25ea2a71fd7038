"""Reading a run's folder as if its author meant harm.

Only plain files inside the folder are opened, by plain relative names, never through a link. Every
read is bounded, compressed streams after decompression. What is not so is an EvalkitError, which
the caller turns into a failed check.
"""

import gzip
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, no_right
from evalkit.inputs import untrusted
from evalkit.record.reading.findings import Check, Status, shown
from evalkit.record.salted import HEAD

MiB = 1 << 20
MAX_LINE = 64 * MiB  # of a compressed file
MAX_PLAIN_LINE = 1024 * MiB  # a batch of 256 texts that think for 32,768 tokens each takes 420
MAX_STREAM = 64 << 30  # decompressed bytes, read a line at a time: a million requests are 2 to 9
MAX_LINES = 5_000_000
RATIO = 250  # unpacked bytes for a packed one: 20 choices behind long shots come to 104
SLACK = 64 * MiB
MAX_FILES = 20_000

# Everything that reading a broken or hostile value may raise; a bug of ours beside these is a bug.
BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    EvalkitError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def broken(what: str) -> EvalkitError:
    """The error for a file that is not what a run's folder holds."""
    return EvalkitError(what, code=Exit.FAILED)


def reason(error: BaseException) -> str:
    """An error caught from `BROKEN`, in words."""
    if isinstance(error, EvalkitError):
        return error.what
    if isinstance(error, OSError) and error.strerror:
        return shown(error.strerror)
    return f"{type(error).__name__}: {shown(error)}"


def checked(name: str, make: Callable[[], Check | list[Check]]) -> list[Check]:
    """Return what `make` finds; broken input is a failure of the check of that name."""
    try:
        made = make()
    except BROKEN as error:
        return [Check(name, Status.FAIL, reason(error))]
    return made if isinstance(made, list) else [made]


@contextmanager
def foreign(path: Path, kinds: tuple[type[Exception], ...] = BROKEN) -> Iterator[None]:
    """What reading somebody else's files at a path may raise, made an EvalkitError (1): nothing
    that they hold is a bug of ours."""
    failures: tuple[type[Exception], ...] = (*kinds, MemoryError)
    try:
        yield
    except EvalkitError:
        raise
    except PermissionError as error:
        raise no_right(error.filename) from None
    except failures as error:
        what = f"it is not what it should be: {reason(error)}"
        raise EvalkitError(what, where=shown(path), code=Exit.FAILED) from None


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
        raise broken(f"{shown(name)!r} is not the name of a file inside the folder")
    return parts


class Folder:
    """A run's folder; `root` itself may be a link, as its reader chose it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def walk(self) -> tuple[set[str], list[str]]:
        """Relative names of the plain files, and of what is neither a file nor a folder."""
        files: set[str] = set()
        strange: list[str] = []
        pending = [self.root]
        while pending:
            for path in pending.pop().iterdir():
                name = path.relative_to(self.root).as_posix()
                mode = path.lstat().st_mode
                if stat.S_ISDIR(mode):
                    pending.append(path)
                elif stat.S_ISREG(mode):
                    files.add(name)
                else:
                    strange.append(name)
                if len(files) + len(strange) + len(pending) > MAX_FILES:
                    raise broken(f"the folder holds more than {MAX_FILES:,} entries")
        return files, strange

    def path(self, name: str) -> Path:
        """The path of a plain file inside the folder that no link leads to."""
        path = self.root
        mode = 0
        for part in _parts(name):
            path = path / part
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                raise broken(f"there is no {shown(name)}") from None
            if stat.S_ISLNK(mode):
                raise broken(f"{shown(name)} is or lies behind a symbolic link")
        if not stat.S_ISREG(mode):
            raise broken(f"{shown(name)} is not a plain file")
        return path

    @property
    def is_public(self) -> bool:
        """Whether it is a public pack's."""
        return self.holds(HEAD) and not self.holds("journal")

    def reader(self, name: str) -> BufferedReader:
        """A plain file inside the folder, opened for reading."""
        return canon.reader(self.path(name))

    def sha256(self, name: str) -> str:
        """sha256 (hex) of a plain file inside the folder."""
        with self.reader(name) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    def holds(self, name: str) -> bool:
        """Whether there is anything of that name."""
        return os.path.lexists(self.root / name)

    def read(self, name: str, limit: int) -> bytes:
        """A whole file of at most `limit` bytes."""
        with self.reader(name) as handle:
            data = handle.read(limit + 1)
        if len(data) > limit:
            raise broken(f"{shown(name)} is larger than {limit // MiB:,} MiB")
        return data

    def json(self, name: str, limit: int) -> Any:
        """A JSON file without duplicate keys."""
        return self.parsed(name, self.read(name, limit))

    def parsed(self, name: str, data: bytes) -> Any:
        """The value in a JSON file's bytes, which have no duplicate keys."""
        try:
            return canon.loads(data)
        except (ValueError, RecursionError) as error:
            raise broken(f"{shown(name)} is not readable JSON: {shown(error)}") from None

    def yaml(self, name: str, limit: int) -> Any:
        """A YAML file of plain values: no aliases (they can blow up), no deep nesting, no tags."""
        try:
            return untrusted.load_foreign_yaml(self.read(name, limit))
        except ValueError as error:
            raise broken(f"{shown(name)} is not readable YAML: {shown(error)}") from None

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Each line of a file with its number."""
        with self.reader(name) as handle:
            yield from _lines(handle, name, MAX_STREAM, MAX_PLAIN_LINE)

    def gzip_lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Each line of a gzip-compressed file with its number."""
        with self.reader(name) as handle, gzip.open(handle, "rb") as stream:
            most = most_unpacked(os.fstat(handle.fileno()).st_size)
            yield from _lines(stream, name, most, MAX_LINE)


def most_unpacked(size: int) -> int:
    """Return the bytes that a gzip-compressed file of this size may unpack to."""
    return min(SLACK + RATIO * size, MAX_STREAM)


def _lines(
    handle: IO[bytes] | gzip.GzipFile, name: str, most: int, longest: int
) -> Iterator[tuple[int, bytes]]:
    total = number = 0
    while line := handle.readline(longest + 1):
        number += 1
        total += len(line)
        if len(line) > longest:
            raise broken(f"line {number:,} of {shown(name)} is longer than {longest // MiB} MiB")
        if total > most or number > MAX_LINES:
            limit = f"{most // MiB:,} MiB or {MAX_LINES:,} lines"
            raise broken(f"{shown(name)} is over the limit of {limit}")
        yield number, line
