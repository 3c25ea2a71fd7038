"""`verify`: is a run's folder what it says? It needs nothing but the folder.

No GPU, torch, network, dataset or model; and no code, template, pattern or path that the record
brings is ever run or followed. Each check is a line; a broken or hostile folder makes lines, not
tracebacks. What cannot be checked here says so.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import log, plain, several
from evalkit.judge.verify.deep import Deep
from evalkit.judge.verify.run import Wanted, require_consistent, verify, wanted
from evalkit.judge.verify.several import Judged
from evalkit.judge.verify.signers import Trust, trust
from evalkit.record import archive
from evalkit.record.reading.findings import Check, Report, Status

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


def judge(paths: Sequence[Path], asked: Wanted) -> Judged:
    """Check all that lies at some paths: runs, packs, results folders, folders of plain lm-eval.

    EvalkitError (3) where there is nothing.
    """
    found = Judged()
    for path in paths:
        if path.is_file():
            found.reports[str(path)] = _pack(path, asked)
        elif path.is_dir() and several.is_results(path):
            _results(path, asked, found)
        elif path.is_dir() and (names := plain.results_in(path)):
            for name in names:
                found.reports[str(path / name)] = plain.verify(path, name, asked=asked.asked)
        else:
            found.reports[str(path)] = verify(path, asked)
    return found


def _pack(path: Path, asked: Wanted) -> Report:
    """A pack's run; one that can't be unpacked is broken, as a run would be."""
    with ExitStack() as stack:
        try:
            run = stack.enter_context(archive.unpacked(path))
        except EvalkitError as error:
            if error.code is not Exit.FAILED:
                raise
            return Report([Check("pack", Status.FAIL, error.what)])
        return verify(run, asked)


def _results(path: Path, asked: Wanted, found: Judged) -> None:
    """All runs of a results folder, and its log."""
    runs = list(several.runs_in(path))
    if not runs:
        raise EvalkitError("no finished run lies here", where=str(path), code=Exit.MISSING)
    for run in runs:
        found.reports[str(run)] = verify(run, asked)
    found.logs[str(path)] = log.check(path, several.logged(path, runs))
