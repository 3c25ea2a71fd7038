"""Checks a public pack, which is a record without its texts.

What can be checked without them: everything that the record itself says; that its files are exactly
those of such a pack; that every document of the lock is answered; the digests of the answers that
are numbers; every mean and error, from the samples' values; and that no sample's score contradicts
its answers. What salted digests hide is checked where the pinned data is at hand (`--deep`). Texts
that a model wrote are never checked, except those that the author reveals: `evalkit pack RUN
--reveal TASK/DOC` writes the texts of one document and its salt, which open that document only.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify.checks import aggregates, asked, choices, completeness, health
from evalkit.record.reading import identity
from evalkit.record.reading.evidence import journal as journals
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.salted import (
    HEAD,
    LINES,
    HiddenText,
    PublicHead,
    PublicLine,
    PublicTask,
    Revealed,
    hidden,
)
from evalkit.record.salted import SCHEMA as PUBLIC
from evalkit.record.types import Record

MAX_HEAD = 16 * MiB
MAX_REVEALED = 64 * MiB
KEPT = {"attestation.json", "lock.yaml", "record.json", HEAD, LINES}
CAVEAT = "a public pack: its texts are left out"
_KEYS = {"task", "doc_id", "sha256", "answers", "metrics"}


class Public:
    """A public pack's lines, read once."""

    def __init__(self, folder: Folder, record: Record) -> None:
        self.folder, self.record = folder, record
        self.samples, self.scored = Samples(), Findings("scores")
        self.answering = Findings("answers")
        self.tasks: dict[str, PublicTask] = {}
        self.texts: dict[str, dict[str, str]] = defaultdict(dict)
        self.cut = self.compared = self.count = 0
        self.hidden: set[str] = set()  # leaf tasks that were answered in texts
        self._read()

    def _read(self) -> None:
        shape = self.samples.shape
        try:
            head: PublicHead = self.folder.json(HEAD, MAX_HEAD)
            if head["schema"] != PUBLIC or head["tasks"].keys() != self.record["tasks"].keys():
                shape.add(f"{HEAD} is not of this record")
            self.tasks = head["tasks"]
            for number, raw in self.folder.gzip_lines(LINES):
                self.count = number
                try:
                    self._line(canon.loads(raw))
                except BROKEN as error:
                    shape.add(f"line {number:,}: {reason(error)}")
        except BROKEN as error:
            shape.add(reason(error))

    def _line(self, line: PublicLine) -> None:
        leaf, number = line["task"], line["doc_id"]
        kind = self.record["tasks"][leaf]["output_type"]
        extra = {"multiple_choice": {"lengths"}, "generate_until": {"filtered"}}.get(kind, set())
        if line.keys() != _KEYS | extra or type(number) is not int:
            raise ValueError("holds other fields than a public pack's")
        seen = self.samples.leaves[leaf]
        if number != seen.next_id:
            self.samples.order.add(f"{shown(leaf)} document {number} stands where {seen.next_id}")
        seen.next_id = number + 1
        seen.questions.append("")  # counted; its hash is hidden
        for index, repeats in enumerate(line["answers"]):
            for repeat, answer in enumerate(repeats):
                self._answer(leaf, f"{number}/{index}/{repeat}", answer)
        for name, metrics in line["metrics"].items():
            for metric, value in metrics.items():
                seen.values[metric, name].append(value)
        if kind == "multiple_choice" and self.tasks[leaf]["plain"]:
            self.compared += 1
            self.scored.add(_contradiction(line))

    def _answer(self, leaf: str, request: str, answer: Any) -> None:
        if isinstance(answer, dict):
            self.hidden.add(leaf)
            self.cut += answer["stop"] == "length"
            return
        keys = ("loglikelihood", "is_greedy", "num_tokens") if len(answer) == 3 else (
            "loglikelihood", "num_tokens")  # fmt: skip
        self.texts[leaf][request] = canon.dumps(dict(zip(keys, answer, strict=True)))

    def checks(self) -> list[Check]:
        """Every check that needs no text."""
        record, samples = self.record, self.samples
        lock, shipped = completeness.lock_of(self.folder, record, samples.order)
        agreed = Findings("data")
        if lock is not None:
            completeness.datasets(record, lock, agreed)
        return [
            self._files(),
            identity.ids(record, None),
            completeness.check(record, lock, shipped, samples),
            agreed.check("datasets agree; what hides in digests does with --deep"),
            *completeness.shots(record, lock),
            *completeness.settings(record),
            samples.shape.check(f"{self.count:,} documents without their texts"),
            *self._answers(),
            *self._scores(),
            *aggregates.Aggregates(record, self.tasks, samples, asked.weights(lock)).check(),
            aggregates.ranges(record, samples),
            *health.health(record, None, None),
            health.engine(record),
            health.segments(record),
            health.partial(record),
            *health.dated(record),
        ]

    def _files(self) -> Check:
        findings, listed = Findings("files"), self.record["files"]
        names, strange = self.folder.walk()
        beside = set(filter(identity.is_passing, names - KEPT))
        if extra := names - KEPT - beside | set(strange):
            findings.add(f"{len(extra):,} files that no public pack holds: {few(extra)}")
        findings.add(identity.file_problem(self.folder, "lock.yaml", listed["lock.yaml"]))
        passed = f"{len(names - beside):,} files, {len(listed) - 1:,} left out"
        return identity.with_passing(findings, passed, beside)

    def _answers(self) -> list[Check]:
        recorded, findings = self.record["answers"], self.answering
        for leaf in sorted(recorded.keys() - self.hidden):
            found = journals.digest_of(leaf, self.texts.get(leaf, {}))
            findings.add_unequal(f"{shown(leaf)}: the answers digest", recorded[leaf], found)
        count = sum(map(len, self.texts.values()))
        checks = [findings.check(f"{count:,} answers are those that the record digests")]
        if self.hidden:
            why = f"{len(self.hidden):,} tasks were answered in texts, which are left out"
            checks.append(Check("answers", Status.SKIP, f"{why}: {few(self.hidden)}"))
        return checks

    def _scores(self) -> list[Check]:
        """Without a right answer at hand."""
        found = []
        if self.compared:
            text = f"{self.compared:,} samples' scores do not contradict their answers"
            found.append(self.scored.check(text))
        left = self.count - self.compared
        if left:
            found.append(
                Check("scores", Status.SKIP, f"{left:,} samples are scored by their texts")
            )
        return found


