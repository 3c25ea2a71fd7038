"""Results folders of lm-eval with samples (`lm_eval --output_path DIR --log_samples`).

What older versions leave out (a sample's filter and metrics, a group's size) follows from the rest
and is put where 0.4.13 has it; nothing else is changed. Files of other times are other runs'.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.samples import Results, RunResults, Sample
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.folder import Folder, MiB

MAX_RESULTS = 256 * MiB
_TIME = re.compile(r"results_(.+)\.json")


@dataclass(frozen=True, slots=True)
class PlainResults:
    """One lm-eval run: the content of its results file, and where its samples are."""

    folder: Path
    time: str
    body: Results

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.body.get("model_name") or self.folder.name)

    def documents(self) -> Iterator[Document]:
        """Yield the documents of each leaf task by doc_id, each with a sample for each filter."""
        for leaf, path in sorted(self.samples().items()):
            by_id: dict[int, list[Sample]] = {}
            completing = Completing(self.body, leaf)
            for number, raw in Folder(self.folder).lines(path.name):
                sample = _sample(completing, raw, f"{path.name} line {number:,}")
                by_id.setdefault(sample["doc_id"], []).append(sample)
            for doc_id in sorted(by_id):
                yield Document(leaf, doc_id, by_id[doc_id])

    def files(self) -> dict[str, str]:
        """Return the sha256 of the results file and of each samples file, by name."""
        names = [f"results_{self.time}.json", *sorted(p.name for p in self.samples().values())]
        return {name: canon.sha256_file(Folder(self.folder).path(name)) for name in names}

    def samples(self) -> dict[str, Path]:
        """Return the path of each samples file by leaf task."""
        suffix = f"_{self.time}.jsonl"
        paths = self.folder.glob(f"samples_*{suffix}")
        return {path.name.removeprefix("samples_").removesuffix(suffix): path for path in paths}


def find(path: Path) -> PlainResults:
    """Return the newest lm-eval run in a folder (or in a model's folder right below it), or the one
    whose results file `path` is. EvalkitError where there is none, where there are several models'
    results, or where samples are missing."""
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
    data = Folder(newest.parent).read(newest.name, MAX_RESULTS)
    results = PlainResults(newest.parent, time[1] if time else "", _results(data, newest))
    if not results.samples():
        raise EvalkitError(
            "these results have no samples, and without them nothing can be paired",
            where=str(newest), fix="run lm_eval with --log_samples", code=Exit.MISSING,
        )  # fmt: skip
    return results


def _results(data: bytes, path: Path) -> Results:
    try:
        body: Results = json.loads(data)
        usable = isinstance(body["results"], dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise EvalkitError("this is not a results file of lm-eval", where=str(path))
    return body


def _sample(completing: "Completing", raw: bytes, where: str) -> Sample:
    """Return the sample in a line, with the keys that a record's samples have."""
    try:
        sample: Sample = json.loads(raw)
        completing.complete(sample)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"a sample can't be read: {type(error).__name__}: {error}"
        raise EvalkitError(what, where=where) from None
    missing = [n for n in ("doc_hash", "target_hash", "prompt_hash", "resps") if n not in sample]
    if missing or not isinstance(sample["doc_id"], int):
        raise EvalkitError(f"a sample has no usable {', '.join(missing) or 'doc_id'}", where=where)
    return sample


class Completing:
    """Completes the samples of a leaf task, in the order in which lm-eval wrote them."""

    def __init__(self, results: Results | RunResults, leaf: str) -> None:
        config = (results.get("configs") or {}).get(leaf) or {}
        self._leaf = leaf
        self._filters = [entry["name"] for entry in config.get("filter_list") or []] or ["none"]
        self._metrics: dict[str, list[str]] = {}
        for key in results["results"].get(leaf, {}):
            metric, comma, name = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                self._metrics.setdefault(name, []).append(metric)
        self._seen: Counter[int] = Counter()

    def complete(self, sample: Sample) -> None:
        """Add the task, the filter and the metrics of a sample where they are missing. LookupError,
        TypeError or AttributeError where it is no sample."""
        turn = self._seen[sample["doc_id"]]
        self._seen[sample["doc_id"]] += 1
        sample["task"] = self._leaf
        if "filter" not in sample:
            sample["filter"] = self._filters[turn]
        if "metrics" not in sample:
            metrics = self._metrics.get(sample["filter"], [])
            sample["metrics"] = [metric for metric in metrics if metric in sample]


def with_sizes(results: Results | RunResults) -> None:
    """Add the number of documents to each group of the results."""
    children, counts = results.get("group_subtasks") or {}, results.get("n-samples") or {}
    for name in children:
        entry = results["results"].get(name)
        if isinstance(entry, dict):
            leaves = _below(name, children)
            entry.setdefault("sample_len", sum(counts[n]["effective"] for n in leaves & {*counts}))


def _below(name: str, children: dict[str, list[str]]) -> set[str]:
    """Return the name and all that stands below it; circles are harmless."""
    below: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        if current not in below:
            below.add(current)
            pending += children.get(current, [])
    return below
