"""A run's files in one .tar.gz: the same bytes for the same files, and read as a stranger's.

Only plain files under one folder are written (ustar, without owner, time or mode), and only such
are read. Anything else is refused: a link, a folder, a name that leaves its place, a header
extension, a file that stands twice, or more than a run can hold.
"""

import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

SUFFIX = ".tar.gz"
MAX_FILES = 20_000
MAX_BYTES = 16 << 30  # unpacked
RATIO, SLACK = 20, 64 << 20  # unpacked bytes for a packed one, and how many more
BLOCK = 1 << 20
_RECORD = 512
_ERRORS = (EOFError, OSError, ValueError, struct.error, zlib.error)


def packed(folder: str, files: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The archive's bytes, a block at a time: each file by its name below `folder`, of whose own
    name only letters that every archive may hold are kept."""
    top = "".join(c if c.isascii() and c.isprintable() and c not in "/\\" else "_" for c in folder)
    block = io.BytesIO()
    with gzip.GzipFile(fileobj=block, mode="wb", compresslevel=9, mtime=0, filename="") as zipped:
        for name, data in files:
            head = tarfile.TarInfo(f"{top[:100]}/{name}")
            head.size = len(data)
            try:
                zipped.write(head.tobuf(tarfile.USTAR_FORMAT))
            except ValueError as error:
                raise EvalkitError(f"can't pack {name}: {error}") from None
            zipped.write(data + bytes(-len(data) % _RECORD))
            if block.tell() >= BLOCK:
                yield block.getvalue()
                block = zipped.fileobj = io.BytesIO()
        zipped.write(bytes(2 * _RECORD))
    yield block.getvalue()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A pack's run, in a folder that is there until the block ends; errors as `unpack`'s."""
    with room() as place:
        yield unpack(path, place)


@contextmanager
def room() -> Iterator[Path]:
    """A folder to unpack into, that is there until the block ends."""
    with TemporaryDirectory(prefix="evalkit-pack-") as place:
        yield Path(place)


def unpack(path: Path, place: Path) -> Path:
    """Unpack a pack's run below `place`; its folder. EvalkitError (1) for no pack of ours."""
    try:
        with canon.reader(path) as handle, gzip.open(handle, "rb") as stream:
            most = SLACK + RATIO * os.fstat(handle.fileno()).st_size
            return place / _unpack(stream, place, min(most, MAX_BYTES))
    except EvalkitError as error:
        if error.where.startswith(str(place)):
            error.fix = "set TMPDIR to a folder with room for what is in the pack"
        raise
    except _ERRORS as error:
        what = f"not a pack of evalkit's: {error or type(error).__name__}"
        raise EvalkitError(what, where=str(path), code=Exit.FAILED) from None


@contextmanager
def opened(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """The same paths with each pack among them unpacked, until the block ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(unpacked(path)) if is_pack(path) else path for path in paths]


def is_pack(path: Path) -> bool:
    """Whether a path is a file named as packs are."""
    return path.name.endswith(SUFFIX) and path.is_file()


def _unpack(stream: gzip.GzipFile, place: Path, most: int) -> str:
    """Write the files, of at most `most` bytes, below `place`; return their one folder's name."""
    tops: set[str] = set()
    names: set[str] = set()  # in small letters: some systems know no others
    folders: set[str] = set()
    total = 0
    while (head := _exactly(stream, _RECORD)) != bytes(_RECORD):
        name, size = _header(head)
        total += size
        plain = name.casefold()
        above = {plain[:end] for end, c in enumerate(plain) if c == "/"}
        if plain in names:
            raise ValueError("a file stands twice")
        if plain in folders or above & names:
            raise ValueError("a file is a folder too")
        if len(names) >= MAX_FILES or total > most:
            raise ValueError(f"it is over the limit of {MAX_FILES:,} files or {most:,} bytes")
        names.add(plain)
        folders |= above
        tops.add(name.partition("/")[0])
        path = place / name
        canon.make_folder(path.parent)
        canon.write_atomic(path, _content(stream, size), sync=False)
        _exactly(stream, -size % _RECORD)
    if stream.read(_RECORD + 1) != bytes(_RECORD):
        raise ValueError("something stands behind its end")
    if len(tops) != 1:
        raise ValueError("not one folder")
    return tops.pop()


def _header(head: bytes) -> tuple[str, int]:
    """Name and size of a plain file; ValueError for anything else."""
    if head[257:265] != b"ustar\x0000" or head[156:157] != b"0":
        raise ValueError("holds what is no plain file")
    checked = head[:148] + b" " * 8 + head[156:]
    if int(head[148:156].rstrip(b"\0 "), 8) != sum(checked):
        raise ValueError("a header is damaged")
    name = head[345:500].rstrip(b"\0") + b"/" if head[345] else b""
    text = (name + head[:100].rstrip(b"\0")).decode("ascii")
    parts = text.split("/")
    if len(parts) < 2 or any(p in ("", ".", "..") for p in parts) or not text.isprintable():
        raise ValueError("a name leaves its place")
    if "\\" in text or len(parts) > 8:
        raise ValueError("a name leaves its place")
    size = head[124:136].rstrip(b"\0 ")
    if not size.isdigit():
        raise ValueError("a header is damaged")
    return text, int(size, 8)


def _content(stream: gzip.GzipFile, size: int) -> Iterator[bytes]:
    while size:
        data = _exactly(stream, min(size, BLOCK))
        size -= len(data)
        yield data


def _exactly(stream: gzip.GzipFile, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("it is torn")
    return data
