"""Computes every aggregate and standard error again from the samples' values.

The recorded config names each metric's aggregation. One that is not in the table below (F1, BLEU,
bootstrapped errors) only lm-eval computes: it is counted as not checked.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evalkit.base import canon, statistics
from evalkit.inputs.locked import group_metric
from evalkit.inputs.types import GroupScore
from evalkit.judge.verify.checks import single
from evalkit.record.reading import score_table
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, Status, difference, few, shown
from evalkit.record.reading.folder import BROKEN, reason
from evalkit.record.sections import Metric
from evalkit.record.types import PlainScores, Record

_DEFAULTS = {
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
    "f1": "f1",
    "mcc": "matthews_corrcoef",
    "bleu": "bleu",
    "chrf": "chrf",
    "chrf++": "chrf++",
    "ter": "ter",
    "brier_score": "brier_score",
}  # lm-eval's for a metric whose config names no aggregation; any other is a mean


def _flat(lists: Sequence[Sequence[float]]) -> float:
    values = [value for each in lists for value in each]
    if not values:
        raise ValueError("no sample has a value")
    return statistics.mean(values)


# ifeval's, by its code, which is what lm-eval's config says of it: the mean over all instructions.
_FLAT = """def agg_inst_level_acc(items):
    flat_items = [item for sublist in items for item in sublist]
    inst_level_acc = sum(flat_items) / len(flat_items)
    return inst_level_acc
"""
_AGGREGATIONS: dict[str, Callable[[Sequence[Any]], float]] = {
    "mean": statistics.mean,
    "median": statistics.median,
    "perplexity": statistics.perplexity,
    "weighted_perplexity": statistics.weighted_perplexity,
    "bits_per_byte": statistics.bits_per_byte,
    _FLAT: _flat,
}
_NAME = re.compile(r"[^\s<>()]+")  # a metric's, not its code
KNOWN = set(_AGGREGATIONS)  # computed again here
_NO_ERROR = {
    "weighted_perplexity",
    "bits_per_byte",
    "brier_score",
    _FLAT,
}  # lm-eval has none for them
_LISTED = set(_DEFAULTS.values())  # lm-eval's, as far as they are told apart here
_UNIT = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match"}
_PERPLEXITY = {"perplexity", "word_perplexity", "byte_perplexity"}


def _close(recorded: Any, computed: float | None) -> bool:
    """Say whether two numbers are equal to 1e-12, relative; None is lm-eval's "N/A"."""
    if recorded is None or computed is None:
        return recorded is computed
    value = canon.number(recorded)
    both_nan = math.isnan(value) and math.isnan(computed)
    return both_nan or math.isclose(value, computed, rel_tol=1e-12, abs_tol=1e-15)


