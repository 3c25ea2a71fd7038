"""`report`: one self-contained HTML file that people open, from records alone.

Plots are plain SVG in the templates: a bar, an interval and a calibration plot are a few lines
each, follow the reader's light or dark, scale with the page and weigh a hundredth of what a
plotting library draws. No GPU, no network, no lm-eval needed; nothing that a record brings is run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Wanted, wanted
from evalkit.judge.verify.plain import results_in
from evalkit.record.reading.folder import foreign
from evalkit.show.report import comparison, page, plain, single, site, unfinished
from evalkit.show.report.parts import badge
from evalkit.show.source import source

POLL_S = 15.0


@dataclass(frozen=True, slots=True)
class Asked:
    """How a report is to be made. `everything`: the texts of all samples; `wanted`: by which list
    of signers and policy its records are judged; `pack`: where the public pack is."""

    everything: bool = False
    wanted: Wanted | None = None
    pack: str = ""


def asked(
    samples: str = "some", allowed: Path | None = None, policy: Path | None = None, pack: str = ""
) -> Asked:
    """How a report is to be made, from a reader's files."""
    return Asked(samples == "all", wanted(allowed=allowed, policy=policy), pack)


def make(
    runs: Sequence[Path], results: Path | None, out: Path | None, asked: Asked = Asked(),
    picture: Path | None = None,
) -> Path:  # fmt: skip
    """Write the report of the runs, or the index of a results folder into the folder `out`;
    `picture`: and one run's badge."""
    if picture is not None:
        if len(runs) != 1:
            raise EvalkitError("a badge is of one run", fix="give one RUN")
        judged = source(runs[0], unverified=True, wanted=asked.wanted).report
        badge.write(picture, judged, single.tone(judged))
    if bool(runs) == bool(results) or (results and not out):
        fix = "usage: evalkit report RUN..., or evalkit report --site RESULTS --out FOLDER"
        raise EvalkitError("give either runs or --site with --out", fix=fix)
    if results and out:
        return site.write(results, out, everything=asked.everything, wanted=asked.wanted)
    return write(runs, out, asked)


def write(runs: Sequence[Path], out: Path | None = None, asked: Asked = Asked()) -> Path:
    """Write the report of a run, by default as report.html into its folder, or of several compared,
    by default as report.html where one stands; the file's path. EvalkitError (3) where there is no
    run."""
    for run in runs:
        if not run.is_dir():
            raise EvalkitError("there is no such run folder", where=str(run), code=Exit.MISSING)
    run = runs[0]
    with foreign(run):
        text = _text(runs, asked)
    path = out or (run / "report.html" if len(runs) == 1 else Path("report.html"))
    canon.write_atomic(path, text)
    return path


def watch(
    run: Path, out: Path | None, asked: Asked, wait: Callable[[float], None]
) -> Iterator[Path]:
    """Write the report of a run again and again, until it has its record; the path each time."""
    while True:
        finished = (run / "record.json").is_file()
        yield write([run], out, asked)
        if finished:
            return
        wait(POLL_S)


def _text(runs: Sequence[Path], asked: Asked) -> str:
    run, everything, wanted = runs[0], asked.everything, asked.wanted
    if len(runs) > 1:
        found = comparison.context(runs, everything=everything, wanted=wanted)
        return page.render("compare.html.j2", ["matrix.js", "report.js"], found)
    if (run / "record.json").is_file():
        made = single.context(run, everything=everything, wanted=wanted, pack=asked.pack)
    elif results_in(run):
        made = plain.context(run, everything=everything, wanted=wanted, pack=asked.pack)
    else:
        return page.render("unfinished.html.j2", ["report.js"], unfinished.context(run))
    return page.render("run.html.j2", ["report.js"], made)
