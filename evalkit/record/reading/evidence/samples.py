"""Reads the samples once, a document at a time, and keeps what later checks need of each.

A document's lines (one a filter) are checked for shape and order, and their responses held against
the journal's. What stays in memory is small: digests, metric values, request names.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted  # canonical JSON of a string
from typing import Any

from evalkit.base import canon
from evalkit.harness.samples import Sample, unmarked, value_of
from evalkit.inputs import rows
from evalkit.inputs.types import Loglikelihood
from evalkit.record.reading.evidence import possible
from evalkit.record.reading.evidence.journal import Journal
from evalkit.record.reading.findings import Findings, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason

NAME = "samples.jsonl.gz"
MAX_FILTERS = 64
FIELDS = {
    "task": str,
    "doc_id": int,
    "doc": object,
    "target": str,
    "arguments": dict,
    "resps": list,
    "filtered_resps": list,
    "filter": str,
    "metrics": list,
    "doc_hash": str,
    "prompt_hash": str,
    "target_hash": str,
}  # lm-eval's, with the task's name in front; then the metrics


@dataclass(slots=True)
class Document:
    """One document's samples, one a filter; they share everything but filter and scores."""

    leaf: str
    doc_id: int
    samples: list[Sample]

    @property
    def first(self) -> Sample:
        """The sample that stands for the document."""
        return self.samples[0]

    @property
    def chance(self) -> float:
        """What guessing scores: 1 / choices, and 0 where an answer is written freely."""
        choices = len(self.first["resps"])
        if any("acc_mutual_info" in sample["metrics"] for sample in self.samples):
            choices //= 2  # each choice is asked a second time, without its question
        return 1 / choices if choices > 1 else 0.0

    @property
    def name(self) -> str:
        """How it is named in a problem."""
        return f"{shown(self.leaf)} document {self.doc_id}"


@dataclass(slots=True)
class Leaf:
    """What is kept of a leaf task's samples."""

    next_id: int = 0  # where the documents go on
    rows: Any = field(default_factory=hashlib.sha256)  # over doc_hash, as the lock's rows
    hashes: bytearray = field(default_factory=bytearray)  # of document, prompt and target, in hex
    each: bytearray = field(default_factory=bytearray)  # the rows one by one, as in lock.rows
    asked: bytearray = field(default_factory=bytearray)  # prompts, likewise
    targets: bytearray = field(default_factory=bytearray)
    generated: set[str] = field(default_factory=set)  # canonical settings that texts came by
    questions: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    filters: tuple[str, ...] = ()
    values: dict[tuple[str, str], list[Any]] = field(default_factory=lambda: defaultdict(list))

    @property
    def by_metric(self) -> dict[str, list[Any]]:
        """The values by metric, as the record has its key: `acc,none`."""
        return {f"{metric},{name}": values for (metric, name), values in self.values.items()}

    @property
    def n(self) -> int:
        """Documents seen."""
        return len(self.questions)

    @property
    def task_hash(self) -> str:
        """lm-eval's hash of the task: over all documents, once for each filter."""
        return hashlib.sha256(self.hashes * len(self.filters)).hexdigest()


@dataclass(slots=True)
class Samples:
    """The results of one pass over the samples."""

    leaves: dict[str, Leaf] = field(default_factory=lambda: defaultdict(Leaf))
    shape: Findings = field(default_factory=lambda: Findings("samples"))
    order: Findings = field(default_factory=lambda: Findings("completeness"))
    answers: Findings = field(default_factory=lambda: Findings("answers"))
    readable: bool = True
    lines: int = 0
    not_found: int = 0  # lines in which a filter found no answer
    ties: Counter[str] = field(default_factory=Counter)  # leaf -> documents whose best is not alone


def documents(folder: Folder, found: Samples) -> Iterator[Document]:
    """Yield the documents in the file's order; note and skip what is malformed or out of order."""
    current: Document | None = None
    last = ("", -1)
    try:
        for number, raw in folder.gzip_lines(NAME):
            found.lines = number
            sample = parsed(raw, f"line {number:,}", found.shape)
            if sample is None:
                continue
            key = (sample["task"], sample["doc_id"])
            if current is not None and key == last:
                if len(current.samples) < MAX_FILTERS:
                    current.samples.append(sample)
                continue
            if key < last:
                found.order.add(f"{shown(key[0])} document {key[1]} stands after {last[1]}")
                continue
            if current is not None:
                yield current
            current, last = Document(*key, [sample]), key
    except BROKEN as error:
        found.readable = False
        found.shape.add(f"{NAME}: {reason(error)}", first=True)
    if current is not None:
        yield current


def parsed(
    raw: bytes, where: str, findings: Findings, complete: Callable[[Sample], None] = lambda _: None
) -> Sample | None:
    """Return the sample in a line, completed by `complete`; None if it has not a sample's shape."""
    try:
        sample = canon.loads(raw)
        complete(sample)
        problem = "" if raw.endswith(b"\n") else "is torn"
        problem = problem or _shape_problem(sample)
    except BROKEN as error:
        problem = reason(error)
    if problem:
        findings.add(f"{where}: {problem}")
        return None
    return sample  # type: ignore[no-any-return]


def _shape_problem(sample: Sample) -> str:
    for name, kind in FIELDS.items():
        value = value_of(sample, name)
        if not isinstance(value, kind) or (kind is int and (type(value) is not int or value < 0)):
            return f"{name} is not a {kind.__name__}"
    metrics = sample["metrics"]
    named = FIELDS.keys() | set(metrics)
    if sample.keys() != named or len(named) != len(FIELDS) + len(metrics):
        return "holds other fields than lm-eval's and its metrics'"
    arguments, resps = sample["arguments"], sample["resps"]
    if list(arguments) != [f"gen_args_{i}" for i in range(len(resps))] or not resps:
        return "has not one response for each request"
    for argument in arguments.values():
        if not isinstance(argument["arg_0"], str):
            return "has a prompt that is not text"
    if not all(isinstance(repeats, list) and repeats for repeats in resps):
        return "has a request without a response"
    return ""


