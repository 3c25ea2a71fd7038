"""The data a suite is locked to, and nothing else.

lm-eval takes whatever the Hub has now, `datasets` without a Hub the newest revision that it has
cached, and a folder of the dataset's name in the working directory replaces it. Inside
`pinned(...)` each dataset is loaded at the lock's revision, from an undamaged prepared cache where
there is one, and checked to be it.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.data import cache, code, local
from evalkit.harness.data.local import Local
from evalkit.inputs import files, hub

Loader = Callable[..., Any]


@dataclass
class Pins:
    """The revisions to serve, by repo; any other repo is an error unless `resolve` (locking) turns
    it into its current commit. `floating`: repos of which the lock pins the rows only. `used` fills
    with what was served, `folders` with where that lies. `task`: the member being loaded, for
    errors."""

    revisions: dict[str, str]
    include_path: Path | None = None
    offline: bool = False
    floating: Set[str] = frozenset()
    resolve: Callable[[str], str] | None = None
    served: Callable[[], None] = lambda: None  # told of every dataset that was loaded
    task: str = ""
    used: dict[str, str] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)
    files: dict[str, Local] = field(default_factory=dict)

    def revision(self, repo: str) -> str:
        """The commit that `repo` is pinned to."""
        if repo in self.floating and repo not in self.revisions:
            self.revisions[repo] = standing_in(repo, offline=self.offline)
        if repo not in self.revisions:
            if self.resolve is None:
                raise EvalkitError(
                    f"dataset {repo} is not in the suite's lock",
                    fix="refresh the lock with `evalkit lock SUITE`",
                    code=Exit.FAILED,
                )
            self.revisions[repo] = self.resolve(repo)
        self.used[repo] = self.revisions[repo]
        return self.revisions[repo]

    def hold(self, repo: str, revision: str) -> None:
        """See that the suite's own data is what the lock pins; locking pins what there is."""
        if self.resolve is not None:
            self.revisions[repo] = revision
        if self.revision(repo) != revision:
            raise EvalkitError(
                f"{repo} is not the data that the suite is locked to",
                fix="restore the files or refresh the lock with `evalkit lock SUITE`",
                code=Exit.FAILED,
            )

    def local(self, path: str, kwargs: Mapping[str, Any]) -> Local:
        """The files that a task names, read once however often they are asked for."""
        key = canon.dumps([path, str(kwargs.get("data_dir")), str(kwargs.get("data_files"))])
        if key not in self.files:
            try:
                self.files[key] = local.source(self.include_path, path, kwargs)
            except EvalkitError as error:
                raise EvalkitError(f"task '{self.task}': {error.what}", fix=error.fix) from None
        return self.files[key]

    def named(self, dataset: str, config: str | None = None) -> str:
        """A dataset, its configuration and what it is for, in words."""
        shown = f"dataset {dataset}{f' ({config})' if config else ''}"
        return f"{shown} of task '{self.task}'" if self.task else shown


