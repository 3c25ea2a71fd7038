"""Whether a run's seal is of this run, and was there before the first answer.

The order is known only where a timestamp by an authority that the reader trusts is earlier than the
start of the first segment; without one it is the author's word.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from evalkit.judge.verify.trust.signers import Trust
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.signing import sealing, timestamps
from evalkit.record.signing.sealing import Seal

Value = dict[str, Any]


def check(
    folder: Folder, record: Value, trusted: Trust, authorities: Sequence[Any]
) -> tuple[list[Check], str]:
    """The check of a seal that the record lists, and what the last line may say of it."""
    if sealing.NAME not in record["files"] or folder.is_public:
        return [], ""
    findings = Findings("seal")
    try:
        seal = sealing.read(folder, trusted.names)
        for problem in _unlike(seal, record):
            findings.add(problem)
    except BROKEN as error:
        findings.add(reason(error))
    if findings.count:
        return [findings.check("")], ""
    return _judged(seal, record, trusted, authorities)


def _judged(
    seal: Seal, record: Value, trusted: Trust, authorities: Sequence[Any]
) -> tuple[list[Check], str]:
    name, first = trusted.name(seal.signer), _first(record)
    others = seal.predicate["before"]["executions"]
    count = f"{len(others):,} executions of its plan were logged before" if others else (
        "no execution of its plan was logged before")  # fmt: skip
    meant = few(seal.predicate["metrics"]) or "all metrics"
    told = f"by {name}, {meant} meant; {count}"
    said = f"said to be sealed by {name} before the first answer"
    if seal.timestamp is None:
        return [Check("seal", Status.WARN, f"{told}; no timestamp proves when")], said
    try:
        time = timestamps.time_of(seal.timestamp, seal.signature, authorities)
    except ModuleNotFoundError as error:
        return [Check("seal", Status.WARN, f"{told}; {error.name} is not installed")], said
    except ValueError as error:
        why = f"its timestamp proves nothing to you: {shown(error)}"
        return [Check("seal", Status.WARN, f"{told}; {why}")], said
    at = timestamps.shown(time)
    if first is None or time >= first:
        late = f"{told}; its timestamp, {at}, is not before the first answer"
        return [Check("seal", Status.FAIL, late)], ""
    passed = f"{told}; timestamped {at}, before the first segment began"
    if seal.signer not in trusted.names:
        return [Check("seal", Status.WARN, f"{passed}; the signer is not on your list")], said
    return [Check("seal", Status.PASS, passed)], f"SEALED by {name} before the first answer"


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
    entries = {**record["tasks"], **record["groups"]}
    for meant in said["metrics"]:
        task, _, metric = meant.partition(":")
        known = {key.partition(",")[0] for key in entries.get(task, {"metrics": {}})["metrics"]}
        if metric.partition(",")[0] not in known:
            found.append(f"{shown(meant)} was meant, and the record has none")
    return found
