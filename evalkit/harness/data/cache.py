"""The cache of the library `datasets`, which loads its Arrow files again without checking them.

So each folder is sealed once the tasks are loaded (a file in it holds the sha256 of the others),
and checked before it is loaded again. A cache that can't be written to is read through a folder of
links, since `datasets` writes locks and rewritten documents beside the files.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

SEAL = "evalkit.sha256.json"
PLACES = "evalkit.places.json"  # the folders of what was loaded with arguments
REWRITTEN = "cache-"  # the first part of the name of documents that a task's code rewrote
# The errors of `datasets` for a damaged folder; pyarrow's are among them.
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)


def root() -> Path:
    """Return the folder of all prepared datasets."""
    import datasets.config

    return Path(datasets.config.HF_DATASETS_CACHE)


def mirror() -> None:
    """Where the cache can't be written to, let `datasets` use a temporary folder of links to its
    files. The folder is removed when this process ends."""
    import datasets.config

    shared = root()
    if not shared.is_dir():
        _make(shared)
    if os.access(shared, os.W_OK):
        return
    own = Path(tempfile.mkdtemp(prefix="evalkit-datasets-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    for name, _, files in os.walk(shared):
        folder = own / Path(name).relative_to(shared)
        folder.mkdir(exist_ok=True)
        for file in files:
            if not file.endswith(".lock"):
                (folder / file).symlink_to(Path(name, file).absolute())
    datasets.config.HF_DATASETS_CACHE = own


def _make(shared: Path) -> None:
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalkitError(
            f"the cache of datasets can't be made: {error.strerror}",
            where=os.fspath(shared),
            fix="set HF_HOME to a folder that you can write to",
            code=Exit.MISSING,
        ) from None


def folder_of(dataset: str) -> Path:
    """Return the folder of all that is prepared of one dataset."""
    from datasets.naming import camelcase_to_snakecase

    *namespace, last = dataset.split("/")
    return root() / "___".join([*namespace, camelcase_to_snakecase(last)])


def find(
    dataset: str, config: str | None, revision: str, arguments: Mapping[str, object]
) -> Path | None:
    """Return the one prepared folder of a configuration at exactly this revision, or None. One with
    `arguments` (data_dir, data_files), for which `datasets` invents a name, is known from
    `remember`."""
    if arguments:
        place = _remembered(dataset).get(_key(config, revision, arguments))
        folder = folder_of(dataset) / place if place else None
        return folder if folder is not None and folder.is_dir() else None
    prepared = [p for p in folder_of(dataset).glob(f"{config or '*'}/*/{revision}") if p.is_dir()]
    return prepared[0] if len(prepared) == 1 else None


def remember(
    tables: Any, dataset: str, config: str | None, revision: str, arguments: Mapping[str, object]
) -> None:
    """Note the folder of what was loaded with arguments, so that it is found offline."""
    folders = _folders(tables) if hasattr(tables, "values") else set()
    if not arguments or len(folders) != 1:
        return
    place = folders.pop().relative_to(folder_of(dataset)).as_posix()
    known = _remembered(dataset) | {_key(config, revision, arguments): place}
    with suppress(EvalkitError):
        canon.write_json(folder_of(dataset) / PLACES, known)


def _key(config: str | None, revision: str, arguments: Mapping[str, object]) -> str:
    return canon.digest([config, revision, {name: str(arguments[name]) for name in arguments}])


def _remembered(dataset: str) -> dict[str, str]:
    with suppress(EvalkitError, TypeError, ValueError):
        return dict(canon.read_json(folder_of(dataset) / PLACES))
    return {}


def serve(folder: Path, dataset: str, where: str, served: set[Path]) -> Any:
    """Return the tables in a prepared folder, and add it to `served`. EvalkitError where the folder
    differs from its seal; `where` names the dataset in errors."""
    from datasets.packaged_modules.cache.cache import Cache

    config, version, revision = folder.parts[-3:]
    name = dataset.split("/")[-1]
    check(folder, where)
    served.add(folder)
    try:
        return Cache(
            repo_id=dataset, dataset_name=name, config_name=config, version=version, hash=revision
        ).as_dataset()
    except DAMAGE as error:
        raise _damaged(folder, where, str(error).split("\n")[0]) from None


def loaded(load: Callable[[], Any], kept: Path, where: str, served: set[Path]) -> Any:
    """Call `load` and return its tables, and add their folders, which are below `kept`, to
    `served`. EvalkitError where a folder differs from its seal, also where `load` fails for it."""
    try:
        tables = load()
    except DAMAGE:
        for sealed in sorted(kept.rglob(SEAL)):
            check(sealed.parent, where)
        raise
    for folder in _folders(tables):
        check(folder, where)
        served.add(folder)
    return tables


def _folders(tables: Any) -> set[Path]:
    each = tables.values() if hasattr(tables, "values") else [tables]
    return {Path(entry["filename"]).parent for table in each for entry in table.cache_files}


def seal(folder: Path) -> None:
    """Write the digests that a folder's seal lacks, if the folder can be written to."""
    with suppress(EvalkitError):
        known = dict(canon.read_json(folder / SEAL)) if (folder / SEAL).exists() else {}
        files = sorted([*folder.glob("*.arrow"), *folder.glob("dataset_info.json")])
        new = {p.name: canon.sha256_file(p) for p in files if p.name not in known}
        if new:
            canon.write_json(folder / SEAL, known | new)


def check(folder: Path, where: str) -> None:
    """Raise EvalkitError where a file differs from its folder's seal. A folder without a seal
    passes, and so do deleted documents that a task's code rewrites."""
    if not (folder / SEAL).exists():
        return
    try:
        digests = dict(canon.read_json(folder / SEAL))
    except (EvalkitError, TypeError, ValueError):
        raise _damaged(folder, where, f"{SEAL} can't be read") from None
    for name in sorted(digests):
        if not (folder / name).is_file():
            if name.startswith(REWRITTEN):
                continue
            raise _damaged(folder, where, f"{name} is gone")
        if canon.sha256_file(folder / name) != digests[name]:
            raise _damaged(folder, where, f"{name} is not what it was")


def _damaged(folder: Path, where: str, what: str) -> EvalkitError:
    return EvalkitError(
        f"the cached copy of {where} was altered or is damaged: {what}",
        where=os.fspath(folder),
        fix="delete that folder, and the same command makes it anew (online, or from files that"
        " were fetched before)",
        code=Exit.FAILED,
    )
