"""Checks a score of programs against the verdicts on them.

No program is run here: `evalkit grade RUN` runs them, in an image.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from evalkit.harness import verdicts
from evalkit.harness.samples import Sample, value_of
from evalkit.judge.verify.checks.scores import same
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.findings import Check, Findings, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.types import Record


class Grading:
    """Checks that the scores were made of the recorded verdicts: each program of the samples has a
    verdict, each verdict a program, and the pass rates follow. No program is run."""

    def __init__(self, folder: Folder, record: Record, configs: Mapping[str, Any]) -> None:
        self._graded, self._findings = record["graded"], Findings("grading")
        self._said: verdicts.Verdicts = {}
        self._seen: set[str] = set()
        if self._graded is None:
            for leaf, config in sorted(configs.items()):
                if isinstance(config, dict) and config.get("unsafe_code") is True:
                    what = f"the answers of {shown(leaf)} are programs, and none was graded"
                    self._findings.add(what)
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
            self._findings.add(_wrong_rate(document, sample, passed, len(names)))

    def checks(self) -> list[Check]:
        """What came of it; nothing for a record without programs."""
        if self._graded is None:
            return [self._findings.check("")] if self._findings.count else []
        if extra := self._said.keys() - self._seen:
            self._findings.add(f"{len(extra):,} verdicts are of no program")
        counts = Counter(self._said.values())
        self._findings.add_unequal("programs", self._graded["programs"], len(self._said))
        self._findings.add_unequal("passed", self._graded["passed"], counts["passed"])
        words = f"{len(self._said):,} programs, {counts['passed']:,} passed in an image"
        return [self._findings.check(f"{words} {shown(self._graded['image'])[:19]}")]


def _wrong_rate(document: Document, sample: Sample, passed: int, count: int) -> str:
    """A pass rate that does not follow from the verdicts, or nothing."""
    for name in set(sample["metrics"]) & set(verdicts.METRICS):
        rate = value_of(sample, name)
        values = rate if isinstance(rate, dict) else {"pass@1": rate}
        for key, value in values.items():
            k = int(key.rpartition("@")[2] or 1)
            if not 1 <= k <= count:
                return f"{document.name}: {shown(key)} of {count:,} programs"
            wanted = verdicts.pass_at_k(passed, count, k)
            if not same(value, wanted):
                return f"{document.name}: {shown(key)} is {shown(value)}, should be {wanted}"
    return ""
