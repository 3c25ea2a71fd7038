"""Checks whether the journal answers every planned request, and reads what it answered.

A torn or altered line does no harm as long as its batch stands intact elsewhere; a batch that
stands twice must have equal answers. Answers are kept as the strings in which lm-eval writes them
into its samples, and as digests: a night's generations do not fit in memory as lists.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted  # canonical JSON of a string
from typing import Any

from evalkit.base import canon
from evalkit.inputs.chat.texts import Texts, cut_problem, fits_a_text
from evalkit.inputs.types import Answer, Generation
from evalkit.record.journal import NOTHING
from evalkit.record.reading.evidence import possible
from evalkit.record.reading.evidence.plan import Plan
from evalkit.record.reading.findings import Findings, difference, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.types import JournalLine, Record

_NAME = re.compile(r"journal/([A-Za-z0-9][A-Za-z0-9._-]*)[.]jsonl", re.ASCII)
_KEYS = {"schema", "run", "batch", "segment", "answers", "sha256"}
_ANSWER_KEYS = {
    "loglikelihood": {"loglikelihood", "is_greedy", "num_tokens"},
    "loglikelihood_rolling": {"loglikelihood", "num_tokens"},
    "generate_until": {"text", "tokens", "logprobs", "margins", "stop"},
}
_MORE_KEYS = {"raw", "thought"}  # of texts that are cut, and of those that think
STOPS = ("eos", "stop_string", "length")
_TELLING = ("tokens", "logprobs", "margins", "stop")  # what an engine of lm-eval's need not tell

Said = str | list[str]  # a response as lm-eval's samples hold it


@dataclass(slots=True)
class Journal:
    """The answers of a journal. `said`: leaf task -> `<doc_id>/<request>/<repeat>` -> response."""

    said: dict[str, dict[str, Said]] = field(default_factory=lambda: defaultdict(dict))
    digests: dict[str, str] = field(default_factory=dict)
    segments: set[str] = field(default_factory=set)
    set_aside: int = 0
    settled: int = 0  # batches that were answered unequally, one segment's answers being preferred
    splits: int = 0  # batches that were cut in halves because memory ran out
    texts: dict[str, Texts] = field(default_factory=lambda: defaultdict(Texts))  # by leaf task
    untold: int = 0  # generations of which the engine did not say why they ended
    empty: int = 0  # without a character
    blank: int = 0  # without a character that shows
    nothing: set[tuple[str, str]] = field(default_factory=set)  # requests without a text to score
    nan: set[tuple[str, str]] = field(default_factory=set)  # (leaf task, doc_id) with a NaN
    by_segment: Counter[str] = field(default_factory=Counter)  # batches that each answered first
    scored: dict[str, int] = field(default_factory=dict)  # part id -> tokens that it scored
    single: dict[str, tuple[int, int]] = field(default_factory=dict)  # one token -> where, which
    flip: float = 0.0  # `possible.flip`

    @property
    def cut(self) -> int:
        """The number of generations that ended at the length limit."""
        return sum(texts.cut for texts in self.texts.values())

    @property
    def endless(self) -> int:
        """The number of generations that began to think and never stopped."""
        return sum(texts.endless for texts in self.texts.values())


class _Reader:
    """Reads lines into a Journal. `foreign`: the engine was one of lm-eval's, which does not tell
    all of an answer. `seen`: each batch's answers' digest."""

    def __init__(
        self, plan: Plan, run: str, findings: Findings, *, foreign: bool, prefer: str | None
    ) -> None:
        self.plan, self.run, self.findings, self.foreign = plan, run, findings, foreign
        self.journal = Journal()
        self.seen: dict[str, str] = {}
        self.prefer = prefer
        self.preferred: set[str] = set()  # batches that this segment, which is read first, answered
        self.settled: set[str] = set()
        self.endings = possible.Endings()
        self.texts: dict[str, dict[str, str]] = defaultdict(dict)  # leaf -> request -> canonical
        self.windows: dict[str, dict[str, list[tuple[int, float, int]]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def line(self, where: str, segment: str, raw: bytes) -> None:
        try:
            line = canon.loads(raw)
            answers = {part: canon.dumps(answer) for part, answer in line["answers"].items()}
            intact = raw.endswith(b"\n") and _checksum(line, answers) == line["sha256"]
        except BROKEN:
            intact = False
        if not intact:
            self.journal.set_aside += 1
            return
        if problem := self._problem(line, segment):
            self.findings.add(f"{where}: {problem}")
        else:
            self._keep(where, line, answers)

    def _problem(self, line: Any, segment: str) -> str:
        """Say why an intact line is no line of this run's journal; empty if it is one."""
        if line.keys() - {"split"} != _KEYS or line["schema"] != "evalkit/journal/1":
            return "not a journal line of schema 1"
        depth = line.get("split", 1)
        if type(depth) is not int or depth < 1:
            return f"split {shown(depth)} times"
        if line["segment"] != segment:
            return f"written by segment {shown(line['segment'])}"
        if line["run"] != self.run:
            return f"of another run, {shown(line['run'])[:19]}"
        if line["batch"] not in self.plan.batches:
            return f"batch {shown(line['batch'])[:19]} is not in the plan"
        batch = self.plan.batches[line["batch"]]
        wanted = {f"{batch.task}/{part}" for part in batch.parts}
        if line["answers"].keys() != wanted:
            return difference(set(line["answers"]), wanted, "answers")
        for part, answer in line["answers"].items():
            if not _fits(batch.kind, answer, foreign=self.foreign):
                return f"the answer of {shown(part)} is not a {batch.kind} answer"
            if problem := possible.problem(answer, batch.settings, foreign=self.foreign):
                return f"the answer of {shown(part)} can't be: {problem}"
            if batch.settings and (problem := cut_problem(answer, batch.settings)):
                return f"the answer of {shown(part)} {problem}"
        return ""

    def _keep(self, where: str, line: JournalLine, answers: dict[str, str]) -> None:
        batch = self.plan.batches[line["batch"]]
        text = "\n".join(answers[part] for part in sorted(answers))
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.journal.segments.add(line["segment"])
        if line["batch"] in self.seen:
            if self.seen[line["batch"]] == digest:
                return
            if line["batch"] in self.preferred:
                self.settled.add(line["batch"])
            else:
                name = line["batch"][:19]
                self.findings.add(f"{where}: batch {name} was answered unequally before")
            return
        if line["segment"] == self.prefer:
            self.preferred.add(line["batch"])
        self.seen[line["batch"]] = digest
        self.journal.by_segment[line["segment"]] += 1
        self.journal.splits += "split" in line
        prefix = len(batch.task) + 1
        for part, answer in line["answers"].items():
            self._answer(batch.task, part[prefix:], answer, answers[part])
        if batch.kind == "loglikelihood" and not self.foreign:
            for part, place in zip(batch.parts, batch.scored, strict=True):
                answer = line["answers"][name := f"{batch.task}/{part}"]
                if "text" not in answer and answer["num_tokens"] == 1:
                    self.journal.single[name] = place

    def _answer(self, leaf: str, part: str, answer: Answer, text: str) -> None:
        if "text" in answer:
            self.texts[leaf][part] = text
            self._generation(leaf, part, answer)
            return
        value, num_tokens = canon.number(answer["loglikelihood"]), answer["num_tokens"]
        self.journal.scored[f"{leaf}/{part}"] = num_tokens
        if "is_greedy" in answer:
            self.texts[leaf][part] = text
            said = [str(value), str(answer["is_greedy"])]
            self._note(leaf, part, said, nan=math.isnan(value))
        else:
            request, _, number = part.partition("#")
            self.windows[leaf][request].append((int(number or 0), value, num_tokens))

    def _generation(self, leaf: str, part: str, answer: Generation) -> None:
        self.endings.note(answer)
        self._note(leaf, part, answer["text"], nan="nan" in answer["logprobs"])
        self.journal.untold += isinstance(answer["stop"], dict)
        self.journal.texts[leaf].add(int(part.partition("/")[0]), answer)
        self.journal.empty += answer["text"] == ""
        self.journal.blank += answer["text"].strip() == ""

    def _note(self, leaf: str, request: str, said: Said, *, nan: bool) -> None:
        self.journal.said[leaf][request] = said
        if nan:
            self.journal.nan.add((leaf, request.partition("/")[0]))

    def finish(self) -> Journal:
        for leaf, requests in self.windows.items():
            for request, windows in requests.items():
                total, count = 0.0, 0
                for _, value, tokens in sorted(windows, key=lambda window: window[0]):
                    total += value  # one by one: Python's sum() rounds otherwise from 3.12 on
                    count += tokens
                answer = {"loglikelihood": total, "num_tokens": count}
                self.texts[leaf][request] = canon.dumps(answer)
                self._note(leaf, request, str(total), nan=math.isnan(total))
        for leaf, empty in self.plan.body["empty_texts"].items():
            for request in empty:  # no batch asks for it
                self.texts[leaf][request] = canon.dumps(NOTHING)
                self._note(leaf, request, str(NOTHING["loglikelihood"]), nan=False)
                self.journal.nothing.add((leaf, request))
        for leaf, texts in self.texts.items():
            self.journal.digests[leaf] = digest_of(leaf, texts)
        self.journal.settled = len(self.settled)
        self.findings.add(self.endings.problem)
        return self.journal


