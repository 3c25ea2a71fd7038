"""Per-document scores of a finished evaluation, ready to be paired: of an evalkit run's folder, or
of lm-eval's results with samples.

It may be a stranger's: nothing is run or followed, and files are bounded as `verify` bounds them. A
metric whose recorded score does not follow from its samples is left out, with the reason.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.base import canon, statistics
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.samples import Results, value_of
from evalkit.inputs.untrusted import Groups
from evalkit.record.reading import identity, lm_eval, score_table
from evalkit.record.reading.evidence.samples import Document, Samples, documents
from evalkit.record.reading.findings import shown
from evalkit.record.reading.folder import BROKEN, Folder, foreign, reason
from evalkit.record.types import Record

Value = tuple[float, float]  # a document's value and its weight


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a leaf task: a value and a weight for each document, in order. `binary`: every
    value is 0 or 1. `nats`: log-likelihoods per word, byte or document (more is better), of which
    lm-eval reports an exponential."""

    values: tuple[Value, ...]
    score: float  # as reported
    binary: bool
    nats: bool
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf task's documents and what they scored, metrics in lm-eval's order."""

    name: str
    doc_ids: tuple[int, ...]
    questions: str  # digests, as in a record
    prompts: str
    metrics: dict[str, Metric]
    left_out: dict[str, str]  # metrics that can't be paired, with the reason
    chance: float  # what guessing scores, the mean over its documents

    @property
    def headline(self) -> str | None:
        """The metric that stands for the task."""
        return score_table.headline(self.metrics)


@dataclass(frozen=True, slots=True)
class Scored:
    """One evaluation's scores. `groups`: each group's leaf tasks; `tops`: the tasks and groups that
    were asked for; `plain`: (group, metric) whose score is the plain mean of its leaf tasks'."""

    path: Path
    name: str
    record: Record | None  # None: lm-eval's own results
    leaves: dict[str, Leaf]
    groups: dict[str, tuple[str, ...]]
    tops: tuple[str, ...]
    plain: frozenset[tuple[str, str]]
    read: Callable[[], Iterator[Document]]

    def members(self, name: str) -> tuple[str, ...]:
        """The leaf tasks of a task or group."""
        return self.groups.get(name) or ((name,) if name in self.leaves else ())


def read(path: Path) -> Scored:
    """Read a run's folder, a folder with lm-eval's results and samples, or such a results file.
    Raises EvalkitError where it is none of these, or its samples can't be read."""
    with foreign(path):
        return _read(path)


def _read(path: Path) -> Scored:
    if Folder(path).is_public:
        raise EvalkitError(
            "a public pack leaves out the samples that this needs", where=path.name,
            fix="use the run itself, or a pack made without --public",
        )  # fmt: skip
    if (path / "record.json").is_file():
        return _read_record(path)
    found = lm_eval.find(path)
    tables = _Tables.of_results(found.body)
    return _scored(path, found.name, None, tables, found.documents)


@dataclass(slots=True)
class _Tables:
    """What a record or lm-eval's results say beside the samples."""

    metrics: dict[str, dict[str, tuple[float, bool]]]  # task or group -> metric -> score, better
    children: dict[str, list[str]]
    tops: list[str]

    @classmethod
    def of_record(cls, record: Record) -> "_Tables":
        metrics = {
            name: {
                each.metric: (each.value, each.higher_is_better is not False)
                for each in score_table.of(record, name)
            }
            for name in [*record["tasks"], *record["groups"]]
        }
        children = {name: group["subtasks"] for name, group in record["groups"].items()}
        return cls(metrics, children, [item["task"] for item in record["suite"]["tasks"]])

    @classmethod
    def of_results(cls, body: Results) -> "_Tables":
        better = body.get("higher_is_better") or {}
        metrics: dict[str, dict[str, tuple[float, bool]]] = {}
        for name, result in body["results"].items():
            metrics[name] = {
                key: (float(value), bool((better.get(name) or {}).get(key.partition(",")[0], True)))
                for key, value in result.items()
                if "," in key and "_stderr," not in key and isinstance(value, int | float)
            }
        children = {n: list(c) for n, c in (body.get("group_subtasks") or {}).items() if c}
        return cls(metrics, children, [])


def _read_record(path: Path) -> Scored:
    folder = Folder(path)
    found = identity.record(folder)
    record = found.record
    if record is None:
        raise EvalkitError(
            f"the record can't be used: {found.check.detail}",
            where=str(path),
            fix="see evalkit verify",
        )

    def samples() -> Iterator[Document]:
        found = Samples()
        yield from documents(folder, found)
        for findings in (found.shape, found.order):
            if findings.count:
                raise EvalkitError(
                    f"the samples can't be used: {findings.first[0]}", where=str(path),
                    fix="see evalkit verify", code=Exit.FAILED,
                )  # fmt: skip

    return _scored(path, score_table.model_name(record), record, _Tables.of_record(record), samples)


