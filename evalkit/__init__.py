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


def load(path: str | PathLike[str]) -> "Loaded":
    """A finished run's record, with its scores and samples as pandas frames; EvalkitError where
    there is none."""
    from evalkit.show.notebook import Loaded

    return Loaded(Path(path))
