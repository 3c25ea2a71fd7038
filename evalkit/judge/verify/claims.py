"""Whose signature the reader trusts, and whether a signed claim or seal can be true of a record.

A signature only says who speaks. A claim that contradicts itself or the record is refused whoever
signed it. A seal must be of this run and older than the first answer: only a timestamp by an
authority that the reader trusts shows that, else it is the author's word.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit.inputs.files import sha256s
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.sections import Segment
from evalkit.record.segments import time_in_name
from evalkit.record.signing import keys, sealing, timestamps
from evalkit.record.signing.attest import AUDIT, EVALUATION, PUBLICATION, Statement
from evalkit.record.signing.keys import Public
from evalkit.record.signing.sealing import Seal
from evalkit.record.signing.types import Claim
from evalkit.record.types import Record

AUDITED = {"verdict", "samples", "failed", "seed", "share", "difference"}
VERDICTS = ("PASSED", "FAILED")  # an audit's; any other is a reproduction's
LARGEST_MARGIN = 0.05  # of a reproduction: its cap
COMPARED = ("ANSWERS", "NUMERICS", "REPRODUCED", "DIFFERENT")  # by which answers are unequal

_SLACK_S = 60.0  # by which the clocks of where it was sealed and where it ran may be apart


@dataclass(frozen=True, slots=True)
class Trust:
    """The reader's list: names by key. `asked`: there is a list, so one on it must have signed."""

    names: dict[Public, str] = field(default_factory=dict)
    asked: bool = False

    def name(self, key: Public) -> str:
        """Return the name that a key has on the list, or its fingerprint."""
        return shown(self.names.get(key, key.fingerprint))

    def people(self, key: Public) -> set[str]:
        """Return all names that the list gives a key, which are separated by commas; none where it
        is not on the list. Two keys that share one are the same person's."""
        names = (name.strip().casefold() for name in self.names.get(key, "").split(","))
        return set(filter(None, names))


def trust(key_files: Iterable[Path], allowed: Path | None) -> Trust:
    """Return the list of the keys in public key files and an allowed_signers file."""
    names = {keys.public(path): path.name.removesuffix(".pub") for path in key_files}
    asked = bool(names) or allowed is not None
    return Trust(names | (keys.allowed(allowed) if allowed else {}), asked)


def claim_problem(statement: Statement, record: Record, sha256: str) -> str:
    """Say why a claim can't be true of the record with this sha256; empty if it can."""
    claim = statement.claim
    if statement.kind in (EVALUATION, PUBLICATION):
        return ""  # they claim nothing, which is looked at elsewhere
    if "verdict" not in claim:
        return "it has no verdict"
    if (claim["verdict"] in VERDICTS) != (statement.kind == AUDIT):
        return f"{shown(claim['verdict'])} is no verdict of its kind"
    if claim.get("failed", 0) > claim.get("samples", 0):
        return f"{claim['failed']:,} of {claim.get('samples', 0):,} samples failed"
    documents = sum(task["n"] for task in record["tasks"].values())
    if statement.kind == AUDIT:
        return _audit_problem(claim, documents)
    return _reproduction_problem(claim, record, sha256)


def _audit_problem(claim: Claim, documents: int) -> str:
    if claim.keys() != AUDITED:
        return "it says other things than an audit does"
    samples, failed, difference = claim["samples"], claim["failed"], claim["difference"]
    if not 1 <= samples <= documents:
        return f"{samples:,} samples of a record with {documents:,}"
    if (claim["verdict"] == "PASSED") != (difference == "rounding"):
        return f"it {claim['verdict']} with a difference of {difference}"
    if (difference == "rounding" and failed) or (difference == "answers" and not failed):
        return f"a difference of {difference} with {failed:,} of {samples:,} samples failed"
    if not math.isclose(claim["share"], 1 - 0.05 ** (1 / samples), rel_tol=1e-9):
        return f"{samples:,} samples show another share than {claim['share']:g}"
    return ""


def _reproduction_problem(claim: Claim, record: Record, sha256: str) -> str:
    """Say why a reproduction's claim can't be true; one of the whole names new answers."""
    verdict, failed = claim["verdict"], claim.get("failed", 0)
    whole = {"answers", "record"} & claim.keys()
    if len(whole) == 1 or claim.keys() & {"seed", "share", "difference"}:
        return "it says other things than a reproduction does"
    if not whole and not claim.get("samples") and verdict != "INCOMPARABLE":
        return f"{verdict} of no answers"
    if whole and claim["record"] == sha256:
        return "it names this record as the one that it was reproduced in"
    same = bool(whole) and claim["answers"] == record["ids"]["answers"]
    if whole and same != (verdict == "BITWISE"):
        answers = "these very answers" if same else "other answers"
        return f"{verdict} with {answers}"
    if verdict in ("BITWISE", "NUMERICS") and failed:
        return f"{verdict} with {failed:,} answers apart"
    margin = claim.get("margin")
    if (verdict == "REPRODUCED") != (margin is not None):
        return f"{verdict} {'without' if margin is None else 'with'} a margin"
    if margin is not None and not 0 < margin <= LARGEST_MARGIN:
        return f"a margin of {margin:g}"
    return _shown_problem(claim, bool(whole), sum(task["n"] for task in record["tasks"].values()))


