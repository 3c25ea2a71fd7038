"""Samples and results as lm-eval makes them and evalkit keeps them (samples.jsonl.gz).

JSON has no NaN and no infinity, which documents may hold. Hashes and scores follow from what a
field was, so a non-finite number is marked: it must not be taken for the text of that name.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict, cast

from evalkit.base import canon
from evalkit.inputs.types import Version

# The kind of request that tasks of lm-eval's other output types make.
REQUESTED_AS = {"multiple_choice": "loglikelihood"}


class Sample(TypedDict):
    """A line of samples.jsonl.gz: lm-eval's record of a document under one filter, with its leaf
    task in front. Besides these keys it has one for each name in `metrics`; see `value_of`."""

    task: str
    doc_id: int
    doc: Any
    target: str
    arguments: dict[str, dict[str, Any]]
    resps: list[Any]
    filtered_resps: list[Any]
    filter: str
    metrics: list[str]
    doc_hash: str
    prompt_hash: str
    target_hash: str


def value_of(sample: Sample, key: str) -> Any:
    """Return the value of one of a sample's metrics, or of another of its keys."""
    return sample[key]  # type: ignore[literal-required]


class Counts(TypedDict):
    """How many documents a leaf task has, and how many were asked."""

    original: int
    effective: int


# What lm-eval reports of a run, with its keys, which hold dashes. `configs` are the leaf tasks' own
# and `config` is lm-eval's call. Only `results` is certain: older versions lack others or write
# null. evalkit's own results.json has all of them.
Results = TypedDict(
    "Results",
    {
        "results": dict[str, dict[str, Any]],
        "configs": NotRequired[dict[str, dict[str, Any]] | None],
        "config": NotRequired[dict[str, Any] | None],
        "group_subtasks": NotRequired[dict[str, list[str]] | None],
        "n-samples": NotRequired[dict[str, Counts] | None],
        "n-shot": NotRequired[dict[str, int] | None],
        "versions": NotRequired[dict[str, Version] | None],
        "higher_is_better": NotRequired[dict[str, dict[str, bool | None] | None] | None],
        "model_name": NotRequired[str | None],
        "lm_eval_version": NotRequired[str | None],
        "date": NotRequired[float | None],
    },
)


# What results.json of a run of evalkit's holds of that, which is more than lm-eval promises.
RunResults = TypedDict(
    "RunResults",
    {
        "results": dict[str, dict[str, Any]],
        "groups": NotRequired[dict[str, dict[str, Any]]],
        "configs": dict[str, dict[str, Any]],
        "config": NotRequired[dict[str, Any] | None],
        "group_subtasks": NotRequired[dict[str, list[str]]],
        "n-samples": dict[str, Counts],
        "n-shot": dict[str, int],
        "versions": dict[str, Version],
        "higher_is_better": dict[str, dict[str, bool | None] | None],
        "chat_template": NotRequired[str | None],
        "lm_eval_version": NotRequired[str | None],
        "max_length": NotRequired[int],
    },
)


def marked(value: Any) -> Any:
    """Return the value with every non-finite float as `{"float": its string}`; `unmarked` reverses
    it. A mapping of that form is put in a list."""
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, dict):
        made = {key: marked(item) for key, item in value.items()}
        return {"float": [made["float"]]} if made.keys() == {"float"} else made
    return [marked(item) for item in value] if isinstance(value, (list, tuple)) else value


def unmarked(value: Any) -> Any:
    """Return the value that was `marked`."""
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            inner = value["float"]
            if isinstance(inner, list) and len(inner) == 1:
                return {"float": unmarked(inner[0])}
            return canon.number(inner)
        return {key: unmarked(item) for key, item in value.items()}
    return [unmarked(item) for item in value] if isinstance(value, list) else value


def flat(value: Any) -> Iterator[Any]:
    """Yield the values in nested lists."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def strings(value: Any) -> Any:
    """Return nested lists with every leaf as a string, as lm-eval writes responses."""
    return [strings(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


def plain(value: Any) -> Any:
    """Return values of numpy, sets and objects as JSON values, as lm-eval writes them."""
    from lm_eval.utils import handle_non_serializable

    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, set):
        return sorted(map(plain, value))  # a set's own order differs between processes
    if hasattr(value, "tolist"):
        return value.tolist()  # numpy's scalars and arrays
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return handle_non_serializable(value)


def task_hash(samples: list[Sample]) -> str:
    """Return lm-eval's hash of a leaf task, from its samples in lm-eval's order."""
    parts = (s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def published(task: str, samples: list[Sample], filters: dict[str, int]) -> Iterator[Sample]:
    """Yield lm-eval's own samples of a leaf task as lm-eval would write them, with the task's name
    first; what a model read and wrote stays as it was. `filters` numbers those of all leaf tasks so
    far: samples of a document are in that order."""
    for sample in samples:
        filters.setdefault(sample["filter"], len(filters))
    for sample in sorted(samples, key=lambda s: (s["doc_id"], filters[s["filter"]])):
        made = plain(sample)
        made |= {
            "doc": marked(made["doc"]),
            "target": str(made["target"]),
            "arguments": {
                f"gen_args_{i}": {f"arg_{j}": arg for j, arg in enumerate(args)}
                for i, args in enumerate(made["arguments"])
            },
            "resps": strings(made["resps"]),
            "filtered_resps": strings(made["filtered_resps"]),
        }
        yield cast(Sample, {"task": task} | made)
