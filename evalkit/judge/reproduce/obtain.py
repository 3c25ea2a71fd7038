"""The original's folder: as it is, out of a pack, or fetched.

A pack's or an address's content is untrusted and bounded. Only http and https are fetched, only
packs are, and nothing in them is run.
"""

import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.packs import archive

MAX_BYTES = 8 << 30
TIMEOUT_S = 60
BLOCK = 1 << 20


@contextmanager
def obtained(where: str) -> Iterator[Path]:
    """The run's folder, there until the block ends; EvalkitError where there is none."""
    if urllib.parse.urlsplit(where).scheme in ("http", "https"):
        with tempfile.TemporaryDirectory(prefix="evalkit-fetched-") as folder:
            pack = Path(folder) / "run.tar.gz"
            canon.write_atomic(pack, _fetched(where))
            with archive.unpacked(pack) as run:
                yield run
        return
    path = Path(where)
    if path.is_dir():
        yield path
    elif path.is_file():
        with archive.unpacked(path) as run:
            yield run
    else:
        raise EvalkitError("there is no such run", where=where, code=Exit.MISSING)


def _fetched(address: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            total = 0
            while block := answer.read(BLOCK):
                total += len(block)
                if total > MAX_BYTES:
                    raise EvalkitError(f"more than {MAX_BYTES >> 30} GiB", where=address)
                yield block
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise EvalkitError(
            f"can't fetch the pack: {error}", where=address, code=Exit.MISSING
        ) from None
