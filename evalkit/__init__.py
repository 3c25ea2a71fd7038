"""Reproducible evaluation of language models, with a record that anyone can check.

From a notebook, `evalkit.load(path)` is all there is; everything else is the command line's.
"""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalkit.show.notebook import Loaded

__version__ = "0.2.0"
__all__ = ["load"]


def load(path: str | PathLike[str], *, unverified: bool = False) -> "Loaded":
    """A finished run's record, or what lm-eval wrote, with scores and samples as pandas frames;
    EvalkitError where there is none, or where it contradicts itself and isn't wanted
    `unverified`."""
    from evalkit.show.notebook import Loaded

    return Loaded(Path(path), unverified=unverified)
