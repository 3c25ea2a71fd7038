"""The datasets that `datasets` has prepared: a folder of Arrow files for each dataset,
configuration and revision, which it serves again without a look at them.

So each folder is sealed once the tasks are loaded: the sha256 of its files lies among them, goes
wherever they are copied, and is checked before they are served again. A lock only knows the
documents that are asked; few-shot examples come from these files too.

A cache that can't be written to (staged, mounted read-only in an image) is served from a mirror of
links, since `datasets` writes locks and rewritten documents beside what it reads.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

SEAL = "evalkit.sha256.json"
PLACES = "evalkit.places.json"  # where what was loaded with arguments lies
REWRITTEN = "cache-"  # how the name begins of documents as a task's code made them
# What a damaged folder makes `datasets` raise; pyarrow's errors are among these.
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)


def root() -> Path:
    """Where `datasets` keeps what it has prepared."""
    import datasets.config

    return Path(datasets.config.HF_DATASETS_CACHE)


def mirror() -> None:
    """Where the cache can't be written to, have `datasets` use a temporary folder of links to its
    files from now on; it goes with this process."""
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
    """Where it keeps all that it has prepared of one dataset."""
    from datasets.naming import camelcase_to_snakecase

    *namespace, last = dataset.split("/")
    return root() / "___".join([*namespace, camelcase_to_snakecase(last)])


def find(dataset: str, config: str | None, revision: str, arguments: dict[str, Any]) -> Path | None:
    """The one folder that is prepared of this configuration at exactly this revision, or None.

    `datasets` gives a configuration with `arguments` (data_dir, data_files) a name of its own
    making; where that lies is told by what `remember` wrote.
    """
    if arguments:
        place = _remembered(dataset).get(_key(config, revision, arguments))
        folder = folder_of(dataset) / place if place else None
        return folder if folder is not None and folder.is_dir() else None
    found = [p for p in folder_of(dataset).glob(f"{config or '*'}/*/{revision}") if p.is_dir()]
    return found[0] if len(found) == 1 else None


def remember(
    tables: Any, dataset: str, config: str | None, revision: str, arguments: dict[str, Any]
) -> None:
    """Write down where it lies what was loaded with arguments, so that it is found offline."""
    folders = _folders(tables) if hasattr(tables, "values") else set()
    if not arguments or len(folders) != 1:
        return
    place = folders.pop().relative_to(folder_of(dataset)).as_posix()
    known = _remembered(dataset) | {_key(config, revision, arguments): place}
    with suppress(EvalkitError):
        canon.write_json(folder_of(dataset) / PLACES, known)


def _key(config: str | None, revision: str, arguments: dict[str, Any]) -> str:
    return canon.digest([config, revision, {name: str(arguments[name]) for name in arguments}])


def _remembered(dataset: str) -> dict[str, str]:
    with suppress(EvalkitError, TypeError, ValueError):
        return dict(canon.read_json(folder_of(dataset) / PLACES))
    return {}


def serve(folder: Path, dataset: str, where: str, served: set[Path]) -> Any:
    """The tables in a prepared folder, which is added to `served`; EvalkitError where it is not as
    it was sealed. `where` says in errors what they are for."""
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
    """What `load` has `datasets` serve, from folders that are as they were sealed; they are added
    to `served`. `kept`: below which folder all of them lie.

    Where it fails, a folder that is not so is the reason.
    """
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
    """Write down the digests of what has come into a folder since it was sealed, or all of them;
    one that can't be written to stays as it is."""
    with suppress(EvalkitError):
        known = dict(canon.read_json(folder / SEAL)) if (folder / SEAL).exists() else {}
        new = {p.name: canon.sha256_file(p) for p in _files(folder) if p.name not in known}
        if new:
            canon.write_json(folder / SEAL, known | new)


def check(folder: Path, where: str) -> None:
    """EvalkitError unless every file of a folder is as it was sealed; nothing is said of one that
    never was, nor of documents that a task rewrote and that were deleted: it does so again."""
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


def _files(folder: Path) -> list[Path]:
    """What is to be sealed: whole files, with the description of what they hold."""
    return sorted([*folder.glob("*.arrow"), *folder.glob("dataset_info.json")])


def _damaged(folder: Path, where: str, what: str) -> EvalkitError:
    return EvalkitError(
        f"the cached copy of {where} was altered or is damaged: {what}",
        where=os.fspath(folder),
        fix="delete that folder, and the same command makes it anew (online, or from files that"
        " were fetched before)",
        code=Exit.FAILED,
    )
