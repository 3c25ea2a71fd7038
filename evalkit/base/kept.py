"""What was found out before and follows from nothing that has changed: small answers by a key that
covers all that they follow from, one JSON file for each kind of answer.

They only save time. A file that is torn, of another form or can't be written counts as absent; of
two processes that write one at once, one loses what it found out.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import evalkit
from evalkit.base import canon
from evalkit.base.errors import EvalkitError


def folder() -> Path:
    """Where evalkit keeps what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "evalkit"


def read(kind: str) -> dict[str, Any]:
    """All answers of a kind by key; none where there is no whole file of them."""
    with suppress(EvalkitError, TypeError, ValueError):
        return dict(canon.read_json(folder() / f"{kind}.json"))
    return {}


def write(kind: str, answers: dict[str, Any]) -> None:
    """Keep these answers of a kind and no others; a folder that can't be written to is no error."""
    with suppress(EvalkitError):
        canon.make_folder(folder())
        canon.write_json(folder() / f"{kind}.json", answers)


@cache
def code() -> dict[str, str]:
    """Digests of evalkit's own modules: in a checkout they change under one version."""
    root = Path(evalkit.__file__).parent
    found = sorted(root.rglob("*.py"))
    return {path.relative_to(root).as_posix(): canon.sha256_file(path) for path in found}
