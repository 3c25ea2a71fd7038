"""Whether the verdicts on programs are those that the scores were made of.

Every program is made again from the samples: it must have a verdict, every verdict a program, and a
document's pass rate follow from them. No program is run: `evalkit grade RUN` does that again.
"""

from collections import Counter
from typing import Any

from evalkit.harness import verdicts
from evalkit.harness.samples import Sample, value_of
from evalkit.judge.verify.checks.scores import same
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.findings import Check, Findings, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason

Value = dict[str, Any]


class Grading:
    """Holds documents against a record's verdicts."""

    def __init__(self, folder: Folder, record: Value) -> None:
        self._graded, self._findings = record["graded"], Findings("grading")
        self._said: verdicts.Verdicts = {}
        self._seen: set[str] = set()
        if self._graded is None:
            return
        try:
            self._said = verdicts.parse(raw for _, raw in folder.lines(verdicts.NAME))
        except BROKEN as error:
            self._findings.add(f"{verdicts.NAME}: {reason(error)}", first=True)

    def add(self, document: Document) -> None:
        """Hold one document's pass rates against the verdicts on its programs."""
        if self._graded is None:
            return
        for sample in document.samples:
            if not set(sample["metrics"]) & set(verdicts.METRICS):
                continue
            names = [verdicts.name_of(text) for text in verdicts.of_sample(sample)]
            self._seen.update(names)
            if missing := [name for name in names if name not in self._said]:
                self._findings.add(f"{document.name}: program {missing[0][:12]} has no verdict")
                continue
            passed = sum(self._said[name] == "passed" for name in names)
            self._findings.add(_unequal(document, sample, passed, len(names)))

    def checks(self) -> list[Check]:
        """What came of it; nothing for a record without programs."""
        if self._graded is None:
            return []
        if extra := self._said.keys() - self._seen:
            self._findings.add(f"{len(extra):,} verdicts are of no program")
        counts = Counter(self._said.values())
        told = {"programs": len(self._said), "passed": counts["passed"]}
        for key, count in told.items():
            self._findings.add_unequal(key, self._graded[key], count)
        words = f"{len(self._said):,} programs, {counts['passed']:,} passed in an image"
        return [self._findings.check(f"{words} {shown(self._graded['image'])[:19]}")]


def _unequal(document: Document, sample: Sample, passed: int, count: int) -> str:
    """A pass rate that does not follow from the verdicts, or nothing."""
    for name in set(sample["metrics"]) & set(verdicts.METRICS):
        value = value_of(sample, name)
        values = value if isinstance(value, dict) else {"pass@1": value}
        for key, value in values.items():
            wanted = verdicts.pass_at_k(passed, count, int(key.rpartition("@")[2] or 1))
            if not same(value, wanted):
                return f"{document.name}: {shown(key)} is {shown(value)}, should be {wanted}"
    return ""