def _contradiction(line: PublicLine) -> str:
    """Two scores by the same choice are equal, and two choices are not both the right one."""
    likelihoods = [_likelihood(repeats[0]) for repeats in line["answers"]]
    if any(value != value for value in likelihoods):
        return ""
    sizes = [[float(length[kind]) for length in line["lengths"]] for kind in (0, 1)]
    winners = {
        "acc": choices.argmax(likelihoods),
        "acc_norm": choices.argmax(choices.divided(likelihoods, sizes[0])),
        "acc_bytes": choices.argmax(choices.divided(likelihoods, sizes[1])),
    }
    for metrics in line["metrics"].values():
        right = {winners[name] for name, v in metrics.items() if name in winners and v == 1}
        wrong = {winners[name] for name, v in metrics.items() if name in winners and v != 1}
        if len(right) > 1 or right & wrong:
            name = f"{shown(line['task'])} document {line['doc_id']}"
            return f"{name}: its scores contradict its answers"
    return ""


def _likelihood(answer: HiddenText | list[Any]) -> float:
    if not isinstance(answer, list):
        raise ValueError("a choice is answered by a text")
    return canon.number(answer[0])


def read_revealed(path: Path) -> Revealed:
    """Read a file that opens a document; EvalkitError if it is none."""
    try:
        opened: Revealed = canon.loads(canon.read_bytes(path, MAX_REVEALED))
    except OSError as error:
        what = f"can't read it: {error.strerror}"
        raise EvalkitError(what, where=str(path), code=Exit.MISSING) from None
    except (ValueError, RecursionError) as error:
        raise EvalkitError(f"it is not readable JSON: {error}", where=str(path)) from None
    if problems := schema.check("revealed", opened):
        raise EvalkitError(f"it opens no document: {problems[0]}", where=str(path))
    return opened


def revealed(folder: Folder, sha256: str, opened: Sequence[Revealed]) -> Check:
    """Check that each opened document is the one that a line of the pack hides. `sha256` is that
    of record.json."""
    if not folder.is_public:
        return Check("revealed", Status.FAIL, "this is no public pack: nothing in it is hidden")
    findings = Findings("revealed")
    remaining = {(document["task"], document["doc_id"]): document for document in opened}
    try:
        for _, raw in folder.gzip_lines(LINES):
            line = canon.loads(raw)
            document = remaining.pop((line["task"], line["doc_id"]), None)
            if document is not None:
                findings.add(_unlike(line, document, sha256))
    except BROKEN as error:
        findings.add(reason(error))
    for task, number in sorted(remaining):
        findings.add(f"the pack has no {shown(task)} document {number}")
    return findings.check(f"{len(opened):,} documents are those behind their digests")


def _unlike(line: PublicLine, opened: Revealed, sha256: str) -> str:
    name, salt = f"{shown(line['task'])} document {line['doc_id']}", opened["salt"]
    if opened["record"] != sha256:
        return f"{name} was opened for another record"
    if hidden(salt, opened["document"]) != line["sha256"]:
        return f"{name} is not the one behind its digest"
    if opened["answers"] is not None:
        answers = [[hidden(salt, text) for text in repeats] for repeats in opened["answers"]]
        if answers != [list(map(_text_digest, repeats)) for repeats in line["answers"]]:
            return f"{name}: its answers are not those behind their digests"
    if opened["filtered"] is not None and _digests(opened["filtered"], salt) != line["filtered"]:
        return f"{name}: what its filters made is not what is behind its digests"
    return ""


def _text_digest(answer: HiddenText | list[Any]) -> str | None:
    return answer["text"] if isinstance(answer, dict) else None


def _digests(value: Any, salt: str) -> Any:
    if isinstance(value, dict):
        return {key: _digests(item, salt) for key, item in value.items()}
    if isinstance(value, list):
        return [_digests(item, salt) for item in value]
    return {"sha256": hidden(salt, str(value))}
