"""The data a suite is locked to, and nothing else.

lm-eval asks `datasets.load_dataset` for whatever the Hub has now; when the Hub can't be reached,
`datasets` serves the newest revision it has cached, even if another was asked for, and a folder of
the dataset's name in the working directory silently replaces it. Inside `pinned(...)` each of these
is refused: every dataset is loaded at the lock's revision, from the prepared cache of exactly that
revision where there is one, and what was loaded is checked to be it.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit import canon, hub
from evalkit.errors import EvalkitError, Exit

Loader = Callable[..., Any]


@dataclass
class Source:
    """Which dataset a `load_dataset` call meant, and at which revision it was served."""

    repo: str
    revision: str


@dataclass
class Pins:
    """The revisions to serve, by repo; a repo without one is an error unless `resolve` is set.

    `resolve` (locking) turns a repo into its current commit. `used` fills with what was served.
    """

    revisions: dict[str, str]
    include_path: Path | None = None
    offline: bool = False
    resolve: Callable[[str], str] | None = None
    served: Callable[[], None] = lambda: None  # told of every dataset that was loaded
    used: dict[str, str] = field(default_factory=dict)

    def revision(self, repo: str) -> str:
        """The commit that `repo` is pinned to."""
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


@contextmanager
def pinned(pins: Pins) -> Iterator[None]:
    """Within the block, `datasets.load_dataset` serves only what `pins` allows."""
    import datasets

    original = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> Any:
        loaded = _load(original, pins, path, name, kwargs)
        pins.served()
        return loaded

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = original


def _load(original: Loader, pins: Pins, path: str, name: str | None, kwargs: dict[str, Any]) -> Any:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    kwargs = {key: value for key, value in kwargs.items() if key != "revision"}
    if path in _PACKAGED_DATASETS_MODULES:
        return _load_files(original, pins, path, name, kwargs)
    if Path(path).exists():
        raise EvalkitError(
            f"a file or folder named '{path}' in the working directory would replace the dataset"
            " of that name",
            where=os.fspath(Path.cwd()),
            fix="run from another folder or rename it",
        )
    revision = pins.revision(path)
    prepared = _prepared(path, name, revision) if not kwargs else None
    if prepared is not None:
        return prepared
    loaded = _download(original, pins, path, name, revision, kwargs)
    _check_revision(loaded, path, revision)
    return loaded


def _download(
    original: Loader,
    pins: Pins,
    path: str,
    name: str | None,
    revision: str,
    kwargs: dict[str, Any],
) -> Any:
    missing = EvalkitError(
        f"dataset {path}{f' ({name})' if name else ''} at revision {revision} is not in the cache"
        + (" and the run is offline" if pins.offline else " and the Hub can't be reached"),
        where=_cache(),
        fix="run once online with the same HF_HOME, or check HF_ENDPOINT and the network",
        code=Exit.MISSING,
    )
    if pins.offline:
        raise missing
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError

    try:
        return original(path, name, revision=revision, **kwargs)
    except (GatedRepoError, DatasetNotFoundError) as error:
        raise EvalkitError(
            f"the Hub does not serve dataset {path} at {revision} to you",
            fix="accept its terms on the Hub and set HF_TOKEN, or refresh the suite's lock"
            f" ({type(error).__name__})",
            code=Exit.MISSING,
        ) from None
    except hub.unreachable():
        raise missing from None
    except ValueError as error:  # what `datasets` says when only another config is cached
        if "Couldn't find cache" in str(error):
            raise missing from None
        raise


def _cache() -> str:
    import datasets.config

    return str(datasets.config.HF_DATASETS_CACHE)


def _prepared(path: str, name: str | None, revision: str) -> Any:
    """The prepared Arrow tables of exactly this revision, or None when they aren't there."""
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *namespace, last = path.split("/")
    folder = "___".join([*namespace, camelcase_to_snakecase(last)])
    root = Path(_cache()) / folder
    found = [p for p in root.glob(f"{name or '*'}/*/{revision}") if p.is_dir()]
    found = [p for p in found if not p.name.endswith(".incomplete")]
    if len(found) != 1:
        return None
    config, version, _ = found[0].parts[-3:]
    builder = Cache(
        repo_id=path, dataset_name=last, config_name=config, version=version, hash=revision
    )
    return builder.as_dataset()


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
                    where=_cache(),
                    fix="the Hub could not be asked for the pinned one: go online once",
                    code=Exit.MISSING,
                )


def file_source(
    include_path: Path | None, data_files: Any, where: str
) -> tuple[dict[str, str], Source]:
    """Absolute paths of a task's own data files, and what they are as a locked source.

    The source's name lists the files relative to the suite's task folder; its revision digests
    their bytes.
    """
    if include_path is None or not data_files:
        raise EvalkitError(
            f"a task loads local files with '{where}' but the suite has no include_path",
            fix="keep a task's data beside its YAML and name that folder in include_path",
        )
    named = data_files if isinstance(data_files, dict) else {"train": data_files}
    resolved: dict[str, str] = {}
    digests: dict[str, str] = {}
    for split, value in sorted(named.items()):
        file = (include_path / str(value)).resolve()
        if not file.is_relative_to(include_path) or not file.is_file():
            raise EvalkitError(f"data file '{value}' is not in the suite's task folder")
        resolved[split] = os.fspath(file)
        digests[str(value)] = canon.sha256_file(file)
    return resolved, Source("files:" + ",".join(sorted(digests)), canon.digest(digests))


def _load_files(
    original: Loader, pins: Pins, path: str, name: str | None, kwargs: dict[str, Any]
) -> Any:
    """Serve a task's own files: no Hub is asked, their digest must be the locked one."""
    resolved, source = file_source(pins.include_path, kwargs.pop("data_files", None), path)
    if pins.resolve is not None:
        pins.revisions[source.repo] = source.revision
    if pins.revision(source.repo) != source.revision:
        raise EvalkitError(
            f"{source.repo} is not the data that the suite is locked to",
            fix="restore the files or refresh the lock with `evalkit lock SUITE`",
            code=Exit.FAILED,
        )
    return original(path, name, data_files=resolved, **kwargs)
