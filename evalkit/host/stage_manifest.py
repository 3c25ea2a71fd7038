"""A stage: a folder with everything that a run without network needs, and its manifest.

It holds a Hugging Face home (models and datasets at their pinned revisions) and, written last,
`stage.json` with the size and sha256 of every file in it, and of those of models that lie elsewhere
on the same file system. Here it is written and held against the files; nothing is fetched, and
nothing heavy is imported: compute nodes do this before a GPU's time is spent.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evalkit
from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import now
from evalkit.inputs import hub

NAME = "stage.json"
SCHEMA = "evalkit/stage/1"
HOME = "hf"  # the Hugging Face home in it
SMALL = 1 << 20  # bytes of a file that a quick check reads as well
READERS = 8  # files that are read at once


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check looked at: how many files of how many bytes, and how many bytes it read."""

    files: int
    size: int
    read: int


def home(folder: Path) -> Path:
    """The Hugging Face home in a stage."""
    return folder.absolute() / HOME


def fetching(folder: Path) -> dict[str, str | None]:
    """What the environment must say before anything of the Hub's is imported, so that what is
    fetched comes into the stage; None is for what must not be set.

    The token stays where it is, and so does what the client keeps for itself.
    """
    others = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE")
    return {
        **dict.fromkeys(others),
        "HF_HOME": os.fspath(home(folder)),
        "HF_TOKEN_PATH": os.fspath(hub.token_path(os.environ)),
        "HF_XET_CACHE": os.environ.get("HF_XET_CACHE") or os.fspath(hub.home(os.environ) / "xet"),
        "TQDM_DISABLE": "1",  # what comes is shown otherwise
    }


def write(folder: Path, models: dict[str, Any], suites: dict[str, Any]) -> dict[str, Any]:
    """Digest what lies in a stage and write its manifest, which is returned.

    `models` and `suites` come beside those of a manifest that is there.
    """
    known = read(folder) if (folder / NAME).is_file() else {"models": {}, "suites": {}}
    names = sorted(_names(folder))
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(lambda name: canon.sha256_file(folder / name), names))
    sizes = [(folder / name).stat().st_size for name in names]
    body = {
        "schema": SCHEMA,
        "created": now(),
        "evalkit": evalkit.__version__,
        "models": known["models"] | models,
        "suites": known["suites"] | suites,
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
    """What a run reads of a stage: a blob by the names that lead to it, no lock, nothing torn."""
    for path in (folder / HOME).rglob("*"):
        inside = path.relative_to(folder)
        other = path.suffix in (".lock", ".incomplete") or {".locks", "blobs"} & {*inside.parts}
        if path.is_file() and not other:
            yield inside.as_posix()


def read(folder: Path) -> dict[str, Any]:
    """A stage's manifest; EvalkitError where there is none that is whole."""
    path = folder / NAME
    if not path.is_file():
        raise EvalkitError(
            "there is no stage here, or it is not whole yet",
            where=str(folder),
            fix="run `evalkit stage` (again: what was fetched is kept); in a container, is it"
            " bound?",
            code=Exit.MISSING,
        )
    body = canon.read_json(path)
    problems = schema.check("stage", body)
    if problems:
        raise EvalkitError(f"{NAME} is not a manifest: {problems[0]}", where=str(folder))
    return dict(body)


def check(folder: Path, *, full: bool = False) -> Checked:
    """Hold a stage against its manifest: every file's size, and the sha256 of the small ones, or
    of all where it is `full`. EvalkitError names the first that is gone (3) or altered (1)."""
    body = read(folder)
    wanted = {folder / name: entry for name, entry in body["files"].items()}
    for model in body["models"].values():
        if model["folder"] is not None:
            place = Path(model["folder"])
            wanted |= {place / name: entry for name, entry in model["files"].items()}
    small = [path for path, entry in wanted.items() if full or entry["size"] <= SMALL]
    gone = [path for path in wanted if not path.is_file()]
    if gone:
        raise _gone(folder, gone)
    altered = {path for path, entry in wanted.items() if path.stat().st_size != entry["size"]}
    with ThreadPoolExecutor(READERS) as pool:
        for path, found in zip(small, pool.map(canon.sha256_file, small), strict=True):
            if found != wanted[path]["sha256"]:
                altered.add(path)
    if altered:
        raise _altered(folder, sorted(altered))
    total = sum(entry["size"] for entry in wanted.values())
    return Checked(len(wanted), total, sum(wanted[path]["size"] for path in small))


def _gone(folder: Path, gone: list[Path]) -> EvalkitError:
    more = f" and {len(gone) - 1} more files" if len(gone) > 1 else ""
    return EvalkitError(
        f"the stage lacks {gone[0].name}{more}",
        where=os.fspath(gone[0].parent),
        fix="stage again; in a container, is everything bound?",
        code=Exit.MISSING,
    )


def _altered(folder: Path, altered: list[Path]) -> EvalkitError:
    more = f" and {len(altered) - 1} more files" if len(altered) > 1 else ""
    return EvalkitError(
        f"{altered[0].name}{more} in the stage is not what was staged",
        where=os.fspath(altered[0].resolve()),
        fix="delete it and stage again",
        code=Exit.FAILED,
    )
