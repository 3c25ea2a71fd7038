"""A task's own data: files beside its YAML, in every form that `datasets` takes, by their bytes.

They are looked for from the task folder, so a suite means the same wherever it is run. A source's
name has its files relative to that folder; its revision digests their bytes, and what `datasets`
makes of them is kept under that digest.
"""

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.harness import index
from evalkit.harness.data import cache
from evalkit.inputs.suite import OWN_FILES

_BESIDE = "keep a task's data beside its YAML and name that folder in include_path"


class Arguments(TypedDict, total=False):
    """The arguments of `load_dataset` that name files, the latter by split."""

    data_dir: str
    data_files: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Local:
    """Files as a locked source: its name and revision, and the arguments of `load_dataset`: `path`
    (the name of a loader, or a folder) and those that name the files."""

    repo: str
    revision: str
    path: str
    arguments: Arguments

    @property
    def cache(self) -> Path:
        """Where `datasets` keeps what it prepares of exactly these bytes."""
        return cache.root() / "evalkit-files" / self.revision[7:23]


def is_folder(include_path: Path | None, path: str) -> bool:
    """Whether a dataset's path means a folder and not a repo on the Hub: it is written as one, or
    there is one of that plain name in the suite's task folder."""
    if path.startswith((".", "/", "~")):
        return True
    return include_path is not None and "/" not in path and (include_path / path).is_dir()


def source(include_path: Path | None, path: str, kwargs: Mapping[str, Any]) -> Local:
    """The files that a task names by `path`, `data_dir` and `data_files`, pinned by their bytes.
    Raises EvalkitError with the reason where they are not the suite's own files, or not there."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    _check_no_address(kwargs.get("data_files"))
    if include_path is None:
        what = f"a task loads local files with '{path}' but the suite has no include_path"
        raise EvalkitError(what, fix=_BESIDE)
    packaged = path in _PACKAGED_DATASETS_MODULES
    base = include_path if packaged else _inside(include_path, include_path, path)
    if kwargs.get("data_dir"):
        base = _inside(include_path, base, str(kwargs["data_dir"]))
    files = kwargs.get("data_files")
    if not files and base == include_path and not kwargs.get("data_dir"):
        raise EvalkitError(f"a task's loader '{path}' is given neither data_files nor data_dir")
    given: Arguments = {"data_dir": os.fspath(base)} if kwargs.get("data_dir") else {}
    if not files:
        _check_folder(include_path, base)
        names = [f"{_name(include_path, base)}/"]
        found = _below(base)
    else:
        splits = files if isinstance(files, dict) else {"train": files}
        each = {split: list(_found(include_path, base, value)) for split, value in splits.items()}
        given["data_files"] = {
            split: [os.fspath(file) for _, file in pairs] for split, pairs in each.items()
        }
        names = sorted({name for pairs in each.values() for name, _ in pairs})
        found = [file for pairs in each.values() for _, file in pairs]
    digests = {_name(include_path, file): canon.sha256_file(file) for file in found}
    loader = path if packaged else os.fspath(base)
    if not packaged:
        given.pop("data_dir", None)
    return Local(OWN_FILES + ",".join(names), canon.digest(digests), loader, given)


def _check_no_address(files: Any) -> None:
    for value in _patterns(files):
        if "://" in value:
            raise EvalkitError(
                f"its data lies at an address ({value}), where nothing pins it",
                fix=f"fetch it once; {_BESIDE}",
            )


def of_function(include_path: Path | None, function: Any) -> tuple[str, str]:
    """What a `custom_dataset` is as a locked source: the name and digest of the file that defines
    it. The rows that it makes are pinned one by one, like all others."""
    file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").resolve()
    name = file.name
    for root, shown in ((include_path, ""), (index.task_folder().resolve(), "lm_eval/tasks/")):
        if root is not None and file.is_relative_to(root):
            name = shown + file.relative_to(root).as_posix()
            break
    return OWN_FILES + name, canon.digest({name: canon.sha256_file(file)})


def _patterns(files: Any) -> Iterator[str]:
    """Every name or pattern in `data_files`, however nested."""
    if isinstance(files, dict):
        files = list(files.values())
    if isinstance(files, (list, tuple)):
        for item in files:
            yield from _patterns(item)
    elif files is not None:
        yield str(files)


def _inside(include_path: Path, base: Path, value: str) -> Path:
    """Where a path of a task's YAML leads: a place in the suite's task folder, or EvalkitError."""
    place = Path(os.path.normpath(base / Path(value).expanduser()))
    if not place.is_relative_to(include_path) and place.resolve().is_relative_to(include_path):
        place = place.resolve()
    if place.is_relative_to(include_path):
        return place
    shown = place.name if Path(value).is_absolute() else value
    raise EvalkitError(
        f"its data '{shown}' lies outside the suite's task folder, which is all that is pinned,"
        " staged and seen in a container",
        fix="move it there",
    )


def _found(include_path: Path, base: Path, value: Any) -> Iterator[tuple[str, Path]]:
    """(name as it is written, file) of every file that a split's names and patterns mean."""
    for pattern in _patterns(value):
        place = _inside(include_path, base, pattern)
        name = _name(include_path, place)
        files = [place] if place.is_file() else _matches(include_path, name)
        if not files:
            raise _not_there(include_path, name)
        yield from ((name, file) for file in files)


def _matches(include_path: Path, pattern: str) -> list[Path]:
    found = (path for path in include_path.glob(pattern) if path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _below(base: Path) -> list[Path]:
    found = (path for path in sorted(base.rglob("*")) if path.is_file())
    hidden = (".", "__")
    return [p for p in found if not any(q.startswith(hidden) for q in p.relative_to(base).parts)]


def _check_folder(include_path: Path, base: Path) -> None:
    name = _name(include_path, base)
    if not base.is_dir():
        raise _not_there(include_path, name)
    if any((base / file).is_file() for file in ("dataset_dict.json", "state.json")):
        raise EvalkitError(
            f"its data '{name}' was written by `save_to_disk`, which load_dataset does not read",
            fix=f"name its files: dataset_path: arrow, data_files: {{test: '{name}/test/*.arrow'}}",
        )


def _not_there(include_path: Path, name: str) -> EvalkitError:
    """The error for data that is not where it is looked for; it names where it may be meant."""
    fix = "names are looked for from the suite's include_path, as lm-eval run there does"
    like = [_name(include_path, p) for p in sorted(include_path.rglob(Path(name).name))]
    hint = f"; did you mean {like[0]}?" if like else ""
    return EvalkitError(f"its data '{name}' is not in the suite's task folder", fix=fix + hint)


def _name(include_path: Path, place: Path) -> str:
    return place.relative_to(include_path).as_posix()