def doc_hash(doc: Any) -> str:
    """Return lm-eval's doc_hash: sha256 (hex) of a sample's document as indented JSON."""
    return _hash(json.dumps(unmarked(doc), indent=2, ensure_ascii=False))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def note(document: Document, found: Samples, journal: Journal | None) -> None:
    """Check one document and keep what later checks need of it."""
    leaf = found.leaves[document.leaf]
    sample = document.first
    if document.doc_id != leaf.next_id:
        found.order.add(f"{document.name} stands where {leaf.next_id} should")
    leaf.next_id = document.doc_id + 1
    _note_filters(document, leaf, found)
    _note_hashes(document, found.shape)
    leaf.rows.update(sample["doc_hash"].encode())
    number, hashes = document.doc_id, (sample["doc_hash"], sample["target_hash"])
    names = ("doc_hash", "prompt_hash", "target_hash")
    leaf.hashes += "".join(value_of(sample, name) for name in names).encode()
    leaf.questions.append(f"[{number},{','.join(map(quoted, hashes))}]")
    leaf.prompts.append(f"[{number},{quoted(sample['prompt_hash'])}]")
    _note_answers(document, leaf, found, journal)
    _note_health(document, found)
    for each in document.samples:
        for metric in each["metrics"]:
            leaf.values[metric, each["filter"]].append(value_of(each, metric))
    _note_asked(sample, leaf)
    _note_choices(document, found, journal)
    leaf.each += rows.short(sample["doc_hash"])  # last: ValueError where it is no hash


def _note_asked(sample: Sample, leaf: Leaf) -> None:
    arguments = sample["arguments"].values()
    scored = [each["arg_1"] for each in arguments if isinstance(each.get("arg_1"), str)]
    leaf.generated |= {
        canon.dumps(each["arg_1"]) for each in arguments if isinstance(each.get("arg_1"), dict)
    }
    leaf.asked += rows.of_prompts([each["arg_0"] for each in arguments])
    leaf.targets += rows.of_target(sample["target"], scored)


def _note_choices(document: Document, found: Samples, journal: Journal | None) -> None:
    """Compare the answers to choices of one token that stand behind one prompt."""
    asked = list(document.first["arguments"].values())
    said = [repeats[0] for repeats in document.first["resps"]]
    if journal is None or len({each["arg_0"] for each in asked}) > 1:
        return
    places: dict[int, list[tuple[int, Loglikelihood]]] = defaultdict(list)
    for index, response in enumerate(said):
        single = journal.single.get(f"{document.leaf}/{document.doc_id}/{index}/0")
        if single is not None and isinstance(response, list):
            (place, token), (value, greedy) = single, response
            answer = Loglikelihood(loglikelihood=value, is_greedy=greedy == "True", num_tokens=1)
            places[place].append((token, answer))
    for answers in places.values():
        if problem := possible.choices(answers, journal.flip):
            found.answers.add(f"{document.name}: {problem}")


def _note_filters(document: Document, leaf: Leaf, found: Samples) -> None:
    filters = tuple(sample["filter"] for sample in document.samples)
    leaf.filters = leaf.filters or filters
    if len(set(filters)) != len(filters):
        found.order.add(f"{document.name} stands twice for a filter")
    elif set(filters) != set(leaf.filters):
        found.order.add(f"{document.name} has filters {shown(filters)}")
    shared = FIELDS.keys() - {"filter", "filtered_resps", "metrics"}
    for sample in document.samples[1:]:
        if any(value_of(sample, name) != value_of(document.first, name) for name in shared):
            found.shape.add(f"{document.name} differs between filters")


def _note_hashes(document: Document, findings: Findings) -> None:
    sample = document.first
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    try:
        hashes = {
            "doc_hash": doc_hash(sample["doc"]),
            "prompt_hash": _hash(prompt),
            "target_hash": _hash(sample["target"]),
        }
    except BROKEN as error:
        findings.add(f"{document.name}: {reason(error)}")
        return
    for name, digest in hashes.items():
        if value_of(sample, name) != digest:
            findings.add(f"{document.name} is not what its {name} says")


def _note_health(document: Document, found: Samples) -> None:
    for sample in document.samples:
        # lm-eval's regex filters answer "[invalid]" where they find nothing
        found.not_found += '"[invalid]"' in json.dumps(sample["filtered_resps"])
    responses = [response for repeats in document.first["resps"] for response in repeats]
    if all(isinstance(response, list) for response in responses):
        values = [float(response[0]) for response in responses]
        found.ties[document.leaf] += values.count(max(values)) > 1


def _note_answers(document: Document, leaf: Leaf, found: Samples, journal: Journal | None) -> None:
    said = journal.said.get(document.leaf, {}) if journal else {}
    for index, repeats in enumerate(document.first["resps"]):
        for repeat, response in enumerate(repeats):
            request = f"{document.doc_id}/{index}/{repeat}"
            leaf.requests.add(request)
            if journal is None:
                continue
            text = document.first["arguments"][f"gen_args_{index}"]["arg_0"]
            if (document.leaf, request) in journal.nothing and text.strip():
                found.answers.add(f"{shown(document.leaf)}/{request} has text, which no batch asks")
            if request not in said:
                found.answers.add(f"{shown(document.leaf)}/{request} has no answer in the journal")
            elif said[request] != response:
                found.answers.add(
                    f"{shown(document.leaf)}/{request} was answered {shown(said[request])},"
                    f" its sample says {shown(response)}"
                )
