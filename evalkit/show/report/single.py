"""What the report of one finished run shows, from its folder alone.

`verify` judges the folder first, and its verdict stands at the top of the page, so that a report
never looks better than its record. A record that can't be read leaves a page with the verdict and
the reasons.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.judge.verify import Report, Status, Wanted, verify
from evalkit.record.reading import identity
from evalkit.record.reading.evidence.plan import MAX_PLAN
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.reading.scores import score_table
from evalkit.show import facts, summary
from evalkit.show.report.parts import badge, head, leaves, plots, scores, statements, texts
from evalkit.show.scores import published

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
class Confidence:
    """A family's two plots."""

    name: str
    calibration: plots.Calibration
    margins: plots.Histogram
    count: int
    close: int


def context(
    run: Path, *, everything: bool = False, wanted: Wanted | None = None, pack: str = ""
) -> dict[str, Any]:
    """What the template `run.html.j2` shows; the verdict is by what the reader asks (`wanted`).
    `pack`: the address of the public pack, for whoever wants to check it."""
    judged = verify(run, wanted or Wanted())
    folder = Folder(run)
    read = identity.record(folder)
    record = read.record
    base = {"folder": run.name, "report": judged, "tone": tone(judged), "record": record,
            "pack": pack}  # fmt: skip
    if record is None:
        return base | {"title": run.name}
    kept = texts.Texts(len(record["tasks"]), everything=everything)
    found, unread = leaves.read(folder, record, _cut(folder), kept)
    whole = shown(run.name, judged, record, found, everything=everything)
    more = {"notes": summary.notes(record), "work": _work(folder, whole["families"])}
    matches = published.matches(record)
    same = [match for match in matches if not match.differs]
    marks = {(match.row.task, match.row.metric): match.row.value for match in same}
    more |= {"published": matches, "marks": marks, "said": statements.said(folder, read.sha256)}
    return whole | more | {"unread": unread, "whole": True, "pack": pack}


def shown(
    name: str,
    judged: Report,
    record: dict[str, Any],
    found: list[leaves.Leaf],
    *,
    everything: bool,
) -> dict[str, Any]:
    """What follows from scores and samples alone."""
    by_name = {leaf.name: leaf for leaf in found}
    groups = scores.families(record, by_name)
    return {
        "folder": name,
        "report": judged,
        "tone": tone(judged),
        "record": record,
        "model": score_table.model_name(record),
        "title": f"{score_table.model_name(record)} on {record['suite']['name']}",
        "badge": badge.words(judged),
        "facts": facts.line(record),
        "copies": head.copies(record, "" if judged.consistent else verdict_word(judged)),
        "warnings": [c for c in judged.checks if c.status in (Status.WARN, Status.FAIL)],
        "glossary": head.TERMS,
        "pack": "",
        "headline": scores.headline(record, by_name),
        "families": groups,
        "confidence": [seen for family in groups if (seen := _confidence(family))],
        "health": {name: HEALTH[name] for name in HEALTH if name in record.get("health", {})},
        "documents": sum(task["n"] for task in record["tasks"].values()),
        "expected": sum(task["documents"] for task in record["tasks"].values()),
        "index": index(groups),
        "leaves": [leaf for family in groups for leaf in family.leaves],
        "num_texts": sum(leaf.num_texts for leaf in found),
        "rule": texts.RULE,
        "everything": everything,
    }


def verdict_word(judged: Report) -> str:
    """BROKEN, CONSISTENT and so on."""
    return judged.verdict.partition(":")[0].partition(" ")[0]


def tone(judged: Report) -> str:
    """How the verdict is coloured: broken, warn or fine."""
    if not judged.readable or not judged.consistent:
        return "broken"
    warned = any(check.status is Status.WARN for check in judged.checks)
    return "warn" if warned else "fine"


def _cut(folder: Folder) -> dict[str, set[int]]:
    """The documents of each leaf task whose text was cut at the length limit, from the journal."""
    found: dict[str, set[int]] = {}
    try:
        names = sorted(name for name in folder.walk()[0] if name.startswith("journal/"))
        for name in names:
            for _, raw in folder.lines(name):
                if b'"stop":"length"' in raw:
                    _note_cut(canon.loads(raw), found)
    except BROKEN:
        pass  # verify says what is wrong with the journal
    return found


def _note_cut(line: dict[str, Any], found: dict[str, set[int]]) -> None:
    for part, answer in line["answers"].items():
        if answer.get("stop") == "length":
            leaf, doc_id, *_ = part.rsplit("/", 3)
            found.setdefault(leaf, set()).add(int(doc_id))


def _confidence(family: scores.Family) -> Confidence | None:
    sure, margins, rights = scores.chosen(family)
    if not sure:
        return None
    return Confidence(
        family.name,
        plots.calibration(sure, rights),
        plots.histogram(margins, rights),
        len(sure),
        sum(margin < leaves.CLOSE for margin in margins),
    )


def _work(folder: Folder, groups: list[scores.Family]) -> list[tuple[str, int]]:
    """Tokens computed for each member of the suite, from the plan; nothing where it can't be
    read."""
    costs: dict[str, int] = {}
    try:
        for batch in folder.json("plan.json", MAX_PLAN)["batches"]:
            costs[batch["task"]] = costs.get(batch["task"], 0) + int(batch["cost"])
    except BROKEN:
        return []
    found = [(f.name, sum(costs.get(leaf.name, 0) for leaf in f.leaves)) for f in groups]
    return sorted(found, key=lambda item: -item[1])


def index(groups: list[scores.Family]) -> dict[str, Any]:
    """Every document's line for the browser, as columns."""
    return {
        "flags": {str(bit): name for bit, name in leaves.FLAGS.items()},
        "close": leaves.CLOSE_CALL,
        "leaves": [_columns(family.name, leaf) for family in groups for leaf in family.leaves],
    }


def _columns(family: str, leaf: leaves.Leaf) -> dict[str, Any]:
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
