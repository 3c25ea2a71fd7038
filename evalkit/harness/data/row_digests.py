"""How many rows a leaf task has, and their digest: sha256 over lm-eval's doc_hash (hex) of each.

Hashing tens of thousands of rows takes seconds, so what came out is kept by the sha256 of the Arrow
files that the rows lie in. A digest so follows from the bytes that are loaded, each time anew; rows
that do not lie in files as they are, one after another, are hashed every time.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.machine import stamp

KIND = "rows"
VERSIONS = ("lm_eval", "datasets", "pyarrow")


def doc_hash(doc: Any) -> str:
    """lm-eval's doc_hash: sha256 (hex) of the document as indented JSON."""
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of(rows: Iterable[Any]) -> tuple[int, str]:
    """(number of rows, their digest)."""
    key = _key(rows)
    found = kept.read(KIND).get(key) if key else None
    if isinstance(found, list) and len(found) == 2:
        return int(found[0]), str(found[1])
    hashes, count = hashlib.sha256(), 0
    for row in rows:
        hashes.update(doc_hash(row).encode())
        count += 1
    digest = f"sha256:{hashes.hexdigest()}"
    if key:
        kept.write(KIND, kept.read(KIND) | {key: [count, digest]})
    return count, digest


def _key(rows: Any) -> str:
    """Digest of all that the rows follow from; empty where that is not files alone."""
    import datasets

    if not isinstance(rows, datasets.Dataset) or rows._indices is not None:
        return ""
    files = [canon.sha256_file(Path(entry["filename"])) for entry in rows.cache_files]
    if not files:
        return ""
    return canon.digest(
        {
            "files": files,
            "length": len(rows),
            "features": str(rows.features),
            "made": rows._fingerprint,  # of the split, and of what was done to it since
            "versions": [stamp.version(name) for name in VERSIONS],
        }
    )
