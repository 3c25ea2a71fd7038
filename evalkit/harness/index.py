"""lm-eval's index of its own tasks: which name is a task, a group or a tag, and in which YAML file.

lm-eval parses 14,000 files for it, whatever is asked for. Here it is kept as lm-eval made it, until
its version or one of these files' size or time changes. What a task or a group is made of is read
from its file when it is loaded, as before.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.machine import stamp

KIND = "tasks"


@contextmanager
def kept_index() -> Iterator[None]:
    """Within the block, lm-eval's index of its own tasks is the kept one where there is one."""
    from lm_eval.tasks import _index

    original, own = _index.TaskIndex.build, Path(_index.__file__).parent

    def build(paths: Iterable[Path]) -> dict[str, Any]:
        folders = [Path(path) for path in paths]
        others: dict[str, Any] = original([path for path in folders if path != own])
        return _of(own, original) | others  # as lm-eval has it: a suite's own tasks replace its

    _index.TaskIndex.build = staticmethod(build)
    try:
        yield
    finally:
        _index.TaskIndex.build = staticmethod(original)


def _of(own: Path, build: Callable[[list[Path]], dict[str, Any]]) -> dict[str, Any]:
    """The index of lm-eval's folder of tasks, kept or made anew."""
    from lm_eval.tasks._index import Entry, Kind

    key = canon.digest([stamp.version("lm_eval"), _stats(own)])
    found = kept.read(KIND).get(key)
    if found is None:
        made = build([own])
        found = {name: _told(entry, own) for name, entry in made.items()}
        kept.write(KIND, {key: found})
    return {
        name: Entry(name, Kind[kind], own / path if path else None, None, set(tags))
        for name, (kind, path, tags) in found.items()
    }


def _told(entry: Any, own: Path) -> list[Any]:
    path = entry.yaml_path.relative_to(own).as_posix() if entry.yaml_path else None
    return [entry.kind.name, path, sorted(entry.tags)]


def _stats(own: Path) -> list[list[Any]]:
    found: list[list[Any]] = []
    for folder, inner, files in os.walk(own):
        inner.sort()
        for name in sorted(files):
            if name.endswith(".yaml"):
                stat = Path(folder, name).stat()
                found.append([folder, name, stat.st_size, stat.st_mtime_ns])
    return found


@cache
def task_folder() -> Path:
    """Return where the installed lm-eval's own tasks lie; lm-eval is not imported."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations, "called with lm-eval installed"
    return Path(spec.submodule_search_locations[0]) / "tasks"
