"""Verifies one run's folder: reads what it holds once, and makes each check from that."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import evalkit
from evalkit.base import bounded
from evalkit.base.errors import EvalkitError, Exit, no_right
from evalkit.inputs.types import LockBody
from evalkit.judge.verify import deep as deeper
from evalkit.judge.verify import policy as policies
from evalkit.judge.verify import public, signers
from evalkit.judge.verify import revealed as revealing
from evalkit.judge.verify.checks import aggregates, agreement, asked, completeness, health
from evalkit.judge.verify.checks import results as published
from evalkit.judge.verify.checks.grading import Grading
from evalkit.judge.verify.checks.scores import Scores
from evalkit.judge.verify.claims import Trust, check_seal, trust
from evalkit.judge.verify.deep import Deep
from evalkit.judge.verify.policy import Policy
from evalkit.record.reading import identity
from evalkit.record.reading.evidence import journal as journals
from evalkit.record.reading.evidence import plan as plans
from evalkit.record.reading.evidence import samples as sampled
from evalkit.record.reading.findings import UNMET, Check, Findings, Report, Status, shown
from evalkit.record.reading.folder import BROKEN, Folder, checked, reason
from evalkit.record.salted import Revealed
from evalkit.record.signing import timestamps
from evalkit.record.types import Record

# What the checks of these names do not know is known once all is asked and scored again (`deep`).
_SCORED_AGAIN = ("asked", "scoring", "rescoring", "aggregates")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader asks of a record beyond consistency: who signed it (`trust`), the checks that
    need data or a model (`deep`), a policy, documents of a public pack that its author revealed."""

    trust: Trust = field(default_factory=Trust)
    deep: Deep | None = None
    policy: Policy | None = None
    revealed: tuple[Revealed, ...] = ()
    authorities: tuple[Any, ...] = ()  # certificates of timestamp authorities

    @property
    def asked(self) -> bool:
        """Whether the reader asks for something that only a record can have."""
        return self.trust.asked or self.policy is not None


def wanted(
    keys: Sequence[Path] = (), allowed: Path | None = None, policy: Path | None = None,
    deep: Deep | None = None, revealed: Sequence[Path] = (),
    authorities: Path | None = None,
) -> Wanted:  # fmt: skip
    """Read what a reader asks from files: public keys, an allowed_signers file, a policy, files
    that open documents, certificates of timestamp authorities."""
    opened = tuple(map(revealing.read, revealed))
    trusted = timestamps.authorities(authorities) if authorities else ()
    rules = policies.read(policy) if policy else None
    return Wanted(trust(keys, allowed), deep, rules, opened, trusted)


def verify(run: Path, wanted: Wanted = Wanted()) -> Report:
    """Check a run's folder; EvalkitError (3) only where there is none. The order: record,
    signatures, files, ids, plan, journal, completeness and data, samples and answers, scores,
    aggregates, ranges, health, engine and segments, wholeness, the deep checks, the reader's
    policy."""
    if not run.is_dir():
        raise EvalkitError("there is no such run folder", where=str(run), code=Exit.MISSING)
    if not (run / "record.json").exists() and (run / "run.json").is_file():
        return Report([Check("record", Status.FAIL, "it is not written yet")], unfinished=True)
    folder = Folder(run)
    _require_rights(folder)
    read = identity.record(folder)
    if read.record is None:
        return Report([read.check], advice=read.advice)
    record = read.record
    by = wanted.trust, wanted.authorities
    sealed = check_seal(folder, record, *by)
    signed, standing = signers.check(folder, record, read.sha256, *by, sealed.signer)
    standing = replace(standing, sealed=sealed.words)
    checks = [read.check, *signed, *sealed.checks]
    pack = public.Public(folder, record) if folder.is_public else None
    if pack is not None:
        checks += checked("public", pack.checks)
    else:
        checks += _Evidence(folder, record).checks()
    if wanted.revealed:
        checks.append(revealing.check(folder, read.sha256, wanted.revealed))
    if wanted.deep is not None:
        checks += _deep(folder, read, checks, wanted.deep)
    if wanted.policy is not None:
        checks.append(policies.check(wanted.policy, record, checks, standing))
    caveats = [*(pack.caveats(checks) if pack else []), *_caveats(record, checks)]
    return Report(checks, caveat="; ".join(caveats), standing=standing)


def _caveats(record: Record, checks: Sequence[Check]) -> list[str]:
    """Return what the last line says of the engine, and what the checks add to it."""
    engine = record["engine"]
    words = [] if engine["bit_repeatable"] else [f"not bit-repeatable ({shown(engine['name'])})"]
    again = any(check.name == "deep scores" and check.status is Status.PASS for check in checks)
    known = _SCORED_AGAIN if again else ()
    return words + [each.caveat for each in checks if each.caveat and each.name not in known]


def _require_rights(folder: Folder) -> None:
    """Raise EvalkitError (3) where this process may not read one of the run's files."""
    try:
        names, _ = folder.walk()
    except PermissionError as error:
        raise no_right(error.filename) from None
    except (OSError, EvalkitError):
        return  # too many files, say, which is for a check to say
    for name in sorted(names):
        if not identity.is_passing(name) and not os.access(folder.root / name, os.R_OK):
            raise no_right(folder.root / name)


def require_consistent(run: Path, purpose: str) -> None:
    """Raise EvalkitError (1) for a record that contradicts itself, (3) where there is none.
    `purpose` is a verb: what can't be done with such a record."""
    identity.require(run)
    report = bounded.run(lambda: verify(run), [run])
    if not report.consistent:
        wrong = "contradicts itself" if report.readable else "can't be read here"
        raise EvalkitError(
            f"the record {wrong}, so there is nothing to {purpose}: {report.verdict}",
            where=str(run), fix="see evalkit verify", code=Exit.FAILED,
        )  # fmt: skip


