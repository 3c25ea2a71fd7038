"""`import`: results that lm-eval wrote, of whichever version, as a folder that `verify`, `compare`
and `report` read.

What older versions leave out is put where lm-eval 0.4.13 has it (`verify.older`), the model's name
from the folder's where they do not say it. Nothing else is changed and nothing guessed.
The folder stays lm-eval's word, in lm-eval's form: `imported.json` marks it, holds the digests of
the files that it was made from, and names what no such folder can say.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading.folder import Folder, foreign
from evalkit.record.reading.lm_eval import results
from evalkit.record.reading.lm_eval.older import Completing, with_sizes
from evalkit.record.reading.lm_eval.results import PlainResults

SCHEMA = "evalkit/imported/1"
UNKNOWN = {
    "weights": "lm-eval records no digest of the model's files",
    "dataset_revisions": "lm-eval records no revision of a dataset",
    "answers": "there is no journal: the samples are the only word of what was answered",
    "environment": "lm-eval's is free text",
}


def bring_in(source: Path, out: Path) -> Path:
    """Write the newest run in `source` below `out`; the folder's path, or that of an equal one that
    is there. EvalkitError where `source` holds none, or its samples can't be read."""
    with foreign(source):
        return _bring_in(results.find(source), out)


def _bring_in(found: PlainResults, out: Path) -> Path:
    files = found.files()
    model = (
        "".join(c if c.isalnum() or c in "._-" else "_" for c in found.name).strip(".") or "model"
    )
    folder = out / model / f"lm-eval-{canon.digest(files)[7:19]}"
    if (folder / "imported.json").is_file():
        return folder
    canon.make_folder(folder)
    for leaf, path in sorted(found.samples().items()):
        canon.write_atomic(folder / path.name, _lines(found, leaf, path))
    made = with_sizes(found.body) | {"model_name": found.name}
    body = json.dumps(made, indent=2, ensure_ascii=False)
    canon.write_atomic(
        folder / f"results_{found.time}.json", body.encode("utf-8", "backslashreplace")
    )
    version = found.body.get("lm_eval_version")
    told = {
        "schema": SCHEMA,
        "files": files,
        "model": found.name,
        "lm_eval": version or {"unknown": "this version of lm-eval did not say"},
        "unknown": UNKNOWN,
    }
    canon.write_json(folder / "imported.json", told)  # last: its presence means the rest is there
    return folder


def _lines(found: PlainResults, leaf: str, path: Path) -> Iterator[bytes]:
    """A leaf task's samples as 0.4.13 writes them."""
    older = Completing(found.body, leaf)
    for number, raw in Folder(found.folder).lines(path.name):
        try:
            sample = json.loads(raw)
            older.complete(sample)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise EvalkitError(
                f"a sample can't be read: {type(error).__name__}: {error}",
                where=f"{path} line {number:,}", code=Exit.FAILED,
            ) from None  # fmt: skip
        del sample["task"]  # the file's name says it
        text = json.dumps(sample, ensure_ascii=False)
        yield text.encode("utf-8", "backslashreplace") + b"\n"
