"""What the report of one finished run, or of lm-eval's own results, shows, from the folder alone.

`verify` judges the folder first and its verdict stands at the top. A record that can't be read
gives a page with the verdict and the reasons.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from evalkit.base import canon
from evalkit.judge.verify import Report, Status, Wanted, plain, verify
from evalkit.record.imported import as_record
from evalkit.record.reading import identity, lm_eval, score_table
from evalkit.record.reading.evidence.plan import MAX_PLAN
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.types import AnyRecord
from evalkit.show import published, summary
from evalkit.show.report.parts import leaves, plots, scores, texts, verdict
from evalkit.show.source import facts

HEALTH = {
    "nan_answers": "documents with a NaN answer, scored 0",
    "truncated_prompts": "prompts cut on the left to fit the model",
    "missing_bos": "prompts without a beginning-of-sequence token",
    "double_bos": "prompts with two of them",
    "appended_eos": "texts that the tokenizer ends with EOS",
    "dropped_system_turns": "system turns left out",
    "endless_thoughts": "texts that never stopped thinking",
    "fewshot_leaks": "documents that are a worked example in their own prompt",
    "empty_texts": "documents without a text to score",
    "empty_generations": "empty texts",
    "cut_generations": "texts cut at the length limit",
    "answers_not_found": "texts in which the task found no answer",
    "exact_ties": "exact ties between choices, which lm-eval settles for the first",
    "split_batches": "batches split for lack of memory",
}


@dataclass(frozen=True, slots=True)
class RunPage:
    """The page of a run: its folder's name, its record (None where it can't be read), what verify
    says, the scores at the top, and everything that the template `run.html.j2` shows."""

    folder: str
    record: AnyRecord | None
    report: Report
    headline: list[score_table.Score]
    context: dict[str, object]


@dataclass(frozen=True, slots=True)
class Confidence:
    """The two plots of a family, and how many of its documents with choices are close calls."""

    name: str
    calibration: plots.Calibration
    margins: plots.Histogram
    count: int
    close: int


class Columns(TypedDict):
    """The documents of a leaf task as the page's script reads them: a column for each property."""

    name: str
    family: str
    metric: str
    count: int
    ids: list[int] | None
    scores: list[float | None] | str
    margins: list[float | None] | None
    flags: dict[str, int]
    texts: int
    flips: NotRequired[list[str]]


def run_page(run: Path, *, everything: bool, wanted: Wanted | None, pack: str = "") -> RunPage:
    """Return the page of a run, or of lm-eval's own results, judged by what the reader wants.
    `everything`: with the texts of all samples; `pack`: the address of the public pack."""
    wanted = wanted or Wanted()
    if not (run / "record.json").is_file():
        return _plain_page(run, wanted, everything=everything, pack=pack)
    report, folder = verify(run, wanted), Folder(run)
    read = identity.record(folder)
    if (record := read.record) is None:
        context = {"folder": run.name, "report": report, "tone": verdict.tone(report),
                   "record": None, "title": run.name, "pack": pack}  # fmt: skip
        return RunPage(run.name, None, report, [], context)
    kept = texts.Texts(len(record["tasks"]), everything=everything)
    read_leaves, unread = leaves.read(folder, record, _cut(folder), kept)
    matches = published.matches(record)
    more = {
        "everything": everything,
        "whole": True,
        "pack": pack,
        "unread": unread,
        "notes": summary.notes(record),
        "work": _work(folder, scores.families(record, {leaf.name: leaf for leaf in read_leaves})),
        "published": matches,
        "marks": {(m.row.task, m.row.metric): m.row.value for m in matches if not m.differs},
        "statements": verdict.statements(folder, read.sha256),
    }
    return _page(run.name, report, record, read_leaves, more)


def _plain_page(run: Path, wanted: Wanted, *, everything: bool, pack: str) -> RunPage:
    """Return the page of lm-eval's own results; EvalkitError where they have no samples."""
    written = lm_eval.find(run)
    report = plain.verify(written.folder, f"results_{written.time}.json", asked=wanted.asked)
    record = as_record(written)
    kept = texts.Texts(len(record["tasks"]), everything=everything)
    read_leaves, unread = leaves.of_documents(written.documents(), record, {}, kept)
    imported = (written.folder / "imported.json").is_file()
    origin = "imported from lm-eval's results" if imported else "lm-eval's own results"
    more = {
        "everything": everything,
        "whole": False,
        "pack": pack,
        "unread": unread,
        "notes": [f"{origin}: which model answered, and whether it did, can't be known"],
        "published": [],
        "marks": {},
        "statements": [],
    }
    return _page(run.name, report, record, read_leaves, more)


