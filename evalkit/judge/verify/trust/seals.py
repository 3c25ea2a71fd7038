"""Whether a run's seal is of this run, and was there before the first answer.

The order is known only where a timestamp by an authority that the reader trusts is earlier than the
start of the first segment; without one it is the author's word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evalkit.judge.verify.trust.signers import Trust
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.signing import sealing, timestamps
from evalkit.record.signing.keys import Public
from evalkit.record.signing.sealing import Seal

_SLACK_S = 60.0  # by which the clocks of where it was sealed and where it ran may be apart

Value = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sealed:
    """The check of a seal, what the last line may say of it, and whose it is."""

    checks: list[Check] = field(default_factory=list)
    told: str = ""
    signer: Public | None = None


def check(folder: Folder, record: Value, trusted: Trust, authorities: Sequence[Any]) -> Sealed:
    """What is found of a seal that the record lists."""
    if sealing.NAME not in record["files"] or folder.is_public:
        return Sealed()
    findings = Findings("seal")
    try:
        seal = sealing.read(folder, trusted.names)
        for problem in _unlike(seal, record):
            findings.add(problem)
    except BROKEN as error:
        findings.add(reason(error))
    if findings.count:
        return Sealed([findings.check("")])
    made, told = _judged(seal, record, trusted, authorities)
    return Sealed([made], told, seal.signer)


def _judged(
    seal: Seal, record: Value, trusted: Trust, authorities: Sequence[Any]
) -> tuple[Check, str]:
    name, first = trusted.name(seal.signer), _first(record)
    others = seal.predicate["before"]["executions"]
    count = f"{len(others):,} executions of its plan were logged before" if others else (
        "no execution of its plan was logged before")  # fmt: skip
    meant = few(seal.predicate["metrics"]) or "all metrics"
    told = f"by {name}, {meant} meant; {count}"
    said = f"said to be sealed by {name} before the first answer"
    if seal.timestamp is None:
        return Check("seal", Status.WARN, f"{told}; no timestamp proves when"), said
    try:
        time = timestamps.time_of(seal.timestamp, seal.signature, authorities)
    except ModuleNotFoundError as error:
        return Check("seal", Status.WARN, f"{told}; {error.name} is not installed"), said
    except ValueError as error:
        why = f"its timestamp proves nothing to you: {shown(error)}"
        return Check("seal", Status.WARN, f"{told}; {why}"), said
    at = timestamps.shown(time)
    if first is None or time >= first:
        late = f"{told}; its timestamp, {at}, is not before the first answer"
        return Check("seal", Status.FAIL, late), ""
    passed = f"{told}; timestamped {at}, before the first segment began"
    if seal.signer not in trusted.names:
        return Check("seal", Status.WARN, f"{passed}; the signer is not on your list"), said
    return Check("seal", Status.PASS, passed), f"SEALED by {name} before the first answer"


def _first(record: Value) -> datetime | None:
    """When the first segment began, by the record."""
    began = [segment["started"] for segment in record["segments"]]
    return min(map(datetime.fromisoformat, began), default=None)


def _unlike(seal: Seal, record: Value) -> list[str]:
    """How a seal contradicts the record."""
    said = seal.predicate
    listed = {name: record["files"].get(name, {}).get("sha256") for name in sealing.FILES}
    wanted = {
        "files": (seal.subjects, listed),
        "execution": (said["execution"], record["execution"]),
        "ids": (said["ids"], {k: v for k, v in record["ids"].items() if k != "answers"}),
        "suite": (said["suite"], record["suite"]["name"]),
        "model": (
            (said["model"]["reference"], said["model"]["files"]),
            (record["model"]["reference"],
             {n: entry["sha256"] for n, entry in record["model"]["files"].items()}),
        ),
        "numerics": (said["numerics"], record["numerics"]),
    }  # fmt: skip
    found = [f"its {name} are not the record's" for name, (a, b) in wanted.items() if a != b]
    first, sealed_at = _first(record), datetime.fromisoformat(said["sealedAt"])
    if first and (sealed_at - first).total_seconds() > _SLACK_S:
        found.append(f"it was made at {shown(said['sealedAt'])}, after the first answer")
    entries = {**record["tasks"], **record["groups"]}
    for meant in said["metrics"]:
        task, _, metric = meant.partition(":")
        known = {key.partition(",")[0] for key in entries.get(task, {"metrics": {}})["metrics"]}
        if metric.partition(",")[0] not in known:
            found.append(f"{shown(meant)} was meant, and the record has none")
    return found
