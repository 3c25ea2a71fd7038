"""`report`: one self-contained HTML file that people open, from records alone.

Plots are plain SVG in the templates: a few lines each, in the reader's light or dark colours, at a
hundredth of the size of a plotting library's. It needs no GPU, network, server or lm-eval, and runs
nothing that a record brings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Wanted, wanted
from evalkit.judge.verify.plain import results_in
from evalkit.record.reading import score_table
from evalkit.record.reading.folder import foreign
from evalkit.show import progress
from evalkit.show.report import comparison, page, single
from evalkit.show.report.parts import matrix, picture, verdict
from evalkit.show.report.parts.matrix import Entry
from evalkit.show.source import source

POLL_S = 15.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a report is made. `everything`: with the texts of all samples; `wanted`: by which list of
    signers and policy its records are judged; `pack`: the address of the public pack; `address`:
    that of the page, or of the site's folder, once it is published."""

    everything: bool = False
    wanted: Wanted | None = None
    pack: str = ""
    address: str = ""


def options(
    samples: str, allowed: Path | None, policy: Path | None, pack: str, address: str
) -> Options:
    """Return the options of a report, from a reader's files of signers and policy. EvalkitError
    where `address` is no address."""
    if address and not page.safe_url(address):
        what = f"'{address}' is no http or https address"
        raise EvalkitError(what, fix="give the address that the page will have")
    return Options(samples == "all", wanted(allowed=allowed, policy=policy), pack, address)


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
        return _write_site(results, out, options)
    return write(runs, out, options)


def write(runs: Sequence[Path], out: Path | None = None, options: Options = Options()) -> Path:
    """Write the report of a run (by default to report.html in its folder), or of several compared
    (by default to report.html in the working folder); return the file's path. EvalkitError (3)
    where there is no run."""
    for run in runs:
        if not run.is_dir():
            raise EvalkitError("there is no such run folder", where=str(run), code=Exit.MISSING)
    run = runs[0]
    path = out or (run / "report.html" if len(runs) == 1 else Path("report.html"))
    with foreign(run):
        text = _text(runs, path, options)
    canon.write_atomic(path, text)
    return path


def watch(
    run: Path, out: Path | None, options: Options, wait: Callable[[float], None]
) -> Iterator[Path]:
    """Write the report of a run again and again until it has its record; yield each time."""
    while True:
        finished = (run / "record.json").is_file()
        yield write([run], out, options)
        if finished:
            return
        wait(POLL_S)


def _text(runs: Sequence[Path], path: Path, options: Options) -> str:
    run, everything, wanted = runs[0], options.everything, options.wanted
    if len(runs) > 1:
        context = comparison.context(runs, everything=everything, wanted=wanted)
        return page.render("compare.html.j2", ["matrix.js", "report.js"], context)
    if not (run / "record.json").is_file() and not results_in(run):
        return page.render("unfinished.html.j2", ["report.js"], progress.unfinished_page(run))
    made = single.run_page(run, everything=everything, wanted=wanted, pack=options.pack)
    return _published(made, path, options.address)


def _published(made: single.RunPage, path: Path, address: str) -> str:
    """Return the page of a run. With the `address` that it will have, it names a picture of its
    scores, which is drawn beside `path`."""
    context = made.context
    if address and made.record is not None:
        drawn = path.with_suffix(".png")
        suite, words = made.record["suite"]["name"], verdict.words(made.report)
        colour = verdict.COLOURS[verdict.tone(made.report)]
        model = score_table.model_name(made.record)
        picture.write(drawn, model, suite, words, colour, made.headline)
        context = context | {"picture": urljoin(address, quote(drawn.name)), "address": address}
    return page.render("run.html.j2", ["report.js"], context)


def _write_site(results: Path, out: Path, options: Options) -> Path:
    """Write the index of all records below `results`, with each one's report and badge; return its
    path. EvalkitError (3) where there is no record."""
    pages = (*results.glob("**/record.json"), *results.glob("**/results_*.json"))
    runs = sorted({path.parent for path in pages})
    if not runs:
        raise EvalkitError("no record is below it", where=str(results), code=Exit.MISSING)
    entries = []
    for run in runs:
        made = single.run_page(run, everything=options.everything, wanted=options.wanted)
        place = run.relative_to(results)
        canon.make_folder(out / place)
        link = (place / "report.html").as_posix()
        address = f"{options.address.rstrip('/')}/{quote(link)}" if options.address else ""
        canon.write_atomic(out / link, _published(made, out / link, address))
        verdict.write_badge(out / place / "badge.svg", made.report)
        entries.append(Entry("", link, made.folder, made.record, made.report))
    # newest first; one that can't be read has no scores to list
    entries.sort(key=lambda e: str(e.record["created"] or "") if e.record else "", reverse=True)
    path = out / "index.html"
    canon.write_atomic(path, page.render("site.html.j2", ["matrix.js", "site.js"], _index(entries)))
    _let_all_read(out)
    return path


def _let_all_read(folder: Path) -> None:
    """Let every user of this host read what is to be published, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _index(entries: list[Entry]) -> dict[str, object]:
    by_suite: dict[str, list[Entry]] = {}
    for entry in entries:
        by_suite.setdefault(entry.record["suite"]["name"] if entry.record else "", []).append(entry)
    suites = sorted(name for name in by_suite if name)
    last = [""] if "" in by_suite else []  # those that can't be read
    return {
        "title": "Evaluations",
        "matrices": [matrix.build(suite, by_suite[suite]) for suite in [*suites, *last]],
        "count": len(entries),
        "suites": suites,
        "verdicts": sorted({entry.verdict for entry in entries}),
    }
