"""The census of lm-eval's tasks as a table: what became of them, the most first."""

import re
from collections import Counter, defaultdict
from typing import Any

from evalkit.base.machine import stamp

Found = dict[str, Any]
KINDS = {  # of a refusal, by the words in it
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
    hubs = Counter(metric for each in found.values() for metric in each.get("metrics", []))
    taken = sum(bool(each.get("metrics")) for each in found.values())
    tried = f"{len(found):,} of the" if len(found) < registered else "All"
    return (
        f"{tried} {registered:,} tasks of lm-eval {stamp.version('lm_eval')}:\n\n"
        "| what became of it | after | tasks | for example |\n|---|---|--:|---|\n"
        + "\n".join(lines)
        + f"\n\n{taken:,} of the planned are scored with a metric that lm-eval gets from the Hub, a"
        f" program there: {', '.join(f'{name} ({n:,})' for name, n in hubs.most_common())}."
    )
