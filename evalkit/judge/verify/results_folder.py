"""A results folder: the runs that lie in it, and its audit log against their records.

Each line of audit.jsonl holds the digest of the line before, so a removed or altered line shows.
Lines cut off at the end do not, but then some record has no line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.record import auditlog
from evalkit.record.auditlog import LogLine
from evalkit.record.reading import identity
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.signing import sealing
from evalkit.record.signing.types import Before
from evalkit.record.types import Ids, Record

MAX_RUNS = 20_000
MAX_LOG = 256 * MiB


@dataclass(frozen=True, slots=True)
class Logged:
    """The facts of a record that the log must agree with."""

    execution: str
    sha256: str
    ids: Ids
    before: Before | None = None  # what its seal says of the log


def is_results(path: Path) -> bool:
    """Say whether a folder holds runs and is none itself: it has their log, or records below it."""
    if any((path / name).exists() for name in ("record.json", "run.json", "plan.json")):
        return False
    return (path / auditlog.NAME).exists() or any(True for _ in runs_in(path))


def runs_in(results: Path) -> Iterator[Path]:
    """Yield the finished runs in a results folder or one model's folder. No link is followed."""
    count = 0
    for pattern in ("*/record.json", "*/*/record.json"):
        for path in sorted(results.glob(pattern)):
            links = [path.parent, path.parent.parent]
            if any(p.is_symlink() for p in links[: pattern.count("*")]) or _hidden(path, results):
                continue
            count += 1
            if count > MAX_RUNS:
                raise EvalkitError(f"more than {MAX_RUNS:,} runs lie here", where=str(results))
            yield path.parent


def _hidden(path: Path, above: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(above).parts)


def _logged(results: Path, runs: Sequence[Path]) -> dict[str, Logged]:
    """Return what the log must say of each run whose record can be read, by the run's name."""
    logged = {}
    for run in runs:
        read = identity.record(Folder(run))
        if read.record is not None:
            record, name = read.record, run.relative_to(results).as_posix()
            before = _sealed(Folder(run), record)
            logged[name] = Logged(record["execution"], read.sha256, record["ids"], before)
    return logged


def _sealed(folder: Folder, record: Record) -> Before | None:
    """Return what a run's seal says of the log, if it has a readable one; `verify` judges it."""
    if sealing.NAME not in record["files"]:
        return None
    try:
        return sealing.read(folder).predicate["before"]
    except BROKEN:
        return None


def check_log(results: Path, runs: Sequence[Path]) -> Check:
    """Check that a folder's log is whole and names each record of its runs as it is."""
    folder, findings, records = Folder(results), Findings("log"), _logged(results, runs)
    if not folder.holds(auditlog.NAME):
        above = results.absolute().parent
        detail = f"there is no {auditlog.NAME} beside the records"
        if (above / auditlog.NAME).is_file():
            detail += f", but one folder up: `evalkit verify {shown(above)}` holds them against it"
        return Check("log", Status.WARN, detail)
    try:
        lines = folder.read(auditlog.NAME, MAX_LOG).splitlines()
        broken = auditlog.broken_at(folder.path(auditlog.NAME))
    except BROKEN as error:
        findings.add(reason(error))
        return findings.check("")
    if broken is not None:
        findings.add(f"line {broken:,} is not what was written after the line before it")
    finished, torn = _finished(lines)
    _compare(records, finished, findings)
    for name, record in records.items():
        if record.before is not None and not _agrees_with_seal(record, record.before, lines):
            findings.add(f"the seal of {shown(name)} tells of another log than lies here")
    count = f"{len(lines):,} lines, each bound to the one before"
    count += f" ({torn:,} of them torn)" if torn else ""
    return findings.check(f"{count}; {len(records):,} records, each as its line says")


def _finished(lines: list[bytes]) -> tuple[dict[str, LogLine], int]:
    """Return the lines of finished runs by execution, and how many lines are torn."""
    finished, torn = {}, 0
    for raw in lines:
        try:
            line = canon.loads(raw)
        except BROKEN:
            line = None
        if not isinstance(line, dict):
            torn += 1
        elif line.get("status") == "finished" and "execution" in line:
            finished[str(line["execution"])] = cast(LogLine, line)
    return finished, torn


def _compare(
    records: Mapping[str, Logged], finished: dict[str, LogLine], findings: Findings
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
        if (line := finished.get(record.execution)) is not None
        and (line.get("ids"), line.get("record")) != (record.ids, record.sha256)
    }
    if altered:
        findings.add(f"{len(altered):,} records are not as their lines say: {few(altered)}")
    gone = [line for execution, line in finished.items() if execution not in by_execution]
    if gone:
        where = few([line.get("run", "?") for line in gone])
        findings.add(f"{len(gone):,} records were removed: {where}")


def _agrees_with_seal(record: Logged, before: Before, lines: list[bytes]) -> bool:
    """Say whether the log's first lines are those that a seal counts."""
    count = before["lines"]
    if count > len(lines):
        return False
    last = canon.digest_bytes(lines[count - 1]) if count else None
    named = auditlog.executions_of(record.ids["plan"], lines[:count])
    return last == before["log"] and named == before["executions"]
