"""`report --site`: a folder to publish as it is: an index of all records below a results folder
and the report of each. Static files, no server, no network.

A record that is broken is listed as broken; one that can't be read has no scores to list.
"""

from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Wanted
from evalkit.show.report import page, single
from evalkit.show.report.parts import matrix, verdict
from evalkit.show.report.parts.matrix import Entry


def write(
    results: Path, out: Path, *, everything: bool = False, wanted: Wanted | None = None
) -> Path:
    """Write the index, every report and every badge below `out`; return the index's path.
    EvalkitError (3) where there is no record below `results`."""
    pages = (*results.glob("**/record.json"), *results.glob("**/results_*.json"))
    runs = sorted({path.parent for path in pages})
    if not runs:
        raise EvalkitError("no record is below it", where=str(results), code=Exit.MISSING)
    entries = []
    for run in runs:
        made = single.run_page(run, everything=everything, wanted=wanted)
        place = run.relative_to(results)
        canon.make_folder(out / place)
        text = page.render("run.html.j2", ["report.js"], made.context)
        canon.write_atomic(out / place / "report.html", text)
        verdict.write_badge(out / place / "badge.svg", made.report)
        link = (place / "report.html").as_posix()
        entries.append(Entry("", link, made.folder, made.record, made.report))
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
    """Return what the template `site.html.j2` shows."""
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
