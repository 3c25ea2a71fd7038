"""A task's own code and YAML take effect as they are now, whatever was made of them before.

Python's compiled files go by a source's size and its time in whole seconds, lm-eval's loaded
modules by its time, and `datasets` keeps documents as a function of that name made them, whatever
the function has become. Within `fresh` none of these answers for a file that was changed.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp

_INCLUDE = re.compile(r"^include:[ \t]*(.*(?:\n[ \t]*-.*)*)", re.M)


class _Source(SourceFileLoader):
    """Compiles the source that is there; neither reads nor leaves a compiled file beside it."""

    def get_code(self, fullname: str) -> CodeType:
        """The module's code."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


@contextmanager
def fresh(include_path: Path | None) -> Iterator[None]:
    """Within the block, lm-eval's modules of a suite's task folder are made from their source."""
    if include_path is None:
        yield
        return
    for name in [name for name in sys.modules if name.startswith(f"{include_path}/")]:
        del sys.modules[name]
    original = importlib.util.spec_from_file_location

    def spec(name: str, location: Any, **others: Any) -> Any:
        own = str(location).startswith(f"{include_path}/")
        return original(
            name, location, **{"loader": _Source(name, str(location))} if own else others
        )

    importlib.util.spec_from_file_location = spec  # type: ignore[assignment]
    try:
        yield
    finally:
        importlib.util.spec_from_file_location = original


def identity(include_path: Path | None) -> str:
    """What rewritten documents follow from besides rows: lm-eval's code and the suite's."""
    own = sorted(include_path.rglob("*.py")) if include_path is not None else []
    return canon.digest([stamp.version("lm_eval"), [canon.sha256_file(path) for path in own]])


def mark(tables: Any, identity: str) -> Any:
    """Loaded tables, of which `datasets` keeps what is made under names of its own for this code
    (it goes by a function's name, not by what the function does)."""
    from datasets.fingerprint import Hasher

    for table in tables.values() if hasattr(tables, "values") else [tables]:
        if hasattr(table, "_fingerprint"):
            table._fingerprint = Hasher.hash([table._fingerprint, identity])
    return tables


def check_includes(include_path: Path, harness: Path) -> None:
    """EvalkitError where a YAML of the suite's task folder includes one that lies outside of it and
    of lm-eval's own tasks: nothing would notice that it was changed."""
    for path in sorted(include_path.rglob("*.yaml")):
        for listed in _INCLUDE.findall(path.read_text("utf-8", "replace")):
            for name in re.findall(r"[^\s,\[\]'\"#]+", re.sub(r"(?m)^[ \t]*-[ \t]", " ", listed)):
                place = (path.parent / name).resolve()
                if place.is_relative_to(include_path) or place.is_relative_to(harness):
                    continue
                raise EvalkitError(
                    f"{path.relative_to(include_path)} includes a YAML from outside the suite's"
                    f" task folder ({Path(name).name}), which nothing pins",
                    fix="keep it in that folder",
                )