def _page(
    name: str, report: Report, record: AnyRecord, read_leaves: list[leaves.Leaf],
    more: dict[str, object],
) -> RunPage:  # fmt: skip
    by_name = {leaf.name: leaf for leaf in read_leaves}
    families = scores.families(record, by_name)
    in_order = [(family, leaf) for family in families for leaf in family.leaves]
    headline = scores.headline(record, by_name)
    model = score_table.model_name(record)
    counted = record["health"].keys() if "health" in record else ()
    context = {
        "folder": name,
        "report": report,
        "tone": verdict.tone(report),
        "record": record,
        "model": model,
        "title": f"{model} on {record['suite']['name']}",
        "badge": verdict.words(report),
        "facts": facts(record),
        "copies": scores.copies(record, "" if report.consistent else verdict.word(report)),
        "warnings": [c for c in report.checks if c.status in (Status.WARN, Status.FAIL)],
        "glossary": scores.TERMS,
        "headline": headline,
        "families": families,
        "confidence": [plot for family in families if (plot := _confidence(family))],
        "health": {key: words for key, words in HEALTH.items() if key in counted},
        "documents": sum(task["n"] for task in record["tasks"].values()),
        "expected": sum(task["documents"] for task in record["tasks"].values()),
        "index": _index([_columns(family.name, leaf) for family, leaf in in_order]),
        "leaves": [leaf for _, leaf in in_order],
        "num_texts": sum(leaf.num_texts for leaf in read_leaves),
        "rule": texts.RULE,
    }
    return RunPage(name, record, report, headline, context | more)


def _index(columns: list[Columns]) -> dict[str, object]:
    flags = {str(bit): words for bit, words in leaves.FLAGS.items()}
    return {"flags": flags, "close": leaves.CLOSE_CALL, "leaves": columns}


def _cut(folder: Folder) -> dict[str, set[int]]:
    """Return the documents by leaf task whose text was cut at the length limit; none where the
    journal can't be read, since verify says so."""
    cut: dict[str, set[int]] = {}
    try:
        for name in sorted(name for name in folder.walk()[0] if name.startswith("journal/")):
            for _, raw in folder.lines(name):
                if b'"stop":"length"' in raw:
                    for part, answer in canon.loads(raw)["answers"].items():
                        if answer.get("stop") == "length":
                            leaf, doc_id, *_ = part.rsplit("/", 3)
                            cut.setdefault(leaf, set()).add(int(doc_id))
    except BROKEN:
        pass
    return cut


def _confidence(family: scores.Family) -> Confidence | None:
    confidences, margins, rights = scores.chosen(family)
    if not confidences:
        return None
    return Confidence(
        family.name,
        plots.calibration(confidences, rights),
        plots.histogram(margins, rights),
        len(confidences),
        sum(margin < leaves.CLOSE for margin in margins),
    )


def _work(folder: Folder, families: list[scores.Family]) -> list[tuple[str, int]]:
    """Return the tokens computed for each member, most first; nothing without a readable plan."""
    costs: dict[str, int] = {}
    try:
        for batch in folder.json("plan.json", MAX_PLAN)["batches"]:
            costs[batch["task"]] = costs.get(batch["task"], 0) + int(batch["cost"])
    except BROKEN:
        return []
    work = [(f.name, sum(costs.get(leaf.name, 0) for leaf in f.leaves)) for f in families]
    return sorted(work, key=lambda item: -item[1])


def _columns(family: str, leaf: leaves.Leaf) -> Columns:
    in_order = leaf.ids == list(range(len(leaf.ids)))
    binary = "".join(str(int(score or 0)) for score in leaf.scores) if leaf.binary else None
    margins = [None if m is None else round(m, 2) for m in leaf.margins]
    return {
        "name": leaf.name,
        "family": family,
        "metric": leaf.metric,
        "count": len(leaf.ids),
        "ids": None if in_order else leaf.ids,
        "scores": leaf.scores if binary is None else binary,
        "margins": margins if leaf.by_choice else None,
        "flags": {str(position): bits for position, bits in leaf.flags.items()},
        "texts": leaf.num_texts,
    }
