"""Checks every sample's own score against its raw answers: with lm-eval's own task if it is
installed, with `choices` if the scoring is a few known lines; samples that neither can score are
counted.

The recorded configs only decide which way is open; nothing in them is run.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalkit.base import canon
from evalkit.harness.samples import Sample, value_of
from evalkit.harness.scoring import apart, rescore
from evalkit.harness.scoring.own_code import OwnCode, Refused, Unlike
from evalkit.judge.verify.checks import choices
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, reason

CHUNK = 512  # documents that lm-eval scores at once: some of its filters are slow to set up


@dataclass(slots=True)
class Scores:
    """Scores each document handed to it, in order. `release`: lm-eval's that scored them first,
    which may well be another than the installed one (`other`), as another evalkit asked it."""

    configs: Mapping[str, Any]  # lm-eval's of each leaf task, as recorded
    chat: bool
    release: object = None
    other: bool = False
    native: Findings = field(default_factory=lambda: Findings("scores"))
    by_harness: Findings = field(default_factory=lambda: Findings("rescoring"))
    natively: Counter[str] = field(default_factory=Counter)  # leaf -> samples
    harnessed: Counter[str] = field(default_factory=Counter)
    unclear: dict[str, str] = field(default_factory=dict)  # leaf -> why not natively
    partly: dict[str, str] = field(default_factory=dict)  # leaf -> which metrics not natively
    refused: dict[str, str] = field(default_factory=dict)  # leaf -> why not by lm-eval
    unlike: dict[str, str] = field(default_factory=dict)  # leaf -> where its config differs
    _child: apart.Apart = field(default_factory=apart.Apart)
    _leaf: str = ""
    _task: rescore.Task | apart.Away | None = None
    _waiting: list[Document] = field(default_factory=list)

    def add(self, document: Document) -> None:
        """Score one document both ways that are open."""
        if document.leaf != self._leaf:
            self._begin(document)
        if document.leaf not in self.unclear:
            self._natively(document)
        if self._task is not None:
            self._waiting.append(document)
            if len(self._waiting) == CHUNK:
                self._flush()

    def finish(self) -> None:
        """Score what still waits."""
        self._flush()
        self._child.close()

    def _begin(self, document: Document) -> None:
        self._flush()
        self._leaf, self._task = document.leaf, None
        config = self.configs.get(document.leaf)
        if not isinstance(config, dict):
            self.unclear[document.leaf] = self.refused[document.leaf] = "no recorded config"
            return
        try:
            metrics = set(document.first["metrics"])
            if other := metrics - choices.known(config, list(metrics)):
                self.partly[document.leaf] = f"only lm-eval scores {few(other)}"
        except choices.Unclear as why:
            self.unclear[document.leaf] = str(why)
        if rescore.installed() is None:
            self.refused[document.leaf] = "lm-eval isn't installed"
            return
        try:
            self._task = self._built(document, config)
        except Unlike as fields:
            self.unlike[document.leaf] = f"{shown(document.leaf)} ({shown(fields)})"
            self.refused[document.leaf] = "its recorded config is not the installed task's"
        except Refused as why:
            self.refused[document.leaf] = str(why)
        except ImportError:
            why_not = f"lm-eval {rescore.installed()} is not one that this evalkit can ask"
            self.refused[document.leaf] = why_not

    def _built(self, document: Document, config: dict[str, Any]) -> rescore.Task | apart.Away:
        """Return the installed task; one with code of its own in a process apart."""
        leaf, first = document.leaf, document.first["doc"]
        try:
            return rescore.task(leaf, config, first, chat=self.chat)
        except OwnCode:
            return self._child.task(leaf, config, first, chat=self.chat)

    def _natively(self, document: Document) -> None:
        config = self.configs[document.leaf]
        try:
            for sample in document.samples:
                wanted = choices.scores(sample, config, chat=self.chat)
                wanted = {name: wanted[name] for name in sample["metrics"] if name in wanted}
                kind = config["output_type"]
                self.native.add(_unequal(document, sample, wanted, kind))
                self.natively[document.leaf] += 1
        except choices.Unclear as why:
            self.unclear[document.leaf] = str(why)
            del self.natively[document.leaf]
        except BROKEN as error:
            self.native.add(f"{document.name}: {reason(error)}")

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._task is None or not waiting:
            return
        try:
            scored = self._task.score([document.samples for document in waiting])
        except Refused as why:
            self._task, self.refused[self._leaf] = None, str(why)
            self.harnessed.pop(self._leaf, None)
            return
        self.harnessed[self._leaf] += sum(len(document.samples) for document in waiting)
        for document, one in zip(waiting, scored, strict=True):
            self._harnessed(document, one)

    def _harnessed(self, document: Document, scored: rescore.Scored) -> None:
        if scored.problem:
            self.by_harness.add(f"{document.name}: {shown(scored.problem)}")
            return
        if {sample["filter"] for sample in document.samples} != scored.metrics.keys():
            self.by_harness.add(f"{document.name}: its filters are {few(scored.metrics)}")
            return
        for sample in document.samples:
            name, wanted = sample["filter"], scored.metrics[sample["filter"]]
            if sample["filtered_resps"] != scored.filtered[name]:
                found = shown(scored.filtered[name])
                self.by_harness.add(f"{document.name}: filter {shown(name)} gives {found}")
            elif sample["metrics"] != list(wanted):
                self.by_harness.add(f"{document.name}: its metrics are {few(wanted)}")
            else:
                kind = self.configs[document.leaf].get("output_type")
                self.by_harness.add(_unequal(document, sample, wanted, kind))

    def checks(self, lm_eval: str | None) -> list[Check]:
        """Return what came of it: native, by lm-eval, and what neither could do. `lm_eval`: the
        release that a shipped lock names. Where that one is installed, a config that isn't its
        task's fails, as it avoids being scored again; elsewhere it is a warning."""
        found = []
        for done, findings, how in (
            (self.natively, self.native, "recomputed from their answers"),
            (self.harnessed, self.by_harness, f"scored again by lm-eval {rescore.installed()}"),
        ):
            if done or findings.count:
                text = f"{done.total():,} samples of {len(done):,} tasks {how}, equal"
                found.append(self._by_another(findings) or findings.check(text))
        if lm_eval and self.release not in (None, lm_eval):
            other = f"lm-eval {shown(self.release)} scored it, the shipped lock is for {lm_eval}"
            found.append(Check("configs", Status.FAIL, other))
        if self.unlike:
            text = f"{len(self.unlike):,} recorded configs are not the installed lm-eval's:"
            detail = f"{text} {few(self.unlike.values())}"
            same_release = lm_eval == rescore.installed()
            status = Status.FAIL if same_release else Status.WARN
            found.append(Check("configs", status, detail, caveat=text.removesuffix(":")))
        return found + self._skipped()

    def _by_another(self, findings: Findings) -> Check | None:
        """Return the warning for a failed check where another release of lm-eval scored."""
        same = not self.other or self.release in (None, rescore.installed())
        if same or findings is not self.by_harness or not findings.count:
            return None
        releases = f"{shown(self.release)}, not from {rescore.installed()}"
        origin = f"the scores are said to come from lm-eval {releases}"
        detail = f"{origin}: {findings.check('').detail}"
        caveat = f"{origin}, and don't follow from the answers"
        return Check(findings.name, Status.SKIP, detail, caveat)

    def _skipped(self) -> list[Check]:
        """Return what neither could score; the first check's caveat has the number of tasks."""
        reasons: dict[str, set[str]] = defaultdict(set)
        for leaf in sorted((self.unclear | self.partly | self.refused).keys() - self.harnessed):
            if leaf in self.natively and leaf not in self.partly:
                continue
            whys = (self.unclear, self.partly, self.refused)
            reasons["; ".join(why[leaf] for why in whys if leaf in why)].add(leaf)
        count = sum(map(len, reasons.values()))
        caveat = f"{count:,} tasks' samples are not scored again here"
        return [
            Check(
                "rescoring",
                Status.SKIP,
                f"{len(leaves):,} tasks not scored again ({few(leaves)}): {shown(why)}",
                caveat if number == 0 else "",
            )
            for number, (why, leaves) in enumerate(sorted(reasons.items()))
        ]


