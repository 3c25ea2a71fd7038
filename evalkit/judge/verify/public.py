"""Checks a public pack, which is a record without its texts.

What needs no text is checked: the record, the list of files, the number of documents, the digests
of answers that are numbers, the means and errors. The last line says how many scores are the
author's word. `--deep` checks what the salted digests hide, from the pinned data; texts that a
model wrote are checked only where the author reveals them (`revealed`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from evalkit.base import canon
from evalkit.inputs.chat.texts import Texts
from evalkit.judge.verify.checks import aggregates, agreement, asked, completeness, health, hidden
from evalkit.record.reading import identity
from evalkit.record.reading.evidence import journal as journals
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.salted import HEAD, LINES, PublicHead, PublicLine, PublicTask
from evalkit.record.salted import SCHEMA as PUBLIC
from evalkit.record.types import Record

MAX_HEAD = 16 * MiB
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
        self.numbers: dict[str, dict[str, str]] = defaultdict(dict)  # by leaf and request
        self.texts: dict[str, Texts] = defaultdict(Texts)
        self.compared = self.generated = self.count = self.nan = 0
        self._foreign = record["engine"]["name"] != "evalkit"
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
        seen.filters = seen.filters or tuple(line["metrics"])
        if set(line["metrics"]) != set(seen.filters):
            self.samples.order.add(f"{shown(leaf)} document {number} has other filters")
        for index, repeats in enumerate(line["answers"]):
            for repeat, answer in enumerate(repeats):
                self._answer(leaf, f"{number}/{index}/{repeat}", answer)
        self._note_values(line)
        for name, metrics in line["metrics"].items():
            for metric, value in metrics.items():
                seen.values[metric, name].append(value)
        self.generated += kind == "generate_until"
        if kind != "generate_until" and self.tasks[leaf]["plain"]:
            self.compared += 1
            self.scored.add(hidden.contradiction(line, kind))

    def _note_values(self, line: PublicLine) -> None:
        values = [hidden.likelihood(answer) for repeats in line["answers"] for answer in repeats]
        self.nan += any(value != value for value in values)
        self.samples.ties[line["task"]] += values.count(max(values)) > 1

    def _answer(self, leaf: str, request: str, answer: Any) -> None:
        kind = self.record["tasks"][leaf]["output_type"]
        found = hidden.named(answer, kind, foreign=self._foreign)
        if found is not None:
            self.numbers[leaf][request] = canon.dumps(found)
            return
        tokens = range(answer.get("tokens", 0))
        doc_id = int(request.partition("/")[0])
        self.texts[leaf].add(doc_id, {"stop": answer["stop"], "tokens": tokens})

    def checks(self) -> list[Check]:
        """Every check that needs no text."""
        record, samples = self.record, self.samples
        lock, shipped = completeness.lock_of(self.folder, record, samples.order)
        agreed = Findings("data")
        completeness.datasets(record, lock, agreed)
        ours = lock if shipped else None  # the author's is his word, as how his code scores is
        aggregated = hidden.aggregations(self.tasks, ours)
        scored = lock["group_scores"] if lock else None
        return [
            self._files(),
            identity.ids(record, None),
            completeness.check(record, lock, shipped, samples),
            agreed.check("datasets agree; what only digests tell is checked with --deep"),
            *completeness.shots(record, lock),
            asked.scoring(record, ours, None, samples, shipped, aggregated),
            *asked.settings(record),
            samples.shape.check(f"{self.count:,} documents without their texts"),
            *self._answers(),
            *self._scores(),
            *aggregates.Aggregates(record, self.tasks, samples, scored).check(),
            aggregates.ranges(record, samples, self.tasks),
            agreement.check(record, None, None, None, samples),
            *health.health(record, None, None),
            *self._texts(),
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
        for leaf in sorted(recorded.keys() - self.texts.keys()):
            found = journals.digest_of(leaf, self.numbers.get(leaf, {}))
            findings.add_unequal(f"{shown(leaf)}: the answers digest", recorded[leaf], found)
        count = sum(map(len, self.numbers.values()))
        checks = [findings.check(f"{count:,} answers have the digests in the record")]
        if self.texts:
            why = f"{len(self.texts):,} tasks were answered in texts, which are left out"
            checks.append(Check("answers", Status.SKIP, f"{why}: {few(self.texts)}"))
        return checks

    def _texts(self) -> list[Check]:
        """Count texts, ties and NaN answers again, as far as no text is needed for it."""
        counts, tasks, findings = self.record["health"], self.record["tasks"], Findings("texts")
        if not isinstance(counts["cut_generations"], dict):
            cut = sum(texts.cut for texts in self.texts.values())
            findings.add_unequal("cut_generations", counts["cut_generations"], cut)
        kinds = {leaf: task["output_type"] for leaf, task in tasks.items()}
        ties = sum(n for leaf, n in self.samples.ties.items() if kinds[leaf] == "multiple_choice")
        findings.add_unequal("exact_ties", counts["exact_ties"], ties)
        findings.add_unequal("nan_answers", counts["nan_answers"], self.nan)
        for leaf, texts in sorted(self.texts.items()):
            recorded = tasks[leaf].get("texts")
            if recorded is None:
                continue
            values = self.samples.leaves[leaf].by_metric
            counted = canon.finite(texts.to_json(values, tasks[leaf]["metrics"]))
            for key in ("count", "cut", "ended"):
                findings.add_unequal(f"{shown(leaf)}: {key}", recorded[key], counted[key])
            findings.add_unequal(f"{shown(leaf)}: tokens", *map(_all, (recorded, counted)))
        return [findings.check(f"{len(self.texts):,} tasks' texts and all ties counted again")]

    def _scores(self) -> list[Check]:
        """Return the checks of scores, which need no right answer."""
        found = []
        if self.compared:
            text = f"{self.compared:,} samples' scores do not contradict their answers"
            found.append(self.scored.check(text))
        left = {"their texts": self.generated, "code or filters of their task": self._by_code}
        return found + [
            Check("scores", Status.SKIP, f"{count:,} samples are scored by {how}")
            for how, count in left.items()
            if count > 0
        ]

    @property
    def _by_code(self) -> int:
        return self.count - self.compared - self.generated

    def caveats(self, checks: Sequence[Check]) -> list[str]:
        """Return what the last line says of the pack. With its data at hand, most of what code
        scores was scored again."""
        again = any(check.name == "deep texts" and check.status is Status.PASS for check in checks)
        left = self.generated + (0 if again else max(self._by_code, 0))
        words = f"the scores of {left:,} documents are their author's word"
        return [CAVEAT, *([words] if left else [])]


def _all(texts: Any) -> Any:
    """Return the number of tokens, since a public pack does not tell thoughts' from others."""
    tokens = texts["tokens"]
    return tokens if "unknown" in tokens else sum(tokens.values())
