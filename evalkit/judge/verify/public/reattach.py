"""`verify --deep` of a public pack: its texts, put back from the suite's pinned data.

lm-eval builds every request again; the record's digests of questions and prompts must follow, and
what was answered with numbers is scored again. What hides behind a salted digest only its author
can open (`revealed`); texts that a model wrote stay unknown: their scores are the author's word.
"""

from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

from evalkit.base import canon
from evalkit.record.reading.findings import Check, Findings, shown
from evalkit.record.reading.folder import Folder
from evalkit.record.salted import LINES

if TYPE_CHECKING:
    from evalkit.harness.tasks import Loaded

Value = dict[str, Any]


def check(folder: Folder, record: Value, loaded: "Loaded", template: Any) -> Check:
    """The one check."""
    from evalkit.harness.scoring import score
    from evalkit.record.record import SampleFacts

    findings, facts = Findings("deep texts"), SampleFacts()
    lines = [canon.loads(raw) for _, raw in folder.gzip_lines(LINES)]
    answers = _answers(lines)
    scoring = score.Scoring(loaded, lambda leaf: answers.get(leaf, {}), template)
    made = groupby(scoring.samples(), key=lambda sample: (sample["task"], sample["doc_id"]))
    for line, group in zip_longest(lines, made):
        samples = [canon.finite(sample) for sample in group[1]] if group else []
        for sample in samples:
            facts.add(sample)
        if line is None or group is None:
            findings.add("the pack holds other documents than the pinned data")
            break
        findings.add(_unlike(line, samples))
    for leaf, entry in record["tasks"].items():
        for key, parts in (("questions", facts.questions), ("prompts", facts.prompts)):
            found = canon.digest(parts.get(leaf, []))
            findings.add_unequal(f"{shown(leaf)}: the {key} digest", entry[key], found)
    rescored = sum("filtered" not in line for line in lines)
    told = f"{len(lines):,} documents are those of the pinned data; {rescored:,} scored again"
    return findings.check(told)


def _answers(lines: list[Value]) -> dict[str, Value]:
    """By leaf task and request, as lm-eval is to be told them; a text is not there to tell."""
    found: dict[str, Value] = {}
    for line in lines:
        leaf, name = line["task"], f"{line['task']}/{line['doc_id']}"
        for index, repeats in enumerate(line["answers"]):
            for repeat, answer in enumerate(repeats):
                known = {"text": ""}
                if isinstance(answer, list):
                    known = {"loglikelihood": answer[0], "is_greedy": answer[1]}
                found.setdefault(leaf, {})[f"{name}/{index}/{repeat}"] = known
    return found


def _unlike(line: Value, samples: list[Value]) -> str:
    first, name = samples[0], f"{shown(line['task'])} document {line['doc_id']}"
    if (first["task"], first["doc_id"]) != (line["task"], line["doc_id"]):
        return f"{name} stands where {shown(first['task'])} {first['doc_id']} should"
    if "filtered" in line:
        return ""
    scored = {s["filter"]: {metric: s[metric] for metric in s["metrics"]} for s in samples}
    return "" if scored == line["metrics"] else f"{name}: lm-eval scores its answers otherwise"