def _scored(
    path: Path, name: str, record: Record | None, tables: _Tables,
    samples: Callable[[], Iterator[Document]],
) -> Scored:  # fmt: skip
    making: dict[str, _Making] = {}
    try:
        for document in samples():
            making.setdefault(document.leaf, _Making()).add(document)
        leaves = {leaf: made.leaf(leaf, tables.metrics.get(leaf, {}))
                  for leaf, made in making.items()}  # fmt: skip
    except BROKEN as error:
        if isinstance(error, EvalkitError):
            raise
        raise EvalkitError(
            f"the samples can't be used: {reason(error)}", where=str(path), code=Exit.FAILED
        ) from None
    nested = Groups(tables.children, leaves)
    groups = {group: tuple(nested.below(group)) for group in tables.children}
    inner = {child for members in tables.children.values() for child in members}
    known = [*tables.children, *leaves]
    tops = [top for top in tables.tops if top in known] or [n for n in known if n not in inner]
    covered = {leaf for top in tops for leaf in groups.get(top, (top,))}
    tops += [leaf for leaf in leaves if leaf not in covered]
    plain = frozenset(
        (group, metric)
        for group, members in groups.items()
        for metric, (score, _) in tables.metrics.get(group, {}).items()
        if _is_plain(score, [leaves[leaf].metrics[metric] for leaf in members
                             if metric in leaves[leaf].metrics])
    )  # fmt: skip
    return Scored(path, name, record, leaves, groups, tuple(tops), plain, samples)


def _is_plain(score: float, members: list[Metric]) -> bool:
    """Whether a group's score is the mean of its members' scores, not weighted by their sizes."""
    if not members:
        return False
    scores, sizes = [m.score for m in members], [len(m.values) for m in members]
    weighted = statistics.weighted_mean(scores, sizes)
    return not _close(score, weighted) and _close(score, statistics.mean(scores))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


@dataclass(slots=True)
class _Making:
    """A leaf task as its documents come in."""

    questions: list[list[Any]] = field(default_factory=list)
    prompts: list[list[Any]] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    chances: list[float] = field(default_factory=list)

    def add(self, document: Document) -> None:
        first, number = document.first, document.doc_id
        self.questions.append([number, first["doc_hash"], first["target_hash"]])
        self.prompts.append([number, first["prompt_hash"]])
        self.chances.append(document.chance)
        for sample in document.samples:
            for name in sample["metrics"]:
                self.values.setdefault(f"{name},{sample['filter']}", []).append(
                    value_of(sample, name)
                )

    def leaf(self, name: str, reported: dict[str, tuple[float, bool]]) -> Leaf:
        metrics, left_out = {}, {}
        for key, values in self.values.items():
            if key not in reported:
                left_out[key] = "its results do not hold it"
            elif len(values) != len(self.questions):
                left_out[key] = "not every document has it"
            elif (made := _metric(values, *reported[key])) is None:
                left_out[key] = "its score is not a mean over documents"
            else:
                metrics[key] = made
        return Leaf(
            shown(name), tuple(number for number, *_ in self.questions),
            canon.digest(self.questions), canon.digest(self.prompts), metrics, left_out,
            statistics.mean(self.chances),
        )  # fmt: skip


def _metric(raw: list[Any], score: float, higher_is_better: bool) -> Metric | None:
    """The values as numbers that average to the reported score, or to its logarithm."""
    if (rates := _rates(raw, score)) is not None:
        return Metric(rates, score, binary=False, nats=True, higher_is_better=True)
    try:
        values = [float(v) if isinstance(v, bool) else canon.number(v) for v in raw]
    except (TypeError, ValueError):
        return None
    weighted = tuple((value, 1.0) for value in values)
    if _close(statistics.mean(values), score):
        binary = set(values) <= {0.0, 1.0}
        return Metric(weighted, score, binary, nats=False, higher_is_better=higher_is_better)
    if _close(statistics.perplexity(values), score):
        return Metric(weighted, score, binary=False, nats=True, higher_is_better=True)
    return None


def _rates(raw: list[Any], score: float) -> tuple[Value, ...] | None:
    """Pairs of a log-likelihood and its words or bytes, as log-likelihoods per unit. None where
    they don't give the score: other metrics have pairs too, such as a label and what was said."""
    try:
        pairs = [(canon.number(nats), canon.number(units)) for nats, units in raw]
        given = (statistics.weighted_perplexity(pairs), statistics.bits_per_byte(pairs))
    except (ArithmeticError, TypeError, ValueError):
        return None
    if not any(_close(value, score) for value in given):
        return None
    return tuple((nats / units if units else 0.0, units) for nats, units in pairs)  # an empty text
