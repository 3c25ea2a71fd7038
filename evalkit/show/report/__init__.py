"""`report`: one self-contained HTML file that people open, from records alone.

Plots are plain SVG in the templates: a few lines each, in the reader's light or dark colours, at a
hundredth of the size of a plotting library's. It needs no GPU, network or lm-eval, and runs nothing
that a record brings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Wanted, wanted
from evalkit.judge.verify.plain import results_in
from evalkit.record.reading.folder import foreign
from evalkit.show.report import comparison, page, single, site, unfinished
from evalkit.show.report.parts import verdict
from evalkit.show.source import source

POLL_S = 15.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a report is made. `everything`: with the texts of all samples; `wanted`: by which list of
    signers and policy its records are judged; `pack`: the address of the public pack."""

    everything: bool = False
    wanted: Wanted | None = None
    pack: str = ""


def options(samples: str, allowed: Path | None, policy: Path | None, pack: str) -> Options:
    """Return the options of a report, from a reader's files of signers and policy."""
    return Options(samples == "all", wanted(allowed=allowed, policy=policy), pack)


def make(
    runs: Sequence[Path], results: Path | None, out: Path | None, options: Options = Options(),
    badge: Path | None = None,
) -> Path:  # fmt: skip
    """Write the report of the runs, or pages for a results folder into the folder `out`; return its
    path. `badge`: write one run's badge there, too."""
    if badge is not None:
        if len(runs) != 1:
            raise EvalkitError("a badge is of one run", fix="give one RUN")
        judged = source(runs[0], unverified=True, wanted=options.wanted)
        verdict.write_badge(badge, judged.report)
    if bool(runs) == bool(results) or (results and not out):
        fix = "usage: evalkit report RUN..., or evalkit report --site RESULTS --out FOLDER"
        raise EvalkitError("give either runs or --site with --out", fix=fix)
    if results and out:
        return site.write(results, out, everything=options.everything, wanted=options.wanted)
    return write(runs, out, options)


def write(runs: Sequence[Path], out: Path | None = None, options: Options = Options()) -> Path:
    """Write the report of a run (by default to report.html in its folder), or of several compared
    (by default to report.html in the working folder); return the file's path. EvalkitError (3)
    where there is no run."""
    for run in runs:
        if not run.is_dir():
            raise EvalkitError("there is no such run folder", where=str(run), code=Exit.MISSING)
    run = runs[0]
    with foreign(run):
        text = _text(runs, options)
    path = out or (run / "report.html" if len(runs) == 1 else Path("report.html"))
    canon.write_atomic(path, text)
    return path


def watch(
    run: Path, out: Path | None, options: Options, wait: Callable[[float], None]
) -> Iterator[Path]:
    """Write the report of a run again and again, until it has its record; yield the path each
    time."""
    while True:
        finished = (run / "record.json").is_file()
        yield write([run], out, options)
        if finished:
            return
        wait(POLL_S)


def _text(runs: Sequence[Path], options: Options) -> str:
    run, everything, wanted = runs[0], options.everything, options.wanted
    if len(runs) > 1:
        context = comparison.context(runs, everything=everything, wanted=wanted)
        return page.render("compare.html.j2", ["matrix.js", "report.js"], context)
    if not (run / "record.json").is_file() and not results_in(run):
        return page.render("unfinished.html.j2", ["report.js"], unfinished.context(run))
    made = single.run_page(run, everything=everything, wanted=wanted, pack=options.pack)
    return page.render("run.html.j2", ["report.js"], made.context)