class _NothingElse:
    """Replaces what `datasets` falls back on when the Hub does not answer: what it has cached of a
    dataset, at whatever revision. The Hub's error is raised instead."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def get_module(self) -> Any:
        """Serve nothing."""
        raise FileNotFoundError("only the pinned revision will do")


@contextmanager
def pinned(pins: Pins) -> Iterator[None]:
    """Within the block, `datasets.load_dataset` serves only what `pins` allows."""
    import datasets
    from datasets import load

    cache.mirror()
    made_by = code.identity(pins.include_path)
    original, fallback = datasets.load_dataset, load.CachedDatasetModuleFactory

    def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> Any:
        loaded = _load(original, pins, path, name, kwargs)
        pins.served()
        return code.mark(loaded, made_by)

    datasets.load_dataset, load.CachedDatasetModuleFactory = load_dataset, _NothingElse
    try:
        yield
    finally:
        datasets.load_dataset, load.CachedDatasetModuleFactory = original, fallback


def _load(
    original: Loader, pins: Pins, path: str, name: str | None, kwargs: Mapping[str, Any]
) -> Any:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    kwargs = {key: value for key, value in kwargs.items() if key != "revision"}
    if path in _PACKAGED_DATASETS_MODULES or local.is_folder(pins.include_path, path):
        return _load_files(original, pins, path, name, kwargs)
    if Path(path).exists():
        raise EvalkitError(
            f"a file or folder named '{path}' in the working directory would replace the dataset"
            " of that name",
            where=os.fspath(Path.cwd()),
            fix="run from another folder or rename it",
        )
    revision = pins.revision(path)
    prepared = cache.find(path, name, revision, kwargs)
    if prepared is not None:
        return cache.serve(prepared, path, pins.named(path, name), pins.folders)
    loaded = _download(original, pins, path, name, revision, kwargs)
    _check_revision(loaded, path, revision)
    cache.remember(loaded, path, name, revision, kwargs)
    return loaded


def _download(
    original: Loader,
    pins: Pins,
    path: str,
    name: str | None,
    revision: str,
    kwargs: Mapping[str, Any],
) -> Any:
    if pins.offline:
        raise _missing(pins, path, name, revision, "the run is offline")
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError

    def load() -> Any:
        return original(path, name, revision=revision, **kwargs)

    named, kept = pins.named(path, name), cache.folder_of(path)
    try:
        with files.checked_downloads():
            return hub.patiently(named, lambda: cache.loaded(load, kept, named, pins.folders))
    except (GatedRepoError, DatasetNotFoundError) as error:
        raise EvalkitError(
            f"the Hub does not serve dataset {path} at {revision} to you",
            fix="accept its terms on the Hub and set HF_TOKEN, or refresh the suite's lock"
            f" ({type(error).__name__})",
            code=Exit.MISSING,
        ) from None
    except hub.unreachable() as error:
        raise _missing(pins, path, name, revision, hub.reason(error)) from None
    except RuntimeError as error:  # what `datasets` says of a repo that is a program
        reason = str(error).split("\n")[0]
        raise EvalkitError(
            f"{named} can't be loaded: {reason}",
            fix="find a copy of it as data files (a parquet branch, say), or keep its rows beside"
            " the task",
            code=Exit.MISSING,
        ) from None


def _missing(pins: Pins, path: str, name: str | None, revision: str, reason: str) -> EvalkitError:
    again = "run the same command once online with the same HF_HOME"
    if not pins.offline:
        again = (
            "run the same command again, what was fetched is kept, or check HF_ENDPOINT, HF_TOKEN"
            " and the network"
        )
    return EvalkitError(
        f"dataset {path}{f' ({name})' if name else ''} at revision {revision} is not in the cache"
        f" and {reason}",
        where=f"task '{pins.task}', {cache.root()}" if pins.task else os.fspath(cache.root()),
        fix=again,
        code=Exit.MISSING,
    )


def _check_revision(loaded: Any, repo: str, revision: str) -> None:
    """EvalkitError unless the prepared files of `loaded` lie under the asked-for commit."""
    tables = loaded.values() if hasattr(loaded, "values") else [loaded]
    for table in tables:
        for entry in table.cache_files:
            commits = re.findall(r"/([0-9a-f]{40})/", entry["filename"])
            if commits != [revision]:
                got = commits[-1] if commits else "an unknown revision"
                raise EvalkitError(
                    f"dataset {repo} is pinned to {revision} but the cache served {got}",
                    where=os.fspath(cache.root()),
                    fix="delete what the cache has of it, and the same command fetches it again",
                    code=Exit.MISSING,
                )


def _load_files(
    original: Loader, pins: Pins, path: str, name: str | None, kwargs: Mapping[str, Any]
) -> Any:
    """Serve a task's own files: no Hub is asked, their digest must be the locked one."""
    files = pins.local(path, kwargs)
    pins.hold(files.repo, files.revision)
    rest = {key: value for key, value in kwargs.items() if key not in ("data_files", "data_dir")}

    def load() -> Any:
        return original(files.path, name, **rest, **files.arguments, cache_dir=str(files.cache))

    return cache.loaded(load, files.cache, pins.named(files.repo), pins.folders)


def current(repo: str) -> str:
    """The commit that the Hub has now; EvalkitError (3) where it does not say."""
    from huggingface_hub import HfApi

    try:
        return str(hub.patiently(f"dataset {repo}", lambda: HfApi().dataset_info(repo)).sha)
    except hub.unreachable() as error:
        raise not_told(repo, error) from None


def not_told(repo: str, error: Exception) -> EvalkitError:
    """The error for a dataset of which the Hub says nothing."""
    return EvalkitError(
        f"can't ask the Hub about dataset {repo}: {hub.reason(error)}",
        fix=f"check its name, HF_ENDPOINT and the network ({type(error).__name__})",
        code=Exit.MISSING,
    )


def standing_in(repo: str, *, offline: bool) -> str:
    """The commit of a dataset whose revision the lock does not know."""
    prepared = {path.name for path in cache.folder_of(repo).glob("*/*/" + "[0-9a-f]" * 40)}
    if len(prepared) == 1:
        return prepared.pop()
    if not offline:
        return current(repo)
    raise EvalkitError(
        f"the lock knows no revision of dataset {repo}, and"
        f" {f'{len(prepared)} are' if prepared else 'none is'} prepared here",
        fix="run the same command once online with the same HF_HOME",
        code=Exit.MISSING,
    )
