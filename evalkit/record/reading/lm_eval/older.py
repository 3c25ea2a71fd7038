"""What older versions of lm-eval leave out of their results, put where 0.4.13 has it.

They name neither a sample's filter nor its metrics, nor a group's size. All of it follows from the
rest; nothing else is changed and nothing guessed.
"""

from collections import Counter
from typing import Any

Value = dict[str, Any]


class Completing:
    """Completes a leaf task's samples, in the order in which lm-eval wrote them."""

    def __init__(self, results: Value, leaf: str) -> None:
        config = (results.get("configs") or {}).get(leaf) or {}
        self._leaf = leaf
        self._filters = [each["name"] for each in config.get("filter_list") or []] or ["none"]
        self._metrics: dict[str, list[str]] = {}
        for key in results["results"].get(leaf, {}):
            metric, comma, name = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                self._metrics.setdefault(name, []).append(metric)
        self._seen: Counter[Any] = Counter()

    def complete(self, sample: Value) -> None:
        """Say which task, filter and metrics a sample is of, where it does not; LookupError,
        TypeError or AttributeError where it is none."""
        turn = self._seen[sample["doc_id"]]
        self._seen[sample["doc_id"]] += 1
        sample["task"] = self._leaf
        if "filter" not in sample:
            sample["filter"] = self._filters[turn]
        if "metrics" not in sample:
            named = self._metrics.get(sample["filter"], [])
            sample["metrics"] = [metric for metric in named if metric in sample]


def with_sizes(results: Value) -> Value:
    """Results with each group's number of documents."""
    children, counts = results.get("group_subtasks") or {}, results.get("n-samples") or {}
    for name in children:
        entry = results["results"].get(name)
        if isinstance(entry, dict):
            leaves = _below(name, children)
            entry.setdefault("sample_len", sum(counts[n]["effective"] for n in leaves & {*counts}))
    return results


def _below(name: str, children: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    pending = [name]
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += children.get(each, [])
    return found
