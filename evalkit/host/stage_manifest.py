"""The manifest of a stage, a folder with everything that a run without network needs.

`stage.json`, written last, has the size and sha256 of every file in the stage's Hugging Face home,
and of models elsewhere. Files are checked against it on compute nodes, so nothing heavy is
imported.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import evalkit
from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import now
from evalkit.inputs import hub
from evalkit.inputs.types import FileEntry

NAME = "stage.json"
SCHEMA = "evalkit/stage/1"
HOME = "hf"  # the Hugging Face home in it
SMALL = 1 << 20  # bytes: a quick check reads files up to this size, too
READERS = 8  # files that are read at once


class StagedModel(TypedDict):
    """A staged model. `revision` is None for a folder; `folder` is None for one in the stage."""

    revision: str | None
    folder: str | None
    licence: str
    files: dict[str, FileEntry]


class StagedDataset(TypedDict):
    """A staged dataset."""

    revision: str
    licence: str


class StagedSuite(TypedDict):
    """A staged suite."""

    datasets: dict[str, StagedDataset]


class Manifest(TypedDict):
    """The content of stage.json; see schemas/stage.schema.json."""

    schema: str
    created: str
    evalkit: str
    models: dict[str, StagedModel]
    suites: dict[str, StagedSuite]
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Checked:
    """The number of checked files, their bytes, and how many bytes were read."""

    files: int
    size: int
    read: int


def home(folder: Path) -> Path:
    """Return the Hugging Face home in a stage."""
    return folder.absolute() / HOME


def fetching(folder: Path) -> dict[str, str | None]:
    """Return the variables that make the Hub's client download into the stage; None: unset it. They
    must be set before the client is imported. The token and the client's own cache stay where they
    are."""
    others = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE")
    return {
        **dict.fromkeys(others),
        "HF_HOME": os.fspath(home(folder)),
        "HF_TOKEN_PATH": os.fspath(hub.token_path(os.environ)),
        "HF_XET_CACHE": os.environ.get("HF_XET_CACHE") or os.fspath(hub.home(os.environ) / "xet"),
        "TQDM_DISABLE": "1",  # evalkit shows the progress itself
    }


def write(folder: Path, models: dict[str, StagedModel], suites: dict[str, StagedSuite]) -> Manifest:
    """Digest the files of a stage, write its manifest and return it. `models` and `suites` are
    added to those of an earlier manifest."""
    known = read(folder) if (folder / NAME).is_file() else None
    names = sorted(_names(folder))
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(lambda name: canon.sha256_file(folder / name), names))
    sizes = [(folder / name).stat().st_size for name in names]
    body: Manifest = {
        "schema": SCHEMA,
        "created": now(),
        "evalkit": evalkit.__version__,
        "models": (known["models"] if known else {}) | models,
        "suites": (known["suites"] if known else {}) | suites,
        "files": {
            name: {"size": size, "sha256": digest}
            for name, size, digest in zip(names, sizes, digests, strict=True)
        },
    }
    problems = schema.check("stage", body)
    assert not problems, f"the manifest does not fit its schema: {problems[:3]}"
    canon.write_json(folder / NAME, body)
    return body


def _names(folder: Path) -> Iterator[str]:
    """Yield the files that a run reads: blobs by the names that link to them, no lock, no part."""
    for path in (folder / HOME).rglob("*"):
        inside = path.relative_to(folder)
        other = path.suffix in (".lock", ".incomplete") or {".locks", "blobs"} & {*inside.parts}
        if path.is_file() and not other:
            yield inside.as_posix()


def read(folder: Path) -> Manifest:
    """Read a stage's manifest; EvalkitError where there is none or it is not valid."""
    path = folder / NAME
    if not path.is_file():
        raise EvalkitError(
            "there is no stage here, or it is not whole yet",
            where=str(folder),
            fix="run `evalkit stage` (again: what was fetched is kept); in a container, is it"
            " bound?",
            code=Exit.MISSING,
        )
    body: Manifest = canon.read_json(path)
    problems = schema.check("stage", body)
    if problems:
        raise EvalkitError(f"{NAME} is not a manifest: {problems[0]}", where=str(folder))
    return body


def check(folder: Path, *, full: bool = False) -> Checked:
    """Check a stage against its manifest: the size of every file, and the sha256 of small ones, or
    of all with `full`. EvalkitError names the first that is missing (3) or altered (1)."""
    body = read(folder)
    wanted = {folder / name: entry for name, entry in body["files"].items()}
    for model in body["models"].values():
        if model["folder"] is not None:
            place = Path(model["folder"])
            wanted |= {place / name: entry for name, entry in model["files"].items()}
    small = [path for path, entry in wanted.items() if full or entry["size"] <= SMALL]
    if missing := [path for path in wanted if not path.is_file()]:
        raise _missing(missing)
    altered = {path for path, entry in wanted.items() if path.stat().st_size != entry["size"]}
    with ThreadPoolExecutor(READERS) as pool:
        for path, digest in zip(small, pool.map(canon.sha256_file, small), strict=True):
            if digest != wanted[path]["sha256"]:
                altered.add(path)
    if altered:
        raise _altered(sorted(altered))
    total = sum(entry["size"] for entry in wanted.values())
    return Checked(len(wanted), total, sum(wanted[path]["size"] for path in small))


def _missing(missing: list[Path]) -> EvalkitError:
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    return EvalkitError(
        f"the stage lacks {missing[0].name}{more}",
        where=os.fspath(missing[0].parent),
        fix="stage again; in a container, is everything bound?",
        code=Exit.MISSING,
    )


def _altered(altered: list[Path]) -> EvalkitError:
    more = f" and {len(altered) - 1} more files" if len(altered) > 1 else ""
    return EvalkitError(
        f"{altered[0].name}{more} in the stage is not what was staged",
        where=os.fspath(altered[0].resolve()),
        fix="delete it and stage again",
        code=Exit.FAILED,
    )
