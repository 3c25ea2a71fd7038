"""A record's scores as every view shows them: the order of tasks and groups, each metric's
direction and scale, its interval of 95%, and the metric that stands for its task.

Console, report, exports and `compare` take these from here, computed from the record alone. A
share's interval is Wilson's, which has a width even at 0 or 1. Its count is the number of documents
where the scores are zeros and ones (the standard error shows it), else the one that gives the
recorded standard error.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evalkit.base import canon, statistics
from evalkit.inputs.untrusted import Groups
from evalkit.record.types import AnyRecord, PlainScores

# The metrics that stand for their task where it has them; else its first one by name.
PREFERRED = ("acc_norm", "prompt_level_strict_acc")
FILTERS = ("none", "strict-match")  # likewise of a metric's filters
SIGNED = {"mcc"}  # correlations: they may be below 0


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of a task or group; `metric` is its key, `acc,none`. `share`: it lies between 0
    and 1 and higher is better; `low`, `high`: the interval of 95%; `headline`: it stands for its
    task; `chance`: what guessing scores, where the samples were read."""

    task: str
    depth: int
    is_group: bool
    alias: str
    shots: str
    metric: str
    value: float
    stderr: float | None
    stderr_method: str | None
    higher_is_better: bool | None
    share: bool
    low: float | None
    high: float | None
    count: int
    headline: bool
    is_first: bool
    chance: float | None = None

    @property
    def name(self) -> str:
        """The metric as lm-eval's table names it: with its filter only where there is one."""
        return self.metric.removesuffix(",none")

    @property
    def metric_name(self) -> str:
        """The metric without its filter, `acc`."""
        return self.metric.partition(",")[0]

    @property
    def filter(self) -> str:
        """The name of its filter, `none` where there is none."""
        return self.metric.partition(",")[2]


def model_name(record: AnyRecord) -> str:
    """What the model is called: a local folder by its own name, whatever path led to it."""
    model = record["model"]
    reference = str(model["reference"])
    revision = model["revision"]
    is_path = reference.startswith((".", "~", "/")) or reference.count("/") > 1
    is_unknown = isinstance(revision, dict) and "local" in revision["unknown"]
    is_local = is_unknown and "\\" not in reference
    return reference.rstrip("/").rpartition("/")[2] if is_path or is_local else reference


def scores(record: AnyRecord, *, leaves: bool = False) -> list[Score]:
    """The suite's members with all metrics, subgroups below; with `leaves`, leaf tasks too."""
    return [each for depth, name in rows(record, leaves=leaves) for each in of(record, name, depth)]


def of(record: AnyRecord, name: str, depth: int = 0) -> list[Score]:
    """All metrics of a task or group, by name."""
    result = record["groups"].get(name) or record["tasks"][name]
    main = headline(result["metrics"])
    found = []
    for index, (metric, entry) in enumerate(sorted(result["metrics"].items())):
        value, stderr = canon.number(entry["value"]), _finite(entry["stderr"])
        better = direction(record, name, metric)
        share = is_share(metric, value, better)
        low, high = interval(value, stderr, result["n"], share=share)
        found.append(
            Score(
                name, depth, name in record["groups"], result["alias"], shots(record, name),
                metric, value, stderr, entry["stderr_method"], better, share, low, high,
                result["n"], metric == main, not index,
            )
        )  # fmt: skip
    return found


def _finite(value: Any) -> float | None:
    number = None if value is None else canon.number(value)
    return number if number is not None and math.isfinite(number) else None


def headline(metrics: Any) -> str | None:
    """Which of a task's metrics, keys like `acc,none`, stands for it."""
    return min(metrics, key=_rank, default=None)


def _rank(metric: str) -> tuple[int, str, int, str]:
    name, _, filtered = metric.partition(",")
    return _place(name, PREFERRED), name, _place(filtered, FILTERS), filtered


