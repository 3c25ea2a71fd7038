"""What a reader points `verify` at: a run's folder, a pack, a results folder with all its runs and
its audit log, a folder that plain lm-eval wrote; one of them or several.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import log
from evalkit.record import auditlog
from evalkit.record.reading import identity
from evalkit.record.reading.findings import Check, Report, Status, shown
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.signing import sealing

MAX_RUNS = 20_000


@dataclass(slots=True)
class Judged:
    """Reports by the name of what they are about, and the checks of audit logs by their folders."""

    reports: dict[str, Report] = field(default_factory=dict)
    logs: dict[str, Check] = field(default_factory=dict)
    errors: dict[str, EvalkitError] = field(default_factory=dict)  # what could not be judged

    @property
    def exit_code(self) -> Exit:
        """1 where anything failed, else 2 where anything is not ours to judge, else 0."""
        codes = {report.exit_code for report in self.reports.values()}
        if any(check.status is Status.FAIL for check in self.logs.values()):
            codes.add(Exit.FAILED)
        codes |= {error.code for error in self.errors.values()}
        return min(codes - {Exit.OK}, default=Exit.OK)

    @property
    def verdict(self) -> str:
        """How many of each."""
        found = Counter(report.verdict.partition(":")[0] for report in self.reports.values())
        if self.errors:
            found["not judged"] = len(self.errors)
        counts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(found.items()))
        broken = any(check.status is Status.FAIL for check in self.logs.values())
        return f"{counts}; the audit log is BROKEN" if broken else counts

    @property
    def _single(self) -> bool:
        return len(self.reports) == 1 and not self.logs and not self.errors

    def lines(self) -> list[str]:
        """One report in full; of several, each one's failures and last line, then the count."""
        if self._single:
            (report,) = self.reports.values()
            return report.lines()
        found = []
        for name, report in self.reports.items():
            failed = [f"  {c}" for c in report.checks if c.status is Status.FAIL]
            found += [shown(name), *failed, f"  {report.verdict}"]
        for name, error in self.errors.items():
            found += [shown(name), f"  not judged: {shown(error)}"]
        for name, check in self.logs.items():
            found += [shown(name), f"  {check}"]
        return [*found, self.verdict]

    def to_json(self) -> str:
        """One report as it is; several by name, with the logs' checks."""
        if self._single:
            (report,) = self.reports.values()
            return canon.dumps(report.to_json())
        return canon.dumps(
            {
                "runs": {name: report.to_json() for name, report in self.reports.items()},
                "errors": {name: str(error) for name, error in self.errors.items()},
                "logs": {name: check.to_json() for name, check in self.logs.items()},
                "verdict": self.verdict,
                "exit_code": int(self.exit_code),
            }
        )


def is_results(path: Path) -> bool:
    """Whether a folder holds runs, rather than being one: it has their log, or records below."""
    if any((path / name).exists() for name in ("record.json", "run.json", "plan.json")):
        return False
    return (path / auditlog.NAME).exists() or any(True for _ in runs_in(path))


def runs_in(results: Path) -> Iterator[Path]:
    """The finished runs in a results folder, <model>/<run>, or in one model's; no link is
    followed."""
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


def logged(results: Path, runs: Sequence[Path]) -> dict[str, log.Logged]:
    """What the log is held against, of each run whose record can be read."""
    found = {}
    for run in runs:
        read = identity.record(Folder(run))
        if read.record is not None:
            record, name = read.record, run.relative_to(results).as_posix()
            before = _sealed(Folder(run), record)
            found[name] = log.Logged(record["execution"], read.sha256, record["ids"], before)
    return found


def _sealed(folder: Folder, record: dict[str, Any]) -> dict[str, Any] | None:
    """What a run's seal says of the log, if it has a seal; whether it is one, `verify` says."""
    if sealing.NAME not in record["files"]:
        return None
    try:
        before: dict[str, Any] = sealing.read(folder).predicate["before"]
    except BROKEN:
        return None
    return before
