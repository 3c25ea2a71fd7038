"""A run's samples in public: the names of their files, and the digest that stands for a text.

Nothing here writes or checks one; `public_form` does, and `verify`.
"""

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

SCHEMA = "evalkit/public/2"
REVEALED = "evalkit/revealed/1"
HEAD, LINES = "public.json", "public.jsonl.gz"
_KEY = ".pack.key"  # behind a run's name: what its author keeps


class Salts:
    """A salt for each document, from a key that only the author has."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, task: str, doc_id: int) -> str:
        """A document's salt (hex), which tells nothing of another's."""
        return hmac.new(self._key, f"{task}/{doc_id}".encode(), hashlib.sha256).hexdigest()


def salts_of(run: Path) -> Salts:
    """The salts of a run's public pack: from the key beside its folder, made where there is none.

    EvalkitError (1) where the file there is no key.
    """
    path = run.with_name(run.name + _KEY)
    if not path.exists():
        canon.write_atomic(path, secrets.token_hex(32) + "\n", private=True)
    try:
        key = bytes.fromhex(canon.read_bytes(path, 100).decode().strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != 32:
        fix = "restore it, or move it away to pack anew"
        what = "this is no key of a public pack"
        raise EvalkitError(what, where=str(path), fix=fix, code=Exit.FAILED)
    return Salts(key)


def hidden(salt: str, value: Any) -> str:
    """sha256 (hex) that tells only who has both a document's salt and a text whether it is that."""
    return canon.digest([salt, value])[7:]