def _deep(folder: Folder, read: identity.Read, made: list[Check], deep: Deep) -> list[Check]:
    if any(check.status is Status.FAIL for check in made if check.name not in UNMET):
        return [Check("deep", Status.SKIP, "only a consistent record is looked at more deeply")]
    return deeper.checks(folder, read, deep)


def _problem(step: Callable[[], None]) -> str:
    """Take a step; say how broken input made it fail, empty if it did not."""
    try:
        step()
    except BROKEN as error:
        return reason(error)
    return ""


class _Evidence:
    """The content of a valid record's folder, read once."""

    def __init__(self, folder: Folder, record: Record) -> None:
        self.folder, self.record = folder, record
        self.planning, self.answering = Findings("plan"), Findings("journal")
        self.publishing = Findings("results")
        self.plan = plans.read(folder, self.planning)
        self.journal: journals.Journal | None = None
        if self.plan is not None:
            self.journal = journals.read(folder, record, self.plan, self.answering)
        self.results = published.read(folder, self.publishing)
        self.samples = sampled.Samples()
        chat, results = bool(record["suite"]["apply_chat_template"]), self.results
        self.scores = Scores(
            results["configs"] if results else {}, chat,
            results.get("lm_eval_version") if results else None,
            other=record["environment"]["versions"]["evalkit"] != evalkit.__version__,
        )  # fmt: skip
        self.grading = Grading(folder, record, results["configs"] if results else {})
        for document in sampled.documents(folder, self.samples):
            for step in (self._note, self.scores.add, self.grading.add):
                if problem := _problem(partial(step, document)):
                    self.samples.shape.add(f"{document.name}: {problem}")
        self.samples.shape.add(_problem(self.scores.finish))

    def _note(self, document: sampled.Document) -> None:
        sampled.note(document, self.samples, self.journal)

    def checks(self) -> list[Check]:
        record, samples, plan = self.record, self.samples, self.plan
        lock, shipped = completeness.lock_of(self.folder, record, self.samples.order)
        each = completeness.rows_of(self.folder, lock, self.samples.order)
        steps: list[tuple[str, Callable[[], Check | list[Check]]]] = [
            ("files", lambda: identity.files(self.folder, record)),
            ("ids", lambda: identity.ids(record, plan.body if plan else None)),
            ("run", lambda: identity.planned(self.folder, record)),
            ("plan", self._plan),
            ("journal", self._journal),
            ("completeness", lambda: completeness.check(record, lock, shipped, samples)),
            ("data", lambda: completeness.data(record, lock, each, samples)),
            ("asked", lambda: asked.prompts(record, lock, each, samples)),
            ("scoring", lambda: asked.scoring(record, lock, self.results, samples, shipped)),
            ("settings", lambda: asked.settings(record)),
            ("samples", lambda: samples.shape.check(f"{samples.lines:,} samples, hashes equal")),
            ("answers", self._answers),
            ("scores", lambda: self.scores.checks(lock["lm_eval"] if lock and shipped else None)),
            ("grading", self.grading.checks),
            ("results", lambda: self._aggregates(lock)),
            (
                "ranges",
                lambda: aggregates.ranges(
                    record, samples, self.results["configs"] if self.results else None
                ),
            ),
            ("agreement", self._agreement),
            ("health", lambda: health.health(record, plan, self.journal, samples)),
            ("texts", lambda: health.texts(record, self.journal, samples)),
            ("engine", lambda: health.engine(record)),
            ("segments", lambda: health.segments(record)),
            ("whole", lambda: health.partial(record)),
            ("created", lambda: health.dated(record)),
        ]
        return [check for name, make in steps for check in checked(name, make)]

    def _plan(self) -> Check:
        if self.plan is None:
            return self.planning.check("")
        requests = {leaf: seen.requests for leaf, seen in self.samples.leaves.items()}
        scored = self.journal.scored if self.journal else {}
        return plans.check(self.folder, self.plan, requests, scored, self.planning)

    def _journal(self) -> Check:
        if self.plan is None or self.journal is None:
            if self.answering.count:
                return self.answering.check("")
            return Check("journal", Status.SKIP, "the plan can't be read")
        return self.answering.check(journals.passed(self.journal, self.plan))

    def _agreement(self) -> Check:
        return agreement.check(self.record, self.results, self.plan, self.journal, self.samples)

    def _answers(self) -> Check:
        if self.journal is None:
            return Check("answers", Status.SKIP, "the journal can't be read")
        unused = sum(
            len(said.keys() - self.samples.leaves[leaf].requests)
            for leaf, said in self.journal.said.items()
            if leaf in self.samples.leaves
        )
        if unused:
            self.samples.answers.add(f"{unused:,} answers in the journal are of no sample")
        count = sum(map(len, self.journal.said.values()))
        return self.samples.answers.check(f"{count:,} responses equal the journal's answers")

    def _aggregates(self, lock: LockBody | None) -> list[Check]:
        if self.results is None:
            return [self.publishing.check("")]
        configs, scored = self.results["configs"], lock["group_scores"] if lock else None
        found = aggregates.Aggregates(self.record, configs, self.samples, scored).check()
        hashes = {leaf: seen.task_hash for leaf, seen in self.samples.leaves.items()}
        return [*found, published.check(self.record, self.results, hashes)]