def _checksum(line: Mapping[str, object], answers: dict[str, str]) -> str:
    """Return the sha256 of the canonical line without its checksum. `answers` are canonical already
    and sort before every other key, so nothing is dumped twice."""
    rest = {key: value for key, value in line.items() if key not in ("answers", "sha256")}
    pairs = ",".join(f"{quoted(part)}:{answers[part]}" for part in sorted(answers))
    text = f'{{"answers":{{{pairs}}},{canon.dumps(rest)[1:]}'
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(leaf: str, texts: dict[str, str]) -> str:
    """Return canon.digest([[request id, answer], ...]), sorted; `texts` are canonical answers."""
    ids = sorted((f"{leaf}/{request}", request) for request in texts)
    pairs = ",".join(f"[{quoted(name)},{texts[request]}]" for name, request in ids)
    return canon.digest_bytes(f"[{pairs}]".encode())


def _fits(kind: str, answer: Any, *, foreign: bool) -> bool:
    if not isinstance(answer, dict):
        return False
    more = _MORE_KEYS if kind == "generate_until" else set()
    if answer.keys() - more != _ANSWER_KEYS[kind] or not fits_a_text(answer):
        return False
    if kind == "generate_until":
        if foreign and all(possible.is_unknown(answer[key]) for key in _TELLING):
            return isinstance(answer["text"], str)
        tokens, logprobs, margins = answer["tokens"], answer["logprobs"], answer["margins"]
        return (
            isinstance(answer["text"], str)
            and answer["stop"] in STOPS
            and set(map(type, tokens)) <= {int}
            and len(tokens) == len(logprobs) == len(margins)
            and possible.are_numbers(logprobs)
            and possible.are_numbers(margins)
        )
    greedy = answer.get("is_greedy", False)
    return (
        possible.is_number(answer["loglikelihood"])
        and type(answer["num_tokens"]) is int
        and isinstance(greedy, bool)
    )