def has_nan(sample: Sample, kind: object) -> bool:
    """Whether an answer is a NaN log-likelihood; a generation may well say "nan"."""
    if kind == "generate_until":
        return False
    responses = [response for repeats in sample["resps"] for response in repeats]
    return any("nan" in (r if isinstance(r, list) else [r]) for r in responses)


def _unequal(document: Document, sample: Sample, wanted: Mapping[str, Any], kind: object) -> str:
    nan = has_nan(sample, kind)
    for name, value in wanted.items():
        number = isinstance(value, (int, float))
        value = 0.0 if nan and number else value
        recorded = value_of(sample, name)
        if not same(recorded, value):
            return f"{document.name}: {shown(name)} is {shown(recorded)}, should be {value}"
    return ""


def same(recorded: Any, computed: Any) -> bool:
    """Whether a metric's recorded JSON value is the computed one (floats to 1e-9, relative)."""
    if isinstance(computed, (list, tuple)):
        alike = isinstance(recorded, list) and len(recorded) == len(computed)
        return alike and all(map(same, recorded, computed))
    if isinstance(computed, (bool, int, float)):
        try:
            value = recorded if isinstance(recorded, bool) else canon.number(recorded)
        except (ValueError, OverflowError):
            return False
        both_nan = math.isnan(value) and math.isnan(computed)
        return both_nan or math.isclose(value, computed, rel_tol=1e-9, abs_tol=1e-15)
    return bool(recorded == computed)
