"""A run's samples in public: the names of their files, and the digest that stands for a text.

Nothing here writes or checks one; `pack` does, and `verify`.
"""

from typing import Any

from evalkit.base import canon

SCHEMA = "evalkit/public/1"
HEAD, LINES = "public.json", "public.jsonl.gz"


def hidden(salt: str, value: Any) -> str:
    """sha256 (hex) that tells whether somebody who has a text has the same one, and of no other
    pack whether it holds it too. `salt`: the sha256 of record.json."""
    return canon.digest([salt, value])[7:]
