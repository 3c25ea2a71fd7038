"""The census of lm-eval's tasks as a table: what became of them, the most first."""

import re
from collections import Counter, defaultdict
from typing import Any

from evalkit.base.machine import stamp
from evalkit.harness.data import metrics

Found = dict[str, Any]
KINDS = {  # of a refusal, by the words in it
    "a program on the Hub": "refused: it is scored with a program on the Hub, which nothing pins",
    "images or sound": "refused: it needs images or sound",
    "code that a model wrote": "refused: it runs what a model wrote, not as humaneval and mbpp do",
    "transformers.data|cannot import name": "refused: it wants an older package",
    "[Ii]nstall|are required|No module named": "refused: it needs packages that are not here",
    "at an address": "refused: its data lies at an address, where nothing pins it",
    "no include_path": "refused: it reads files that lm-eval does not bring",
    "can't be built": "refused: lm-eval can't build it from its YAML",
    "took longer": "not known: it takes longer with invented rows",
}


def kind(found: Found) -> str:
    """What became of a task, in words."""
    if found["step"] == "planned":
        return "planned"
    if found.get("fault"):
        return "a fault of evalkit: an error that is not its own"
    if found.get("misfit"):
        return "not known: its code takes none of the invented rows"
    named = (text for words, text in KINDS.items() if re.search(words, found["what"]))
    return next(named, f"refused: {found['what'].replace(found['task'], 'TASK')[:90]}")


def table(found: dict[str, Found], registered: int) -> str:
    """The counts, the most first, with the step that was reached and an example."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, each in found.items():
        kinds[kind(each), each["step"]].append(name)
    rows = sorted(kinds.items(), key=lambda item: -len(item[1]))
    lines = [f"| {what} | {step} | {len(names):,} | `{min(names, key=len)}` |"
             for (what, step), names in rows]  # fmt: skip
    ours = [set(each.get("metrics", ())) & metrics.FUNCTIONS.keys() for each in found.values()]
    computed = Counter(metric for names in ours for metric in names)
    programs = Counter(name for each in found.values() for name in _programs(each["what"]))
    tried = f"{len(found):,} of the" if len(found) < registered else "All"
    return (
        f"{tried} {registered:,} tasks of lm-eval {stamp.version('lm_eval')}:\n\n"
        "| what became of it | after | tasks | for example |\n|---|---|--:|---|\n"
        + "\n".join(lines)
        + f"\n\n{sum(map(bool, ours)):,} of the planned name a metric that lm-eval gets from the"
        f" Hub and evalkit from scikit-learn: {_listed(computed)}. The programs on the Hub for"
        f" which tasks are refused: {_listed(programs)}."
    )


def _programs(what: str) -> list[str]:
    named = re.search(r" is scored with (.*): a program on the Hub", what)
    return named[1].split(", ") if named else []


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({number:,})" for name, number in counts.most_common())
