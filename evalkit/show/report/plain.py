"""What the report of lm-eval's own results shows, as it wrote them or imported: scores, leaf tasks,
confidence and samples. What such a folder can't say (weights, revisions, time by phase) has no
section, and the verdict says so.
"""

from pathlib import Path
from typing import Any

from evalkit.judge.verify import Wanted, plain
from evalkit.record.reading.lm_eval import results
from evalkit.record.reading.lm_eval.as_record import as_record
from evalkit.show.report import single
from evalkit.show.report.parts import leaves, texts


def context(
    folder: Path, *, everything: bool = False, wanted: Wanted | None = None, pack: str = ""
) -> dict[str, Any]:
    """What `run.html.j2` shows; EvalkitError where there are no results with samples."""
    found = results.find(folder)
    asked = bool(wanted and wanted.asked)
    judged = plain.verify(found.folder, f"results_{found.time}.json", asked=asked)
    record = as_record(found)
    kept = texts.Texts(len(record["tasks"]), everything=everything)
    read, unread = leaves.of_documents(found.documents(), record, {}, kept)
    imported = (found.folder / "imported.json").is_file()
    origin = "imported from lm-eval's results" if imported else "lm-eval's own results"
    return single.shown(folder.name, judged, record, read, everything=everything) | {
        "unread": unread,
        "notes": [f"{origin}: which model answered, and whether it did, can't be known"],
        "whole": False,
        "pack": pack,
        "published": [],
        "said": [],
        "marks": {},
    }
