"""A cache of small results, such as a passed check: one JSON file for each kind of result.

The key of a result covers everything that the result depends on. The cache only saves time. A file
that is torn, has another form or can't be written counts as absent; where two processes write a
file at once, one of the results is lost.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import evalkit
from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit


def folder() -> Path:
    """Return the folder of files that evalkit can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "evalkit"


def make_folder(path: Path) -> None:
    """Create a folder for what evalkit can make again. Raises EvalkitError (3) where nothing can be
    written there."""
    fix = "set XDG_CACHE_HOME to a folder that you can write to"
    try:
        canon.make_folder(path)
    except EvalkitError as error:
        raise EvalkitError(error.what, where=str(path), fix=fix, code=Exit.MISSING) from None
    if not os.access(path, os.W_OK):
        what = "the cache is read-only"
        raise EvalkitError(what, where=str(path), fix=fix, code=Exit.MISSING)


def read(kind: str) -> dict[str, Any]:
    """Return the results of a kind by key; none where there is no intact file."""
    with suppress(EvalkitError, TypeError, ValueError):
        return dict(canon.read_json(folder() / f"{kind}.json"))
    return {}


def write(kind: str, results: Mapping[str, object]) -> None:
    """Replace the results of a kind. A folder that can't be written to is no error."""
    with suppress(EvalkitError):
        canon.make_folder(folder())
        canon.write_json(folder() / f"{kind}.json", results)


@cache
def code() -> dict[str, str]:
    """Return the digests of evalkit's own modules, which in a checkout change under one version."""
    root = Path(evalkit.__file__).parent
    modules = sorted(root.rglob("*.py"))
    return {path.relative_to(root).as_posix(): canon.sha256_file(path) for path in modules}
