"""A plain lm-eval results folder with samples, as `lm_eval --output_path DIR --log_samples` leaves
it: results_<time>.json and a samples_<task>_<time>.jsonl a leaf task.

Only found and parsed here. Files of other times in the same folder belong to other runs and are
left alone; nothing is guessed where the samples are missing.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.folder import Folder, MiB
from evalkit.record.reading.lm_eval.older import Completing

MAX_RESULTS = 256 * MiB
_TIME = re.compile(r"results_(.+)\.json")


@dataclass(frozen=True, slots=True)
class PlainResults:
    """One lm-eval run: its results file's content and where its samples are."""

    folder: Path
    time: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.body.get("model_name") or self.folder.name)

    def documents(self) -> Iterator[Document]:
        """Every leaf task's documents by doc_id, each with a sample a filter."""
        for leaf, path in sorted(self.samples().items()):
            by_id: dict[int, list[dict[str, Any]]] = {}
            older = Completing(self.body, leaf)
            for number, raw in Folder(self.folder).lines(path.name):
                sample = _sample(older, raw, f"{path.name} line {number:,}")
                by_id.setdefault(sample["doc_id"], []).append(sample)
            for doc_id in sorted(by_id):
                yield Document(leaf, doc_id, by_id[doc_id])

    def files(self) -> dict[str, str]:
        """The sha256 of its results file and of each samples file, by name."""
        names = [f"results_{self.time}.json", *sorted(p.name for p in self.samples().values())]
        return {name: canon.sha256_file(Folder(self.folder).path(name)) for name in names}

    def samples(self) -> dict[str, Path]:
        """The samples file of each leaf task that has one."""
        suffix = f"_{self.time}.jsonl"
        found = self.folder.glob(f"samples_*{suffix}")
        return {path.name.removeprefix("samples_").removesuffix(suffix): path for path in found}


def find(path: Path) -> PlainResults:
    """The newest lm-eval run in a folder (or one model's folder right below it), or the one whose
    results file `path` is; EvalkitError where there is none, several models', or no samples."""
    if path.is_file():
        candidates = [path]
    elif path.is_dir():
        candidates = list(path.glob("results_*.json")) or list(path.glob("*/results_*.json"))
    else:
        raise EvalkitError("there is no such run", where=str(path), code=Exit.MISSING)
    if not candidates:
        raise EvalkitError(
            "neither record.json nor lm-eval's results_*.json is here", where=str(path),
            fix="give a run's folder, or what lm_eval --output_path wrote", code=Exit.MISSING,
        )  # fmt: skip
    if len({file.parent for file in candidates}) > 1:
        names = ", ".join(sorted(file.parent.name for file in candidates)[:6])
        raise EvalkitError("several models' results are here", where=str(path), fix=f"name {names}")
    newest = max(candidates, key=lambda file: file.name)
    time = _TIME.fullmatch(newest.name)
    body = Folder(newest.parent).read(newest.name, MAX_RESULTS)
    found = PlainResults(newest.parent, time[1] if time else "", _results(body, newest))
    if not found.samples():
        raise EvalkitError(
            "these results have no samples, and without them nothing can be paired",
            where=str(newest), fix="run lm_eval with --log_samples", code=Exit.MISSING,
        )  # fmt: skip
    return found


def _results(data: bytes, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(data)
        usable = isinstance(body["results"], dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise EvalkitError("this is not a results file of lm-eval", where=str(path))
    return dict(body)


def _sample(older: Completing, raw: bytes, where: str) -> dict[str, Any]:
    """A line with what a record's samples hold."""
    try:
        sample: dict[str, Any] = json.loads(raw)
        older.complete(sample)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"a sample can't be read: {type(error).__name__}: {error}"
        raise EvalkitError(what, where=where) from None
    missing = [n for n in ("doc_hash", "target_hash", "prompt_hash", "resps") if n not in sample]
    if missing or not isinstance(sample["doc_id"], int):
        raise EvalkitError(f"a sample has no usable {', '.join(missing) or 'doc_id'}", where=where)
    return sample
