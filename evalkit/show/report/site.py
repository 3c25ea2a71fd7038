"""`report --site`: a folder to publish as it is: an index of all records below a results folder
and the report of each. Static files, no server, no network.

A record that is broken is listed as broken; one that can't be read has no scores to list.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading.score_table import Score
from evalkit.show.report import page, plain, single


@dataclass(frozen=True, slots=True)
class Line:
    """A run's line in the index; `scores` by (task, metric), the suite's members' first metrics."""

    name: str
    link: str
    model: str
    suite: str
    partial: bool
    created: str
    verdict: str
    tone: str
    scores: dict[str, Score]


def write(results: Path, out: Path, *, everything: bool = False) -> Path:
    """Write the index and every report below `out`; the index's path. EvalkitError (3) where there
    is no record below `results`."""
    records = {path.parent for path in results.glob("**/record.json")}
    plain_ones = {path.parent for path in results.glob("**/results_*.json")} - records
    runs = sorted(records | plain_ones)
    if not runs:
        raise EvalkitError("no record is below it", where=str(results), code=Exit.MISSING)
    lines = []
    for run in runs:
        made = single.context if run in records else plain.context
        context = made(run, everything=everything)
        place = run.relative_to(results)
        folder = out / place
        canon.make_folder(folder)
        text = page.render("run.html.j2", "report.js", context)
        canon.write_atomic(folder / "report.html", text)
        lines.append(_line(context, (place / "report.html").as_posix()))
    lines.sort(key=lambda line: (line.suite, line.created), reverse=True)
    columns = list(dict.fromkeys(task for line in lines for task in line.scores))
    context = {
        "title": "Evaluations", "lines": lines, "columns": columns,
        "suites": sorted({line.suite for line in lines}),
        "verdicts": sorted({line.verdict for line in lines}),
    }  # fmt: skip
    path = out / "index.html"
    canon.write_atomic(path, page.render("site.html.j2", "site.js", context))
    canon.let_all_read(out)
    return path


def _line(context: dict[str, Any], link: str) -> Line:
    record, report = context["record"], context["report"]
    scores = context.get("headline", [])
    firsts = {score.task: score for score in scores if score.depth == 0 and score.headline}
    return Line(
        name=context["folder"],
        link=link,
        model=context["model"] if record else context["folder"],
        suite=record["suite"]["name"] if record else "",
        partial=bool(record and record["suite"]["partial"]),
        created=(record["created"] or "") if record else "",
        verdict=report.verdict.split(":")[0].split(" by ")[0],
        tone=context["tone"],
        scores=firsts,
    )
