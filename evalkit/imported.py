"""`import`: results that lm-eval wrote, of whichever version, as a folder that `verify`, `compare`
and `report` read.

Older versions name neither a sample's filter nor its metrics, nor a group's size, and sometimes not
the model; all that follows from the results, the model's name from the folder's, and is put where
lm-eval 0.4.13 has it. Nothing else is changed and nothing guessed.
The folder stays lm-eval's word, in lm-eval's form: `imported.json` marks it, holds the digests of
the files that it was made from, and names what no such folder can say.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit import canon, plain_results
from evalkit.errors import EvalkitError, Exit
from evalkit.plain_results import PlainResults
from evalkit.verify.folder import Folder

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
    found = plain_results.find(source)
    names = [f"results_{found.time}.json", *sorted(p.name for p in found.samples().values())]
    files = {name: canon.sha256_file(found.folder / name) for name in names}
    model = (
        "".join(c if c.isalnum() or c in "._-" else "_" for c in found.name).strip(".") or "model"
    )
    folder = out / model / f"lm-eval-{canon.digest(files)[7:19]}"
    if (folder / "imported.json").is_file():
        return folder
    canon.make_folder(folder)
    for leaf, path in sorted(found.samples().items()):
        canon.write_atomic(folder / path.name, _lines(found, leaf, path))
    made = _results(found.body) | {"model_name": found.name}
    body = json.dumps(made, indent=2, ensure_ascii=False)
    canon.write_atomic(folder / names[0], body.encode("utf-8", "backslashreplace"))
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
    filters, metrics = _filters(found.body, leaf), _metrics(found.body, leaf)
    seen: Counter[Any] = Counter()
    for number, raw in Folder(found.folder).lines(path.name):
        try:
            sample = json.loads(raw)
            turn = seen[sample["doc_id"]]
            seen[sample["doc_id"]] += 1
            name = sample.get("filter") or filters[turn]
            sample.setdefault("filter", name)
            sample.setdefault("metrics", [m for m in metrics.get(name, []) if m in sample])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise EvalkitError(
                f"a sample can't be read: {type(error).__name__}: {error}",
                where=f"{path} line {number:,}", code=Exit.FAILED,
            ) from None  # fmt: skip
        text = json.dumps(sample, ensure_ascii=False)
        yield text.encode("utf-8", "backslashreplace") + b"\n"


def _filters(results: dict[str, Any], leaf: str) -> list[str]:
    """A leaf task's filters, in the order in which lm-eval writes their samples."""
    config = results.get("configs", {}).get(leaf, {})
    return [each["name"] for each in config.get("filter_list") or []] or ["none"]


def _metrics(results: dict[str, Any], leaf: str) -> dict[str, list[str]]:
    """A leaf task's metrics by filter."""
    found: dict[str, list[str]] = {}
    for key in results["results"].get(leaf, {}):
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            found.setdefault(name, []).append(metric)
    return found


def _results(results: dict[str, Any]) -> dict[str, Any]:
    """The results with each group's size, which older versions leave out."""
    children, counts = results.get("group_subtasks") or {}, results.get("n-samples") or {}
    for name in children:
        entry = results["results"].get(name)
        if isinstance(entry, dict):
            leaves = _below(name, children)
            entry.setdefault("sample_len", sum(counts[n]["effective"] for n in leaves & {*counts}))
    return results


def _below(name: str, children: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    pending = [name]
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += children.get(each, [])
    return found
