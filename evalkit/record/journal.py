"""Answers as they come: an append-only line a batch, one file a writer.

A line holds the run id, the batch id, the answers and a checksum, and is on the disk before the
next batch starts. A torn or altered line is set aside when the journal is read, and only its batch
is repeated. The same batch may stand twice, since shards may overlap: then its answers must be
equal. Nothing here needs a lock, an order of files, or one file that several append to.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, one_of

SCHEMA = "evalkit/journal/1"
Answer = dict[str, Any]
# The answer to a text without a token, which no batch asks for: a sum over nothing.
NOTHING: Answer = {"loglikelihood": 0.0, "num_tokens": 0}


def checksum(line: dict[str, Any]) -> str:
    """sha256 (hex) over the canonical JSON of a line without its own checksum."""
    body = {key: value for key, value in line.items() if key != "sha256"}
    return hashlib.sha256(canon.dumps(body).encode()).hexdigest()


class Writer:
    """Writes one segment's journal."""

    def __init__(self, folder: Path, run: str, segment: str) -> None:
        self._run, self._segment = run, segment
        self._lines = canon.Appender(folder / f"{segment}.jsonl")

    def append(self, batch: str, answers: dict[str, Answer], *, split: int = 0) -> None:
        """Put one batch's answers on the disk. `split`: how deep it was cut in halves because
        memory ran out."""
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
        """Close the segment's file."""
        self._lines.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch's line stands, in bytes."""

    path: Path
    start: int
    size: int

    def answers(self) -> dict[str, Answer]:
        """The answers by part id."""
        with canon.reader(self.path) as handle:
            handle.seek(self.start)
            found: dict[str, Answer] = canon.loads(handle.read(self.size))["answers"]
        return found


@dataclass
class Journal:
    """What a run's journal holds: where each batch's answers stand (a million of them need not be
    in memory at once), what was set aside, how deep the batches that did not fit into memory were
    cut, and which were answered unequally and settled."""

    batches: dict[str, Place] = field(default_factory=dict)
    by_segment: dict[str, int] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    def answers(self, batches: Iterable[str] | None = None) -> dict[str, Answer]:
        """Every part's answer, of all batches or of some, read again from the disk."""
        names = self.batches if batches is None else batches
        return {part: a for name in names for part, a in self.batches[name].answers().items()}


def lines(path: Path) -> Iterator[tuple[int, Place, dict[str, Any] | None]]:
    """Each line's number, place and value; None where it is torn, altered or not a journal line."""
    start = 0
    with canon.reader(path) as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = canon.loads(raw)
                intact = raw.endswith(b"\n") and line["sha256"] == checksum(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                intact = False
            yield number, Place(path, start, len(raw)), line if intact else None
            start += len(raw)


@dataclass
class Done:
    """Which batches a run's journal answers, and the lines that were set aside."""

    batches: set[str] = field(default_factory=set)
    set_aside: list[str] = field(default_factory=list)


def done(folder: Path, run: str, batches: Container[str]) -> Done:
    """What of a run's batches is answered; no answer is kept in memory."""
    found = Done()
    for path in _segments(folder):
        for _, line in _of_run(path, run, batches, found.set_aside):
            found.batches.add(line["batch"])
    return found


def read(folder: Path, run: str, batches: Container[str], prefer: str | None = None) -> Journal:
    """Read every segment of a run. Lines that are torn, altered, or of another run or plan are set
    aside and named.

    Raises EvalkitError (1) where two segments answered the same batch unequally, unless one of them
    is `prefer`: then its answers count, and the batch is in `Journal.settled`. EvalkitError (2)
    where there is no such segment.
    """
    found = Journal()
    owner: dict[str, str] = {}
    paths = sorted(_segments(folder), key=lambda path: path.stem != prefer)
    if prefer is not None and (not paths or paths[0].stem != prefer):
        known = [path.stem for path in paths]
        raise EvalkitError(f"no segment '{prefer}'", where=str(folder), fix=one_of(prefer, known))
    for path in paths:
        for place, line in _of_run(path, run, batches, found.set_aside):
            batch = line["batch"]
            if batch not in found.batches:
                found.batches[batch], owner[batch] = place, path.stem
                found.by_segment[path.stem] = found.by_segment.get(path.stem, 0) + 1
                if "split" in line:
                    found.splits[batch] = line["split"]
            elif found.batches[batch].answers() != line["answers"]:
                if owner[batch] != prefer:
                    raise _unequal(folder, batch, owner[batch], path.stem)
                found.settled.add(batch)
    return found


def of_record(run: Path, record: dict[str, Any], batches: Container[str]) -> Journal:
    """What a finished run's record was made of: where segments are unequal, the answers of the one
    that the record prefers."""
    preferred = record["preferred"]
    prefer = preferred["segment"] if preferred else None
    return read(run / "journal", record["ids"]["run"], batches, prefer)


def _segments(folder: Path) -> list[Path]:
    """The journal's files by name: a folder's own order means nothing."""
    return sorted(folder.glob("*.jsonl"))


def _of_run(
    path: Path, run: str, batches: Container[str], set_aside: list[str]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """A segment's lines that answer one of the batches of this run; the others are set aside."""
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
        " memory: `evalkit finish RUN --prefer SEGMENT` lets one's answers count, and records that",
        code=Exit.FAILED,
    )


def assemble(parts: dict[str, Answer]) -> dict[str, Answer]:
    """Answers by request id: a rolling request's windows are summed in order."""
    windows: dict[str, list[tuple[int, Answer]]] = {}
    whole: dict[str, Answer] = {}
    for part, answer in parts.items():
        request, mark, index = part.partition("#")
        if mark:
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


def digests(answers: dict[str, Answer]) -> dict[str, str]:
    """Each leaf task's answers digest: its [request id, answer] pairs sorted by request id."""
    by_leaf: dict[str, list[list[Any]]] = {}
    for request in sorted(answers):
        by_leaf.setdefault(request.rsplit("/", 3)[0], []).append([request, answers[request]])
    return {leaf: canon.digest(pairs) for leaf, pairs in sorted(by_leaf.items())}