def own_metrics(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of a task's metric_list that are functions of its own. lm-eval writes
    their code; they are called as the function is, or as what it returns is."""
    entries = config.get("metric_list") or []
    return [entry for entry in entries if not _NAME.fullmatch(str(entry.get("metric")))]


def aggregation(config: Mapping[str, Any], metric: str) -> str:
    """Return the name of what makes a metric's score of its values, by a leaf task's config."""
    entries = config.get("metric_list")
    if entries is None:
        return _DEFAULTS.get(metric, "mean")
    for entry in entries:
        if entry.get("metric") == metric:
            return str(entry.get("aggregation") or _DEFAULTS.get(metric, "mean"))
    if config.get("process_results") is None and (own := own_metrics(config)):
        named = {str(entry.get("aggregation")) for entry in own}
        return named.pop() if len(named) == 1 else "one of its own metrics'"
    return "mean"  # lm-eval's for a metric that a task's own code adds


class Aggregates:
    """Computes a record's leaf tasks and groups again from the samples. `configs` are the leaf
    tasks' own; `scored` says how each group aggregates its metrics, as far as a lock says it."""

    def __init__(
        self, record: Record | PlainScores, configs: Mapping[str, Any], samples: Samples,
        scored: Mapping[str, GroupScore] | None = None,
    ) -> None:  # fmt: skip
        self.record, self.configs, self.samples = record, configs, samples
        self.scored = scored or {}
        self.findings = Findings("aggregates")
        self.skipped: set[str] = set()  # values that only lm-eval aggregates
        self.plain: set[str] = set()  # groups whose score is the plain mean of their members'
        self.count = 0
        self.groups = score_table.groups(record)

    def check(self) -> list[Check]:
        """Return one check of all values, and one (SKIP) of those that only lm-eval aggregates."""
        for leaf in sorted(self.record["tasks"].keys() & self.samples.leaves.keys()):
            try:
                self._leaf(leaf)
            except BROKEN as error:
                self.findings.add(f"{shown(leaf)}: {reason(error)}")
        self.findings.add(shown(self.groups.problem()))
        for name in sorted(self.record["groups"]):
            try:
                self._group(name)
            except BROKEN as error:
                self.findings.add(f"{shown(name)}: {reason(error)}")
        passed = f"{self.count:,} values and standard errors recomputed from the samples, equal"
        if self.plain:
            passed += f"; plain means, not weighted by size: {few(self.plain)}"
        checks = [self.findings.check(passed)]
        if self.skipped:
            number = f"{len(self.skipped):,}"
            text = f"{number} not recomputed, as only lm-eval does: {few(self.skipped)}"
            caveat = f"{number} values are not computed again here"
            checks.append(Check("aggregates", Status.SKIP, text, caveat))
        return checks

    def _leaf(self, leaf: str) -> None:
        entry, seen = self.record["tasks"][leaf], self.samples.leaves[leaf]
        config = self.configs[leaf]
        values = seen.by_metric
        missing = difference(set(entry["metrics"]), set(values), f"metrics of {shown(leaf)}")
        self.findings.add(missing)
        for key in sorted(values.keys() & entry["metrics"].keys()):
            metric = key.partition(",")[0]
            if metric == "bypass":
                self.skipped |= {f"{shown(leaf)} (--predict_only: nothing is scored)"}
                continue
            how = aggregation(config, metric)
            self._value(f"{shown(leaf)} {shown(key)}", entry["metrics"][key], how, values[key])

    def _value(self, name: str, recorded: Metric, how: str, values: list[Any]) -> None:
        if how not in _AGGREGATIONS:
            self.skipped |= {f"{name} ({shown(how)[:40]})"}
            return
        value = _AGGREGATIONS[how](list(map(_number, values)))
        if how == "mean":
            numbers = [float(_number(value)) for value in values]
            error = statistics.standard_error(numbers) if len(numbers) > 1 else None
            in_single = single.mean(numbers)
            if in_single is not None and _close(recorded["value"], in_single):
                value, error = in_single, single.error(numbers)
            self._compare(name, recorded["value"], value)
            self._compare(f"{name} stderr", recorded["stderr"], error)
            return
        self._compare(name, recorded["value"], value)
        if how in _NO_ERROR or len(values) == 1:
            self._compare(f"{name} stderr", recorded["stderr"], None)
        elif recorded["stderr"] is not None:
            self.skipped |= {f"{name} stderr (bootstrapped)"}

    def _compare(self, name: str, recorded: Any, computed: float | None) -> None:
        self.count += 1
        if not _close(recorded, computed):
            self.findings.add(f"{name} is {recorded}, the samples give {computed}")

    def _group(self, name: str) -> None:
        group, leaves = self.record["groups"][name], self.groups.below(name, every_way=True)
        total = sum(self.record["tasks"][leaf]["n"] for leaf in leaves)
        if group["metrics"] or group["n"]:  # lm-eval counts only for groups that aggregate
            self.findings.add_unequal(f"{shown(name)}: n", group["n"], total)
        for key, recorded in sorted(group["metrics"].items()):
            members = [leaf for leaf in leaves if key in self.record["tasks"][leaf]["metrics"]]
            if not members:
                self.findings.add(f"{shown(name)} {shown(key)} is no metric of its tasks")
                continue
            how = group_metric(self.scored[name]["metrics"], key) if name in self.scored else None
            by_size = how["weight_by_size"] if how else None
            self._group_metric(f"{shown(name)} {shown(key)}", key, recorded, members, by_size)

    def _group_metric(
        self, name: str, key: str, recorded: Metric, members: list[str], by_size: bool | None
    ) -> None:
        """Compare a group's metric with the weighted mean of its members', or with the plain mean
        where lm-eval does not weight by size. `by_size` is None where no lock says which."""
        entries = [self.record["tasks"][leaf]["metrics"][key] for leaf in members]
        sizes = [self.record["tasks"][leaf]["n"] for leaf in members]
        values = [canon.number(entry["value"]) for entry in entries]
        errors = [canon.number(e["stderr"]) for e in entries if e["stderr"] is not None]
        pooled = plain = None
        if len(errors) == len(values):
            pooled = statistics.pooled_standard_error(errors, sizes)
            plain = statistics.unweighted_standard_error(errors)
        value = statistics.weighted_mean(values, sizes)
        if by_size is None:
            same = _close(recorded["value"], value) and _close(recorded["stderr"], pooled)
            unweighted = _close(recorded["value"], statistics.mean(values))
            by_size = same or not (unweighted and _close(recorded["stderr"], plain))
        if not by_size:
            value, pooled = statistics.mean(values), plain
            self.plain.add(name)
        in_single = single.mean(values, sizes if by_size else None)
        if in_single is not None and _close(recorded["value"], in_single):
            value = in_single
        self._compare(name, recorded["value"], value)
        self._compare(f"{name} stderr", recorded["stderr"], pooled)


def _number(value: Any) -> Any:
    """Return a sample's metric as a number, or as the numbers of a pair."""
    if isinstance(value, list):
        return tuple(map(_number, value))
    return float(value) if isinstance(value, bool) else canon.number(value)


def ranges(
    record: Record | PlainScores, samples: Samples, configs: Mapping[str, Any] | None = None
) -> Check:
    """Check for values that no run can have: an accuracy above 1, a perplexity below 1, a NaN. What
    a task's own code makes of its values has no range; `configs` are the leaf tasks' own."""
    findings = Findings("ranges")
    count = 0
    entries = {**record["tasks"], **record["groups"]}
    for name in sorted(entries):
        for key, recorded in sorted(entries[name]["metrics"].items()):
            count += 1
            value = canon.number(recorded["value"])
            error = canon.number(recorded["stderr"] or 0.0)
            where = f"{shown(name)} {shown(key)}"
            metric = key.partition(",")[0]
            if aggregation((configs or {}).get(name) or {}, metric) in KNOWN | _LISTED:
                findings.add(_range_problem(where, metric, value))
            if not 0.0 <= error < math.inf:
                findings.add(f"{where} has standard error {error}")
    for leaf in sorted(samples.leaves):
        for (metric, _), values in samples.leaves[leaf].values.items():
            wrong = [v for v in values if metric in _UNIT and not _is_unit(v)]
            if wrong:
                text = f"{shown(leaf)} has {len(wrong):,} samples whose {shown(metric)} is not"
                findings.add(f"{text} in [0, 1]: {shown(wrong[0])}")
    return findings.check(f"{count:,} values are in their ranges")


def _is_unit(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and 0 <= value <= 1


def _range_problem(where: str, metric: str, value: float) -> str:
    if math.isnan(value):
        return f"{where} is NaN"
    if metric in _UNIT and not 0.0 <= value <= 1.0:
        return f"{where} is {value}, not in [0, 1]"
    if metric in _PERPLEXITY and not 1.0 <= value < math.inf:
        return f"{where} is {value}, not a finite perplexity of at least 1"
    return ""
