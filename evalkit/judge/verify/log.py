"""A results folder's audit log against the records that lie there.

Each line of audit.jsonl holds the digest of the line before, so what was removed or altered within
it shows; lines cut off at its end do not, but the records that they were about then have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.record import auditlog
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason

MAX_LOG = 256 * MiB


@dataclass(frozen=True, slots=True)
class Logged:
    """What the log is held against of a record."""

    execution: str
    sha256: str
    ids: dict[str, str]
    before: dict[str, Any] | None = None  # what its seal says of the log


def check(results: Path, records: Mapping[str, Logged]) -> Check:
    """Whether the log is whole and names every record of the folder, as it is; by their names."""
    folder, findings = Folder(results), Findings("log")
    if not folder.holds(auditlog.NAME):
        above = results.absolute().parent
        told = f"there is no {auditlog.NAME} beside the records"
        if (above / auditlog.NAME).is_file():
            told += f", but one folder up: `evalkit verify {shown(above)}` holds them against it"
        return Check("log", Status.WARN, told)
    try:
        lines = folder.read(auditlog.NAME, MAX_LOG).splitlines()
        broken = auditlog.broken_at(folder.path(auditlog.NAME))
    except BROKEN as error:
        findings.add(reason(error))
        return findings.check("")
    if broken is not None:
        findings.add(f"line {broken:,} is not what was written after the line before it")
    finished = _finished(lines)
    _compare(records, finished, findings)
    for name, record in records.items():
        if record.before is not None and not _was_so(record, record.before, lines):
            findings.add(f"the seal of {shown(name)} tells of another log than lies here")
    count = f"{len(lines):,} lines, each bound to the one before"
    return findings.check(f"{count}; {len(records):,} records, each as its line says")


def _finished(lines: list[bytes]) -> dict[str, dict[str, Any]]:
    """The lines of finished runs by execution; what is no line shows in the chain."""
    found = {}
    for raw in lines:
        try:
            line = canon.loads(raw)
            if line["status"] == "finished":
                found[str(line["execution"])] = line
        except BROKEN:
            continue
    return found


def _compare(
    records: Mapping[str, Logged], finished: dict[str, dict[str, Any]], findings: Findings
) -> None:
    by_execution: dict[str, list[str]] = {}
    for name, record in records.items():
        by_execution.setdefault(record.execution, []).append(name)
    unlogged = {n for n, record in records.items() if record.execution not in finished}
    if unlogged:
        findings.add(f"{len(unlogged):,} records have no line: {few(unlogged)}")
    for names in by_execution.values():
        if len(names) > 1:
            findings.add(f"{few(names)} are one execution")
    altered = {
        name
        for name, record in records.items()
        if (line := finished.get(record.execution)) is not None and not _same(record, line)
    }
    if altered:
        findings.add(f"{len(altered):,} records are not as their lines say: {few(altered)}")
    gone = [line for execution, line in finished.items() if execution not in by_execution]
    if gone:
        where = few([line.get("run", "?") for line in gone])
        findings.add(f"{len(gone):,} records were removed: {where}")


def _was_so(record: Logged, before: dict[str, Any], lines: list[bytes]) -> bool:
    """Whether the log's first lines are those that a seal counts, with the executions of its plan
    that it names."""
    count = before["lines"]
    if count > len(lines):
        return False
    last = canon.digest_bytes(lines[count - 1]) if count else None
    named = auditlog.executions_of(record.ids["plan"], lines[:count])
    return bool(last == before["log"] and named == before["executions"])


def _same(record: Logged, line: dict[str, Any]) -> bool:
    return bool(line.get("ids") == record.ids and line.get("record") == record.sha256)
