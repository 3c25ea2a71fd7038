"""`report --site`: a folder to publish as it is: an index of all records below a results folder
and the report of each. Static files, no server, no network.

A record that is broken is listed as broken; one that can't be read has no scores to list.
"""

from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Wanted
from evalkit.show.report import page, plain, single
from evalkit.show.report.parts import badge, matrix
from evalkit.show.report.parts.matrix import Entry


def write(
    results: Path, out: Path, *, everything: bool = False, wanted: Wanted | None = None
) -> Path:
    """Write the index, every report and every badge below `out`; the index's path. EvalkitError (3)
    where there is no record below `results`."""
    records = {path.parent for path in results.glob("**/record.json")}
    plain_ones = {path.parent for path in results.glob("**/results_*.json")} - records
    runs = sorted(records | plain_ones)
    if not runs:
        raise EvalkitError("no record is below it", where=str(results), code=Exit.MISSING)
    entries = []
    for run in runs:
        made = single.context if run in records else plain.context
        context = made(run, everything=everything, wanted=wanted)
        place = run.relative_to(results)
        folder = out / place
        canon.make_folder(folder)
        text = page.render("run.html.j2", ["report.js"], context)
        canon.write_atomic(folder / "report.html", text)
        badge.write(folder / "badge.svg", context["report"], context["tone"])
        entries.append(_entry(context, (place / "report.html").as_posix()))
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


def _entry(context: dict[str, Any], link: str) -> Entry:
    report, folder = context["report"], context["folder"]
    return Entry(
        "", link, folder, context["record"], report, single.verdict_word(report), context["tone"]
    )


def _index(entries: list[Entry]) -> dict[str, Any]:
    suites = sorted({entry.record["suite"]["name"] for entry in entries if entry.record})
    matrices = [
        matrix.build(suite, [e for e in entries if e.record and e.record["suite"]["name"] == suite])
        for suite in suites
    ]
    unread = [entry for entry in entries if entry.record is None]
    if unread:
        matrices.append(matrix.build("", unread))
    return {
        "title": "Evaluations",
        "matrices": matrices,
        "count": len(entries),
        "suites": suites,
        "verdicts": sorted({entry.verdict for entry in entries}),
    }
