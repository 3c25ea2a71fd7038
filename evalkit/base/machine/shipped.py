"""The folders of files that evalkit ships beside its code: suites, schemas, a lock.

In a wheel they are in the package, in a checkout beside it. Nothing is read here.
"""

from pathlib import Path

import evalkit

PACKAGE = Path(evalkit.__file__).parent


def folder(name: str) -> Path:
    """Return the shipped folder of that name."""
    inside = PACKAGE / name
    beside = PACKAGE.parent / name
    return beside if not inside.is_dir() and beside.is_dir() else inside
