"""`verify`: check that a run's folder is what it says, from the folder alone.

It needs no GPU, torch, network, dataset or model, and never runs or follows code, a template, a
pattern or a path that the record brings. Each check is a line of the report; a broken or hostile
folder makes failed checks, not tracebacks. What can't be checked here is reported as that.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from evalkit.base import canon
from evalkit.base.bounded import OverLimit
from evalkit.base.errors import EvalkitError, Exit, no_right
from evalkit.judge.verify import plain, results_folder
from evalkit.judge.verify.claims import Trust, trust
from evalkit.judge.verify.deep import Deep
from evalkit.judge.verify.run import Wanted, require_consistent, verify, wanted
from evalkit.record import auditlog
from evalkit.record.packs import archive
from evalkit.record.reading.findings import Check, Report, Status, shown

__all__ = [
    "Check",
    "Deep",
    "Judged",
    "Report",
    "Status",
    "Trust",
    "Wanted",
    "judge",
    "require_consistent",
    "trust",
    "verify",
    "wanted",
]


@dataclass(slots=True)
class Judged:
    """Reports by the path of what they are about, and the checks of audit logs by their folders."""

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
        """How many runs have which verdict."""
        counter = Counter(report.verdict.partition(":")[0] for report in self.reports.values())
        if self.errors:
            counter["not judged"] = len(self.errors)
        counts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counter.items()))
        broken = any(check.status is Status.FAIL for check in self.logs.values())
        return f"{counts}; the audit log is BROKEN" if broken else counts

    @property
    def _single(self) -> bool:
        return len(self.reports) == 1 and not self.logs and not self.errors

    def lines(self) -> list[str]:
        """Return one report in full; of several, the failures, last lines and overall verdict."""
        if self._single:
            (report,) = self.reports.values()
            return report.lines()
        lines = []
        for name, report in self.reports.items():
            failed = [f"  {c}" for c in report.checks if c.status is Status.FAIL]
            lines += [shown(name), *failed, f"  {report.verdict}"]
        for name, error in self.errors.items():
            lines += [shown(name), f"  not judged: {shown(error)}"]
        for name, check in self.logs.items():
            lines += [shown(name), f"  {check}"]
        return [*lines, self.verdict]

    def to_json(self) -> str:
        """Return one report as it is; several by name, with the logs' checks."""
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


# Does the work on some paths within limits of time and memory (`bounded.run`), or without any.
Bound = Callable[[Callable[[], Report], Sequence[Path]], Report]


def unbounded(work: Callable[[], Report], _: Sequence[Path]) -> Report:
    """Do the work in this process, without limits."""
    return work()


def judge(paths: Sequence[Path], wanted: Wanted, bound: Bound = unbounded) -> Judged:
    """Check everything at some paths: runs, packs, results folders, folders of plain lm-eval.
    `bound` does the work on each; its error is reported for that one alone. Raises EvalkitError (3)
    if only one path was given and nothing is there."""
    judging = _Judging(wanted, bound, Judged())
    judged = judging.judged
    for path in paths:
        try:
            judging.path(path)
        except EvalkitError as error:
            if len(paths) == 1:
                raise
            judged.errors[str(path)] = error
    if len(judged.reports) + len(judged.errors) == 1 and judged.errors and not judged.logs:
        raise next(iter(judged.errors.values()))
    return judged


@dataclass(frozen=True, slots=True)
class _Judging:
    """How things are judged, and what has been judged so far."""

    wanted: Wanted
    bound: Bound
    judged: Judged

    def path(self, path: Path) -> None:
        _check_rights(path)
        if path.is_file():
            with archive.room() as place:
                self._one(path, path, lambda: _pack(path, place, self.wanted))
        elif path.is_dir() and results_folder.is_results(path):
            self._results(path)
        elif path.is_dir() and (names := plain.results_in(path)):
            for name in names:
                work = partial(plain.verify, path, name, asked=self.wanted.asked)
                self._one(path / name, path, work)
        else:
            self._one(path, path, lambda: verify(path, self.wanted))

    def _results(self, path: Path) -> None:
        runs = list(results_folder.runs_in(path))
        if not runs:
            raise EvalkitError("no finished run lies here", where=str(path), code=Exit.MISSING)
        for run in runs:
            self._one(run, run, partial(verify, run, self.wanted))
        self.judged.logs[str(path)] = self._log(path, runs)

    def _log(self, path: Path, runs: Sequence[Path]) -> Check:
        inputs = [path / auditlog.NAME, *(run / "record.json" for run in runs)]
        try:
            work = partial(results_folder.check_log, path, runs)
            return self.bound(lambda: Report([work()]), inputs).checks[0]
        except OverLimit as error:
            return Check("log", Status.FAIL, f"over the limit of {error.limit} for its size")

    def _one(self, name: Path, path: Path, work: Callable[[], Report]) -> None:
        try:
            self.judged.reports[str(name)] = self.bound(work, [path])
        except OverLimit as error:
            failed = Check("limits", Status.FAIL, f"over the limit of {error.limit} for its size")
            self.judged.reports[str(name)] = Report([failed])
        except EvalkitError as error:
            self.judged.errors[str(name)] = error


def _check_rights(folder: Path) -> None:
    """Raise EvalkitError (3) if this process may not read the files."""
    for path in (folder, *(folder / name for name in ("record.json", "results.json", "plan.json"))):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise no_right(path) from None
        if not os.access(path, os.R_OK):
            raise no_right(path)


def _pack(path: Path, place: Path, wanted: Wanted) -> Report:
    """Check a pack's run; a pack that can't be unpacked is broken, as a run would be."""
    try:
        run = archive.unpack(path, place)
    except EvalkitError as error:
        if error.code is not Exit.FAILED:
            raise
        return Report([Check("pack", Status.FAIL, shown(error.what))])
    if (run / "report.html").exists():
        what = "it holds a report.html, which no digest vouches for: make it with `evalkit report`"
        return Report([Check("pack", Status.FAIL, what)])
    return verify(run, wanted)
