"""`report`: one self-contained HTML file that people open, from records alone.

Plots are plain SVG in the templates: a bar, an interval and a calibration plot are a few lines
each, follow the reader's light or dark, scale with the page and weigh a hundredth of what a
plotting library draws. No GPU, no network, no lm-eval needed; nothing that a record brings is run.
"""

from collections.abc import Sequence
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify.plain import results_in
from evalkit.record.reading.folder import foreign
from evalkit.show.report import comparison, page, plain, single, site, unfinished


def make(runs: Sequence[Path], results: Path | None, out: Path | None, *, everything: bool) -> Path:
    """Write the report of the runs, or the index of a results folder into the folder `out`."""
    if bool(runs) == bool(results) or (results and not out):
        fix = "usage: evalkit report RUN..., or evalkit report --site RESULTS --out FOLDER"
        raise EvalkitError("give either runs or --site with --out", fix=fix)
    if results and out:
        return site.write(results, out, everything=everything)
    return write(runs, out, everything=everything)


def write(runs: Sequence[Path], out: Path | None = None, *, everything: bool = False) -> Path:
    """Write the report of a run, by default as report.html into its folder, or of several compared,
    by default as report.html where one stands; the file's path.

    `everything`: the texts of all samples, however large the file gets. EvalkitError (3) where
    there is no run.
    """
    for run in runs:
        if not run.is_dir():
            raise EvalkitError("there is no such run folder", where=str(run), code=Exit.MISSING)
    run = runs[0]
    with foreign(run):
        text = _text(runs, everything=everything)
    path = out or (run / "report.html" if len(runs) == 1 else Path("report.html"))
    canon.write_atomic(path, text)
    return path


def _text(runs: Sequence[Path], *, everything: bool) -> str:
    run = runs[0]
    if len(runs) > 1:
        made = comparison.context(runs, everything=everything)
        return page.render("compare.html.j2", "report.js", made)
    if (run / "record.json").is_file():
        return page.render("run.html.j2", "report.js", single.context(run, everything=everything))
    if results_in(run):
        made = plain.context(run, everything=everything)
        return page.render("run.html.j2", "report.js", made)
    return page.render("unfinished.html.j2", "report.js", unfinished.context(run))
