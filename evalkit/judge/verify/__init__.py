"""`verify`: is a run's folder what it says? It needs nothing but the folder.

No GPU, torch, network, dataset or model; and no code, template, pattern or path that the record
brings is ever run or followed. Each check is a line; a broken or hostile folder makes lines, not
tracebacks. What cannot be checked here says so.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evalkit.base.bounded import OverLimit
from evalkit.base.errors import EvalkitError, Exit, no_right
from evalkit.judge.verify import log, plain, several
from evalkit.judge.verify.deep import Deep
from evalkit.judge.verify.run import Wanted, require_consistent, verify, wanted
from evalkit.judge.verify.several import Judged
from evalkit.judge.verify.trust.signers import Trust, trust
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


Bound = Callable[[Callable[[], Report], Sequence[Path]], Report]


def unbounded(work: Callable[[], Report], _: Sequence[Path]) -> Report:
    """Just do it: `judge` in a process that is bounded otherwise, or not at all."""
    return work()


def judge(paths: Sequence[Path], asked: Wanted, bound: Bound = unbounded) -> Judged:
    """Check all that lies at some paths: runs, packs, results folders, folders of plain lm-eval.

    `bound` does the work on each (`bounded.run`), and what it raises is told of that one alone.
    EvalkitError (3) where there is nothing, and only one path was given.
    """
    found = Judged()
    for path in paths:
        try:
            _judge(path, _Judging(asked, found, bound))
        except EvalkitError as error:
            if len(paths) == 1:
                raise
            found.errors[str(path)] = error
    if len(found.reports) + len(found.errors) == 1 and found.errors and not found.logs:
        raise next(iter(found.errors.values()))
    return found


@dataclass(frozen=True, slots=True)
class _Judging:
    """How each thing is judged, and where the report of it goes."""

    asked: Wanted
    found: Judged
    bound: Bound

    def each(self, name: str, path: Path, work: Callable[[], Report]) -> None:
        """Judge one thing, whatever comes of it."""
        try:
            self.found.reports[name] = self.bound(work, [path])
        except OverLimit as error:
            failed = Check("limits", Status.FAIL, f"over the limit of {error.limit} for its size")
            self.found.reports[name] = Report([failed])
        except EvalkitError as error:
            self.found.errors[name] = error

    def log(self, results: Path, runs: Sequence[Path]) -> Check:
        """Hold the log of a results folder against its runs."""
        inputs = [results / auditlog.NAME, *(run / "record.json" for run in runs)]
        try:
            return self.bound(lambda: Report([_log(results, runs)]), inputs).checks[0]
        except OverLimit as error:
            return Check("log", Status.FAIL, f"over the limit of {error.limit} for its size")


def _log(results: Path, runs: Sequence[Path]) -> Check:
    return log.check(results, several.logged(results, runs))


def _judge(path: Path, judging: _Judging) -> None:
    asked = judging.asked
    _check_rights(path)
    if path.is_file():
        with archive.room() as place:
            judging.each(str(path), path, lambda: _pack(path, place, asked))
    elif path.is_dir() and several.is_results(path):
        _results(path, judging)
    elif path.is_dir() and (names := plain.results_in(path)):
        for name in names:
            work = partial(plain.verify, path, name, asked=asked.asked)
            judging.each(str(path / name), path, work)
    else:
        judging.each(str(path), path, lambda: verify(path, asked))


def _check_rights(path: Path) -> None:
    """EvalkitError (3) where one has no right to read: that says nothing of a record."""
    for each in (path, path / "record.json", path / "results.json", path / "plan.json"):
        try:
            each.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise no_right(each) from None
        if not os.access(each, os.R_OK):
            raise no_right(each)


def _pack(path: Path, place: Path, asked: Wanted) -> Report:
    """A pack's run; one that can't be unpacked is broken, as a run would be."""
    try:
        run = archive.unpack(path, place)
    except EvalkitError as error:
        if error.code is not Exit.FAILED:
            raise
        return Report([Check("pack", Status.FAIL, shown(error.what))])
    if (run / "report.html").exists():
        what = "it holds a report.html, which no digest vouches for: make it with `evalkit report`"
        return Report([Check("pack", Status.FAIL, what)])
    return verify(run, asked)


def _results(path: Path, judging: _Judging) -> None:
    """All runs of a results folder, and its log."""
    runs = list(several.runs_in(path))
    if not runs:
        raise EvalkitError("no finished run lies here", where=str(path), code=Exit.MISSING)
    for run in runs:
        judging.each(str(run), run, partial(verify, run, judging.asked))
    judging.found.logs[str(path)] = judging.log(path, runs)