def _place(name: str, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else len(names)


def direction(record: AnyRecord, name: str, metric: str) -> bool | None:
    """Whether higher is better: as the entry says, or, where a group says nothing, as all its leaf
    tasks do. lm-eval leaves it open for a group of groups."""
    result = record["groups"].get(name) or record["tasks"][name]
    own = result["metrics"][metric]["higher_is_better"]
    if own is not None or name not in record["groups"]:
        return own
    entries = [record["tasks"][leaf]["metrics"].get(metric) for leaf in below(record, name)]
    directions = {entry["higher_is_better"] if entry else None for entry in entries}
    return directions.pop() if len(directions) == 1 else None


def is_share(metric: str, value: float, better: bool | None) -> bool:
    """Whether a score lies between 0 and 1 and higher is better."""
    return better is True and 0 <= value <= 1 and metric.partition(",")[0] not in SIGNED


def interval(
    value: float, stderr: float | None, count: int, *, share: bool
) -> tuple[float | None, float | None]:
    """The interval of 95%; (None, None) where nothing is known of the error."""
    if stderr is None or not math.isfinite(value) or count < 1:
        return None, None
    if share:
        return statistics.wilson(value, effective_count(value, stderr, count))
    if stderr == 0:  # that says nothing of how far off it may be
        return None, None
    return value - statistics.Z95 * stderr, value + statistics.Z95 * stderr


def effective_count(value: float, stderr: float, count: int) -> float:
    """Of how many yes-or-no outcomes a share with this standard error is: value (1 - value) /
    stderr^2, and the count itself where the values are zeros and ones or the error says nothing."""
    spread = value * (1 - value)
    if stderr == 0 or spread == 0:
        return count
    if math.isclose(stderr**2 * (count - 1), spread, rel_tol=1e-6):
        return count
    return max(spread / stderr**2, 1.0)


def rows(record: AnyRecord, *, leaves: bool = False) -> list[tuple[int, str]]:
    """(depth, name) of each row, the suite's members in the suite's order: groups, each below the
    one it is in, and the leaf tasks that are in no group; with `leaves`, every leaf task below its
    group. A group without a score of its own is left out, and what it holds stands in its place."""
    children = {c for group in record["groups"].values() for c in group["subtasks"]}
    order = {item["task"]: index for index, item in enumerate(record["suite"]["tasks"])}
    names = [*record["groups"], *record["tasks"]]
    tops = sorted((n for n in names if n not in children), key=lambda n: order.get(n, len(order)))
    found = list(_tree(record, tops, leaves))
    seen = {name for _, name in found}
    lost = [name for name in record["groups"] if name not in seen and _has_scores(record, name)]
    return found + [(0, name) for name in lost]  # groups that are in each other only


def _has_scores(record: AnyRecord, name: str) -> bool:
    return name in record["tasks"] or bool(record["groups"][name]["metrics"])


def _is_unlike(record: AnyRecord, group: str, leaf: str) -> bool:
    """Whether a group's scores say nothing of a leaf task in it, which has other metrics."""
    metrics = record["tasks"][leaf]["metrics"]
    return not metrics.keys() & record["groups"][group]["metrics"].keys()


def _tree(record: AnyRecord, tops: list[str], leaves: bool) -> Iterator[tuple[int, str]]:
    """Yield the rows below some tasks and groups; a group is walked once."""
    pending, seen = [(0, name) for name in reversed(tops)], set()
    while pending:
        depth, name = pending.pop()
        has_scores = _has_scores(record, name)
        if has_scores:
            yield depth, name
        if name in record["tasks"] or name in seen:
            continue
        seen.add(name)
        for child in reversed(record["groups"][name]["subtasks"]):
            is_leaf = child in record["tasks"]
            if child in seen or not (is_leaf or child in record["groups"]):
                continue
            if not is_leaf or leaves or not has_scores or _is_unlike(record, name, child):
                pending.append((depth + has_scores, child))


def below(record: AnyRecord, name: str) -> list[str]:
    """The leaf tasks of a task or group, each once; a group inside itself is passed over."""
    return groups(record).below(name)


def groups(record: AnyRecord | PlainScores) -> Groups:
    """A record's groups, with the names of its leaf tasks."""
    children = {name: group["subtasks"] for name, group in record["groups"].items()}
    return Groups(children, record["tasks"].keys())


def shots(record: AnyRecord, name: str) -> str:
    """A task's shots, or a group's where all its leaf tasks agree."""
    found = {str(record["tasks"][leaf]["num_fewshot"]) for leaf in below(record, name)}
    return found.pop() if len(found) == 1 else "mixed"
