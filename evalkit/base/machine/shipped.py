"""Where the files lie that come with evalkit beside its code: suites, schemas, one lock.

In a wheel they are in the package, in a checkout in folders beside it. Nothing is read here.
"""

from pathlib import Path

import evalkit

PACKAGE = Path(evalkit.__file__).parent


def folder(name: str) -> Path:
    """The folder of that name that came with this evalkit."""
    inside = PACKAGE / name
    beside = PACKAGE.parent / name
    return beside if not inside.is_dir() and beside.is_dir() else inside
