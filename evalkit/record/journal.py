"""Answers as they come: an append-only line for each batch, a file for each writer.

A line holds the run id, the batch id, the answers and a checksum, and is on the disk before the
next batch starts. A torn or altered line is set aside when the journal is read, and its batch is
repeated. A batch that stands twice (shards may overlap) must have equal answers. Answers are read
by leaf task: those of a large run do not fit into memory.
"""

import hashlib
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.base.machine.types import Unknown
from evalkit.inputs.chat.texts import Texts
from evalkit.inputs.types import Answer, Loglikelihood, Number, RollingLoglikelihood
from evalkit.record.types import JournalLine, Record

if TYPE_CHECKING:  # plan.store loads numpy, which reading a record does without
    from evalkit.plan.store import Plan

SCHEMA = "evalkit/journal/1"
# The answer to a text without a token, which is in no batch: a sum over nothing.
NOTHING: RollingLoglikelihood = {"loglikelihood": 0.0, "num_tokens": 0}


def checksum(line: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of the canonical JSON of a line without its own checksum."""
    body = {key: value for key, value in line.items() if key != "sha256"}
    return hashlib.sha256(canon.dumps(body).encode()).hexdigest()


class Writer:
    """Writes the journal of one segment."""

    def __init__(self, folder: Path, run: str, segment: str) -> None:
        self._run, self._segment = run, segment
        self._lines = canon.Appender(folder / f"{segment}.jsonl")

    def append(
        self, batch: str, answers: Mapping[str, Mapping[str, object]], *, split: int = 0
    ) -> None:
        """Write a batch's answers to the disk. `split`: how often memory made it be halved."""
        line = {
            "schema": SCHEMA,
            "run": self._run,
            "batch": batch,
            "segment": self._segment,
            "answers": canon.finite(answers),
            **({"split": split} if split else {}),
        }
        self._lines.append(line | {"sha256": checksum(line)})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the line of a batch stands, in bytes."""

    path: Path
    start: int
    size: int

    def answers(self) -> dict[str, Answer]:
        """Read the answers of the batch by part id."""
        with canon.reader(self.path) as handle:
            handle.seek(self.start)
            answers: dict[str, Answer] = canon.loads(handle.read(self.size))["answers"]
        return answers


@dataclass
class Journal:
    """What the journal of a run holds: where each batch's answers stand, how many batches each
    segment answered first, the lines that were set aside, how often each split batch was halved,
    and which batches were answered unequally (`settled`: one answer was preferred)."""

    batches: dict[str, Place] = field(default_factory=dict)
    by_segment: dict[str, int] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    def answers(self, batches: Iterable[str] | None = None) -> dict[str, Answer]:
        """Read the answer of each part, of all batches or of some."""
        names = self.batches if batches is None else batches
        return {part: a for name in names for part, a in self.batches[name].answers().items()}


def lines(path: Path) -> Iterator[tuple[int, Place, JournalLine | None]]:
    """Yield the number, the place and the value of each line; None for the value where the line is
    torn, altered or no line of a journal."""
    start = 0
    with canon.reader(path) as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = canon.loads(raw)
                intact = (
                    raw.endswith(b"\n") and _has_form(line) and line["sha256"] == checksum(line)
                )
            except (ValueError, KeyError, TypeError, RecursionError):
                intact = False
            yield number, Place(path, start, len(raw)), line if intact else None
            start += len(raw)


def _has_form(line: JournalLine) -> bool:
    """Say whether a line has what is read of it: whoever writes one can seal anything."""
    is_named = isinstance(line["run"], str) and isinstance(line["batch"], str)
    return is_named and isinstance(line["answers"], dict) and isinstance(line.get("split", 0), int)


@dataclass
class Done:
    """The batches that the journal of a run answers, and the lines that were set aside."""

    batches: set[str] = field(default_factory=set)
    set_aside: list[str] = field(default_factory=list)


def done(folder: Path, run: str, batches: Container[str]) -> Done:
    """Return which of a run's batches are answered; no answer is kept in memory."""
    answered = Done()
    for path in _segments(folder):
        for _, line in _of_run(path, run, batches, answered.set_aside):
            answered.batches.add(line["batch"])
    return answered


def read(folder: Path, run: str, batches: Container[str], prefer: str | None = None) -> Journal:
    """Read every segment of a run; lines that are torn, altered, or of another run or plan are set
    aside and named. EvalkitError (1) where two segments answered a batch unequally, unless one is
    `prefer`: its answers then count. EvalkitError (2) where there is no such segment."""
    journal = Journal()
    owner: dict[str, str] = {}
    paths = sorted(_segments(folder), key=lambda path: path.stem != prefer)
    if prefer is not None and (not paths or paths[0].stem != prefer):
        known = [path.stem for path in paths]
        raise EvalkitError(f"no segment '{prefer}'", where=str(folder), fix=one_of(prefer, known))
    for path in paths:
        for place, line in _of_run(path, run, batches, journal.set_aside):
            batch = line["batch"]
            journal.by_segment.setdefault(path.stem, 0)
            if batch not in journal.batches:
                journal.batches[batch], owner[batch] = place, path.stem
                journal.by_segment[path.stem] += 1
                if "split" in line:
                    journal.splits[batch] = line["split"]
            elif journal.batches[batch].answers() != line["answers"]:
                if owner[batch] != prefer:
                    raise _unequal(folder, batch, owner[batch], path.stem)
                journal.settled.add(batch)
    return journal


def of_record(run: Path, record: Record, batches: Container[str]) -> Journal:
    """Read the journal of a finished run. Where segments are unequal, the answers of the segment
    that the record prefers count."""
    preferred = record["preferred"]
    prefer = preferred["segment"] if preferred else None
    return read(run / "journal", record["ids"]["run"], batches, prefer)


def _segments(folder: Path) -> list[Path]:
    """Return the journal's files by name: a folder's own order means nothing."""
    return sorted(folder.glob("*.jsonl"))


def _of_run(
    path: Path, run: str, batches: Container[str], set_aside: list[str]
) -> Iterator[tuple[Place, JournalLine]]:
    """Yield the lines of a segment that answer one of this run's batches; set the others aside."""
    for number, place, line in lines(path):
        if line is None or line["run"] != run or line["batch"] not in batches:
            set_aside.append(f"{path.name} line {number}")
        else:
            yield place, line


def _unequal(folder: Path, batch: str, one: str, two: str) -> EvalkitError:
    return EvalkitError(
        f"batch {batch[:19]} was answered unequally by segments {one} and {two}",
        where=str(folder),
        fix="the two ran on unlike hardware or software, or one of them split it for lack of"
        " memory: `evalkit finish RUN --prefer SEGMENT` takes that one's answers and records it",
        code=Exit.FAILED,
    )


def assemble(parts: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return the answers by request id: the windows of a rolling request are summed in order."""
    windows: dict[str, list[tuple[int, Loglikelihood | RollingLoglikelihood]]] = {}
    whole: dict[str, Answer] = {}
    for part, answer in parts.items():
        request, mark, index = part.partition("#")
        if mark:
            assert "text" not in answer, "only a rolling request has windows"
            windows.setdefault(request, []).append((int(index), answer))
        else:
            whole[request] = answer
    for request, pieces in windows.items():
        pieces.sort(key=lambda piece: piece[0])
        whole[request] = {
            "loglikelihood": canon.total(canon.number(a["loglikelihood"]) for _, a in pieces),
            "num_tokens": sum(a["num_tokens"] for _, a in pieces),
        }
    return whole


def numbers(values: list[Number] | Unknown) -> list[float]:
    """Return a text's log-probabilities or margins as floats; none where they are unknown."""
    return list(map(canon.number, values)) if isinstance(values, list) else []


def digests(answers: Mapping[str, Answer]) -> dict[str, str]:
    """Return each leaf task's digest of its [request id, answer] pairs, sorted by request id."""
    by_leaf: dict[str, list[tuple[str, Answer]]] = {}
    for request in sorted(answers):
        by_leaf.setdefault(request.rsplit("/", 3)[0], []).append((request, answers[request]))
    return {leaf: canon.digest(pairs) for leaf, pairs in sorted(by_leaf.items())}


class Answers:
    """The answers of a completely answered plan, by leaf task. While they are read, what a record
    says of all of them is counted: `digests`, `texts`, `empty` texts, `nan_documents`, `ties` for
    the best answer. `advance` is called with the number of answers just read."""

    def __init__(
        self, plan: "Plan", done: Journal, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self.digests: dict[str, str] = {}
        self.texts: dict[str, Texts] = {}
        self.empty = self.nan_documents = 0
        self.ties: dict[str, int] = {}
        self._done, self._advance = done, advance
        self._without_text: dict[str, list[str]] = plan.body["empty_texts"]
        self._batches: dict[str, list[str]] = {}
        self._entries = plan.entries
        for batch, entry in plan.entries.items():
            self._batches.setdefault(entry["task"], []).append(batch)

    def of(self, leaf: str) -> dict[str, Answer]:
        """Read a leaf task's answers by request id, once for each leaf task; EvalkitError (1) where
        a line of the journal holds what is no answer to its batch."""
        batches = self._batches.get(leaf, [])
        try:
            return self._of(leaf, self._parts(leaf, batches))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            paths = {self._done.batches[b].path for b in batches if b in self._done.batches}
            what = f"an answer to {leaf} is none: {type(error).__name__}: {error}"
            fix = "move the segment away that evalkit did not write, and execute again"
            where = ", ".join(sorted(map(str, paths))[:3])
            raise EvalkitError(what, where=where, fix=fix, code=Exit.FAILED) from None

    def _parts(self, leaf: str, batches: Iterable[str]) -> dict[str, Answer]:
        """Read answers by part; ValueError where a line answers what its batch does not ask."""
        parts: dict[str, Answer] = {}
        for batch in batches:
            answers = self._done.batches[batch].answers()
            if answers.keys() != {
                f"{leaf}/{target[-1]}" for target in self._entries[batch]["targets"]
            }:
                raise ValueError(f"batch {batch[:19]} asks for other requests")
            parts |= answers
        return parts

    def _of(self, leaf: str, parts: dict[str, Answer]) -> dict[str, Answer]:
        self._advance(len(parts))
        answers = assemble(parts)
        for request in self._without_text.get(leaf, []):
            answers[f"{leaf}/{request}"] = NOTHING.copy()
        self.digests |= digests(answers)
        self._count(leaf, answers)
        return answers

    def _count(self, leaf: str, answers: Mapping[str, Answer]) -> None:
        nan: set[str] = set()
        scored: dict[str, list[float]] = {}
        for request, answer in answers.items():
            document = request.rsplit("/", 2)[0]
            if "text" in answer:
                self.empty += not answer["text"].strip()
                doc_id = int(document.rsplit("/", 1)[1])
                self.texts.setdefault(leaf, Texts()).add(doc_id, answer)
                is_nan = "nan" in answer["logprobs"]
            else:
                value = canon.number(answer["loglikelihood"])
                scored.setdefault(document, []).append(value)
                is_nan = math.isnan(value)
            if is_nan:
                nan.add(document)
        self.nan_documents += len(nan)
        self.ties[leaf] = sum(values.count(max(values)) > 1 for values in scored.values())
