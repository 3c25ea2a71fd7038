"""Answers as they come: an append-only line a batch, one file a writer.

A line holds the run id, the batch id, the answers and a checksum, and is on the disk before the
next batch starts. A torn or altered line is set aside when the journal is read, and only its batch
is repeated. The same batch may stand twice: then its answers must be equal.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit import canon
from evalkit.errors import EvalkitError, Exit

SCHEMA = "evalkit/journal/1"
Answer = dict[str, Any]


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


@dataclass
class Journal:
    """What a run's journal holds: answers by part id, per batch, what was set aside, and how deep
    the batches that did not fit into memory were cut."""

    batches: dict[str, dict[str, Answer]] = field(default_factory=dict)
    by_segment: dict[str, int] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)

    def answers(self) -> dict[str, Answer]:
        """Every part's answer."""
        return {part: a for answers in self.batches.values() for part, a in answers.items()}


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Each line's number and value; None where it is torn, altered or not a journal line."""
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = canon.loads(raw)
                intact = raw.endswith(b"\n") and line["sha256"] == checksum(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                intact = False
            yield number, line if intact else None


def read(folder: Path, run: str, batches: set[str]) -> Journal:
    """Read every segment of a run. Lines that are torn, altered, or of another run or plan are set
    aside and named; EvalkitError (1) where two segments answered the same batch unequally."""
    found = Journal()
    owner: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in lines(path):
            if line is None or line["run"] != run or line["batch"] not in batches:
                found.set_aside.append(f"{path.name} line {number}")
                continue
            batch = line["batch"]
            if batch in found.batches:
                if found.batches[batch] != line["answers"]:
                    raise EvalkitError(
                        f"batch {batch[:19]} was answered unequally by segments {owner[batch]} and"
                        f" {path.stem}",
                        where=str(folder),
                        fix="the two ran on unlike hardware or software: keep one of their files",
                        code=Exit.FAILED,
                    )
                continue
            found.batches[batch], owner[batch] = line["answers"], path.stem
            found.by_segment[path.stem] = found.by_segment.get(path.stem, 0) + 1
            if "split" in line:
                found.splits[batch] = line["split"]
    return found


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