def read(folder: Folder, record: Record, plan: Plan, findings: Findings) -> Journal | None:
    """Read every segment's journal; what is wrong or lost goes into the findings."""
    foreign = record["engine"]["name"] != "evalkit"
    preferred = record["preferred"]
    prefer = preferred["segment"] if preferred else None
    reader = _Reader(plan, record["ids"]["run"], findings, foreign=foreign, prefer=prefer)
    reader.journal.flip = possible.flip(record["numerics"])
    names = sorted(name for name in record["files"] if name.startswith("journal/"))
    names.sort(key=lambda name: name != f"journal/{prefer}.jsonl")
    try:
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                findings.add(f"{shown(name)} is not a segment's journal")
                continue
            for number, raw in folder.lines(name):
                reader.line(f"{name} line {number:,}", match[1], raw)
        journal = reader.finish()
    except BROKEN as error:
        findings.add(reason(error))
        return None
    if lost := set(plan.batches) - set(reader.seen):
        first = few({batch[:19] for batch in lost}, len(lost))
        findings.add(f"{len(lost):,} batches lost: {first}")
    num_preferred = preferred["batches"] if preferred else 0
    findings.add_unequal("preferred batches", num_preferred, journal.settled)
    described = {segment["segment"] for segment in record["segments"]}
    if extra := journal.segments - described:
        findings.add(f"segments that the record does not describe: {few(extra)}")
    _compare(record["answers"], journal.digests, findings)
    return journal


def _compare(recorded: dict[str, str], found: dict[str, str], findings: Findings) -> None:
    findings.add(difference(set(found), set(recorded), "leaf tasks' answers"))
    unequal = {leaf for leaf in set(found) & set(recorded) if found[leaf] != recorded[leaf]}
    if unequal:
        findings.add(f"{len(unequal):,} leaf tasks have other answers digests: {few(unequal)}")


def passed(journal: Journal, plan: Plan) -> str:
    """Return the detail of the check of a good journal."""
    torn = f", {journal.set_aside} torn lines stand elsewhere" if journal.set_aside else ""
    return f"{len(plan.batches):,} batches answered, digests of {len(journal.digests)} tasks{torn}"