def _shown_problem(claim: Claim, whole: bool, documents: int) -> str:
    """Say why a verdict can't be one on so many answers."""
    verdict, samples = claim["verdict"], claim.get("samples", 0)
    if verdict in ("ANSWERS", "REPRODUCED") and not whole:
        return f"{verdict} of a sample, of which no score is known"
    if whole and verdict in COMPARED and samples < documents:
        return f"{verdict} by {samples:,} answers to {documents:,} documents"
    if verdict == "DIFFERENT" and not claim.get("failed"):
        return "DIFFERENT with no answer apart"
    return ""


@dataclass(frozen=True, slots=True)
class Sealed:
    """The check of a seal, what the last line says of it, and whose it is."""

    checks: list[Check] = field(default_factory=list)
    words: str = ""
    signer: Public | None = None


def check_seal(
    folder: Folder, record: Record, trusted: Trust, authorities: Sequence[Any]
) -> Sealed:
    """Check the seal that the record lists, if it lists one."""
    if sealing.NAME not in record["files"] or folder.is_public:
        return Sealed()
    findings = Findings("seal")
    try:
        seal = sealing.read(folder, trusted.names)
        for problem in _seal_problems(seal, record):
            findings.add(problem)
        made, words = _judged_seal(seal, record, trusted, authorities)
    except BROKEN as error:
        findings.add(reason(error))
    if findings.count:
        return Sealed([findings.check("")])
    return Sealed([made], words, seal.signer)


def _judged_seal(
    seal: Seal, record: Record, trusted: Trust, authorities: Sequence[Any]
) -> tuple[Check, str]:
    """Return the check of a seal that is of this run, and what the last line says of it."""
    name, first = trusted.name(seal.signer), _first(record)
    others = seal.predicate["before"]["executions"]
    count = f"{len(others):,} executions of its plan were logged before" if others else (
        "no execution of its plan was logged before")  # fmt: skip
    meant = few(seal.predicate["metrics"]) or "all metrics"
    detail = f"by {name}, {meant} meant; {count}"
    claimed = f"said to be sealed by {name} before the first answer"
    if seal.timestamp is None:
        return Check("seal", Status.WARN, f"{detail}; no timestamp proves when"), claimed
    try:
        time = timestamps.time_of(seal.timestamp, seal.signature, authorities)
    except ModuleNotFoundError as error:
        return Check("seal", Status.WARN, f"{detail}; {error.name} is not installed"), claimed
    except ValueError as error:
        why = f"its timestamp proves nothing to you: {shown(error)}"
        return Check("seal", Status.WARN, f"{detail}; {why}"), claimed
    at = timestamps.shown(time)
    if first is None:
        unsaid = f"{detail}; timestamped {at}, but when a segment began is unknown"
        return Check("seal", Status.WARN, unsaid), claimed
    if time >= first:
        late = f"{detail}; its timestamp, {at}, is not before the first answer"
        return Check("seal", Status.FAIL, late), ""
    if (first - _utc(record["created"])).total_seconds() > _SLACK_S:
        when = f"{detail}; timestamped {at}, but the record is older than its first segment"
        return Check("seal", Status.WARN, when), claimed
    passed = f"{detail}; timestamped {at}, before the first segment began"
    if seal.signer not in trusted.names:
        return Check("seal", Status.WARN, f"{passed}; the signer is not on your list"), claimed
    return Check("seal", Status.PASS, passed), f"SEALED by {name} before the first answer"


def _first(record: Record) -> datetime | None:
    """Return when the first segment began; None where one of them does not say."""
    began = [_began(segment) for segment in record["segments"]]
    known = [time for time in began if time is not None]
    return min(known, default=None) if len(known) == len(began) else None


def _began(segment: Segment) -> datetime | None:
    if isinstance(segment["started"], str):
        return _utc(segment["started"])
    return time_in_name(segment["segment"])


def _utc(text: str) -> datetime:
    """Return a time of a record, which is in UTC whether it says so or not."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _seal_problems(seal: Seal, record: Record) -> list[str]:
    sealed = seal.predicate
    sha256 = sha256s(record["files"])
    listed = {name: sha256.get(name) for name in sealing.FILES}
    wanted = {
        "files": (seal.subjects, listed),
        "execution": (sealed["execution"], record["execution"]),
        "ids": (sealed["ids"], {k: v for k, v in record["ids"].items() if k != "answers"}),
        "suite": (sealed["suite"], record["suite"]["name"]),
        "model": (
            (sealed["model"]["reference"], sealed["model"]["files"]),
            (record["model"]["reference"], sha256s(record["model"]["files"])),
        ),
        "numerics": (sealed["numerics"], record["numerics"]),
    }  # fmt: skip
    found = [f"its {name} are not the record's" for name, (a, b) in wanted.items() if a != b]
    first, sealed_at = _first(record), _utc(sealed["sealedAt"])
    if first and (sealed_at - first).total_seconds() > _SLACK_S:
        found.append(f"it was made at {shown(sealed['sealedAt'])}, after the first answer")
    entries = {**record["tasks"], **record["groups"]}
    for meant in sealed["metrics"]:
        task, _, metric = meant.partition(":")
        known = {key.partition(",")[0] for key in entries.get(task, {"metrics": {}})["metrics"]}
        if metric.partition(",")[0] not in known:
            found.append(f"{shown(meant)} was meant, and the record has none")
    return found
