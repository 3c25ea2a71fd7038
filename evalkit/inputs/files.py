"""The digests of files: of a model's, remembered in the cache; of downloads, against the Hub's.

huggingface_hub compares sizes only, and accepts whatever lies in its cache as what it once fetched.
But it keeps a file under the name that the Hub gave its content: a large one's sha256, git's name
of a small one. So a file in the Hub's cache can be checked.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.types import FileEntry


def sha256s(files: Mapping[str, FileEntry]) -> dict[str, str]:
    """Return each file's sha256 (hex) by its name."""
    return {name: entry["sha256"] for name, entry in files.items()}


def digests(folder: Path, names: list[str]) -> dict[str, FileEntry]:
    """Return each file's entry by its name; files are read on a thread pool. A file whose path,
    size, time of change and inode are those of an earlier call is not read again: a model's weights
    take minutes."""
    known: dict[str, str] = kept.read("digests")

    def digest(name: str) -> tuple[str, str, int]:
        path = (folder / name).resolve()
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        return key, known.get(key) or canon.sha256_file(path), stat.st_size

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(digest, names))
    fresh = {key: sha for key, sha, _ in results if key not in known}
    if fresh:
        kept.write("digests", known | fresh)
    return {
        name: {"sha256": sha, "size": size}
        for name, (_, sha, size) in zip(names, results, strict=True)
    }


@contextmanager
def checked_downloads() -> Iterator[None]:
    """Within the block, check each file that `datasets` fetches, or has fetched before, against the
    Hub's digest before it is used."""
    from huggingface_hub import HfApi

    api: Any = HfApi
    original = api.hf_hub_download

    def hf_hub_download(*arguments: Any, **options: Any) -> str:
        path = str(original(*arguments, **options))
        check_file(Path(path))
        return path

    api.hf_hub_download = hf_hub_download
    try:
        yield
    finally:
        api.hf_hub_download = original


def check_file(path: Path, sha256: str = "") -> None:
    """Raise EvalkitError where a file is not what its name in the cache says. `sha256`: its own
    (hex), where it is known already. A mirror of the Hub may name a small file by its sha1, or by
    what says nothing of its content."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        stat = blob.stat()
        right = blob.name == (sha256 or _sha256(blob, stat.st_size, stat.st_mtime_ns))
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        right = blob.name in _sha1(blob)
    else:
        return
    if not right:
        raise EvalkitError(
            f"{path.name} is not the file that the Hub announced: it was altered in the cache or"
            " on its way there",
            where=os.fspath(blob),
            fix="delete that file, and the same command fetches it again",
            code=Exit.FAILED,
        )


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """The sha256 (hex) of a file, which a process reads once while it is as it was."""
    return canon.sha256_file(path)


def _sha1(path: Path) -> set[str]:
    data = path.read_bytes()
    both = (data, b"blob %d\0" % len(data) + data)
    return {hashlib.sha1(each, usedforsecurity=False).hexdigest() for each in both}
