"""sha256 digests of large files, remembered in the cache.

A file whose path, size, time of change and inode are the same is not read again: a model's weights
take minutes.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.caches import kept


def of(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Each file's {"sha256" (hex), "size" (bytes)} by name, read on a thread pool."""
    known: dict[str, str] = kept.read("digests")

    def one(name: str) -> tuple[str, str, int]:
        path = (folder / name).resolve()
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        return key, known.get(key) or canon.sha256_file(path), stat.st_size

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(one, names))
    fresh = {key: sha for key, sha, _ in results if key not in known}
    if fresh:
        kept.write("digests", known | fresh)
    return {
        name: {"sha256": sha, "size": size}
        for name, (_, sha, size) in zip(names, results, strict=True)
    }
