"""Checks that each document was asked, and its answers scored, as the suite's lock says.

A consistent record may still have asked something else, or scored otherwise. The lock pins each
document's prompt and target, each leaf task's config and each group's scoring by digests, so
neither lm-eval nor data is needed. What follows from other settings than the lock's is not
compared, and the last line says so: who claims another setting may have changed that too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from evalkit.base import canon
from evalkit.harness.samples import RunResults
from evalkit.inputs import rows
from evalkit.inputs.chat import templates
from evalkit.inputs.locked import group_metric, holds_prompts, other_settings
from evalkit.inputs.rows import Rows
from evalkit.inputs.suite import SEEDS
from evalkit.inputs.types import GroupScore, LockBody, LockedTask, MetricEntry, SuiteFileTask
from evalkit.inputs.untrusted import Groups
from evalkit.judge.verify.checks import aggregates, completeness
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, Status, difference, few, shown
from evalkit.record.sections import GroupResult, TaskResult
from evalkit.record.types import Record


def prompts(
    record: Record, lock: LockBody | None, pinned: dict[str, Rows], samples: Samples
) -> list[Check]:
    """Compare all prompts and targets with the lock's single rows, `pinned` by leaf task."""
    if lock is None or not pinned:
        return []
    findings, unlike = Findings("asked"), other_settings(lock["asked"], record["suite"])
    templated = bool(record["suite"]["apply_chat_template"])
    count, left = 0, set()
    for leaf in sorted(pinned.keys() & samples.leaves.keys() & record["tasks"].keys()):
        seen, locked = samples.leaves[leaf], pinned[leaf]
        problem = ""
        held = locked.prompts and holds_prompts(unlike, lock["tasks"][leaf]["num_fewshot"])
        if held and not templated:
            first = locked.prompts[: len(seen.asked)]
            problem = rows.difference(bytes(seen.asked), first, "the prompt of document")
            count += seen.n
        else:
            left.add(leaf)
        if "apply_chat_template" not in unlike and not problem:
            first = locked.targets[: len(seen.targets)]
            problem = rows.difference(bytes(seen.targets), first, "the target of document")
        findings.add(problem and f"{shown(leaf)}: {problem}")
    passed = f"{count:,} documents' prompts, targets and choices are the locked ones"
    if findings.count or not left:
        return [findings.check(passed)]
    why = "the model's chat template rendered them" if templated else "shots that no lock pins"
    why = f"other {', '.join(unlike)}" if unlike else why
    what = "prompts and targets" if "apply_chat_template" in unlike else "prompts"
    caveat = f"{len(left):,} leaf tasks' {what} are not held against the lock"
    return [Check(findings.name, Status.WARN, f"{caveat} ({why}): {few(left)}", caveat)]


def scoring(
    record: Record, lock: LockBody | None, results: RunResults | None, samples: Samples,
    shipped: bool, more: Iterable[str] = (),
) -> Check:  # fmt: skip
    """Compare how leaf tasks and groups are scored with the lock; `more` are further problems. A
    lock can't name what a task's own code gives besides the metrics that its YAML lists; in shipped
    suites no task gives any."""
    findings = Findings("scoring")
    if lock is None:
        return Check(findings.name, Status.SKIP, "there is no lock to hold it against")
    unlike = other_settings(lock["asked"], record["suite"])
    for leaf in sorted(record["tasks"].keys() & lock["tasks"].keys()):
        config = results["configs"].get(leaf) if results else None
        problems = _leaf(record["tasks"][leaf], lock["tasks"][leaf], config, unlike)
        names = {key.partition(",")[0] for key in record["tasks"][leaf]["metrics"]}
        other = {n for n in names if not _is_locked(n, lock["tasks"][leaf]["metrics"])}
        if other and (shipped or not _has_code(config)):
            problems.append(f"it has no metric {few(other)}")
        for problem in problems:
            findings.add(f"{shown(leaf)}: {problem}")
        filters = set(samples.leaves[leaf].filters) if leaf in samples.leaves else None
        if filters is not None:
            wanted = set(lock["tasks"][leaf]["filters"])
            findings.add(difference(filters, wanted, f"filters of {shown(leaf)}"))
    groups = Groups(lock["groups"], lock["tasks"])
    for name in sorted(record["groups"].keys() & lock["group_scores"].keys()):
        tasks = [record["tasks"][leaf] for leaf in groups.below(name) if leaf in record["tasks"]]
        found = {key for task in tasks for key in task["metrics"]}
        for problem in _group(record["groups"][name], lock["group_scores"][name], found):
            findings.add(f"{shown(name)}: {problem}")
    for problem in more:
        findings.add(problem)
    left = {name for name in record["tasks"] if _is_free(lock["tasks"].get(name), unlike)}
    if findings.count or not left:
        return findings.check(f"{len(lock['tasks']):,} leaf tasks are scored as the lock says")
    caveat = f"how {len(left):,} leaf tasks' texts are scored is not held against the lock"
    detail = f"{caveat} (other gen_kwargs): {few(left)}"
    return Check(findings.name, Status.WARN, detail, caveat)


def _is_free(locked: LockedTask | None, unlike: list[str]) -> bool:
    """Say whether a leaf task's config can't be the locked one, as its texts were generated with
    other settings, which are a part of it."""
    generated = locked is not None and locked["output_type"] == "generate_until"
    return generated and "gen_kwargs" in unlike


def _leaf(entry: TaskResult, locked: LockedTask, config: Any, unlike: list[str]) -> list[str]:
    problems = _unlike(entry, locked, ("output_type", "num_fewshot", "version"))
    names = {key.partition(",")[0] for key in entry["metrics"]}
    if locked["output_type"] == "multiple_choice" and (gone := locked["metrics"].keys() - names):
        problems.append(f"its metric {few(gone)} is missing")
    for key, metric in sorted(entry["metrics"].items()):
        name, _, by = key.partition(",")
        known = locked["metrics"].get(name)
        way = known["higher_is_better"] if known else metric["higher_is_better"]
        if metric["higher_is_better"] is not way:
            text = f"{shown(metric['higher_is_better'])}, locked {shown(way)}"
            problems.append(f"{shown(key)}: higher_is_better {text}")
        if by not in locked["filters"]:
            problems.append(f"it has no filter {shown(by)}")
    if isinstance(config, dict):
        problems += _settings(entry, locked, config, unlike)
    return problems


def _has_code(config: Any) -> bool:
    """Say whether a task is scored by code of its own, which may give any metric."""
    if not isinstance(config, dict):
        return False
    return config.get("process_results") is not None or bool(aggregates.own_metrics(config))


def _is_locked(name: str, metrics: Mapping[str, MetricEntry]) -> bool:
    """Say whether a metric is a locked one, or follows from one: `pass_at_k` gives pass@1, ..."""
    return name in metrics or (name.startswith("pass@") and "pass_at_k" in metrics)


def _settings(
    entry: TaskResult, locked: LockedTask, config: Mapping[str, Any], unlike: list[str]
) -> list[str]:
    problems = []
    if entry["alias"] != (config.get("task_alias") or config.get("task")):
        problems.append(f"alias {shown(entry['alias'])}, its config has another")
    if _is_free(locked, unlike):
        return problems + _aggregations(config, locked)
    if rows.of_settings(config) != locked["settings"]:
        how = "; ".join(_aggregations(config, locked)) or "templates, filters or generation differ"
        problems.append(f"its config is not the locked one ({how})")
    return problems


def _aggregations(config: Mapping[str, Any], locked: LockedTask) -> list[str]:
    named = {
        str(entry["metric"]): entry.get("aggregation") for entry in config.get("metric_list") or []
    }
    return [
        f"{shown(name)} aggregated by {shown(named[name])}, locked {shown(metric['aggregation'])}"
        for name, metric in sorted(locked["metrics"].items())
        if isinstance(named.get(name), str) and named[name] != metric["aggregation"]
    ]


def _group(entry: GroupResult, locked: GroupScore, scored: set[str]) -> list[str]:
    """Return what in a group's scoring is not as locked. `scored` are its leaf tasks' metrics with
    their filters: lm-eval leaves out a group's metric that none of them has."""
    problems = _unlike(entry, locked, ("alias", "version"))
    wanted = {key for key in scored if group_metric(locked["metrics"], key)}
    if entry["metrics"].keys() != wanted:
        problems.append(difference(set(entry["metrics"]), wanted, "metrics"))
    return problems


def _unlike(
    entry: Mapping[str, object], locked: Mapping[str, object], keys: tuple[str, ...]
) -> list[str]:
    """Return which fields are not equal; 1.0 is another version than 1."""
    return [
        f"{key} {shown(entry[key])}, locked {shown(locked[key])}"
        for key in keys
        if canon.dumps(entry[key]) != canon.dumps(locked[key])
    ]


def settings(record: Record) -> list[Check]:
    """Warn where a record named like a shipped suite asked with other settings."""
    suite = completeness.shipped_suite(record["suite"]["name"])
    if suite is None:
        return []
    applies, chat = templates.parse(suite, completeness.SUITES[0] / f"{suite['name']}.yaml")
    members: list[SuiteFileTask] = [
        {"task": item} if isinstance(item, str) else item for item in suite["tasks"]
    ]
    wanted = {
        "tasks": [{"task": m["task"], "num_fewshot": m.get("num_fewshot")} for m in members],
        "apply_chat_template": applies,
        "fewshot_as_multiturn": suite.get("fewshot_as_multiturn", False),
        "system_instruction": suite.get("system_instruction"),
        "gen_kwargs": suite.get("gen_kwargs", {}),
        "seeds": SEEDS | suite.get("seeds", {}),
        **dict.fromkeys(templates.IDENTITY),
        **chat.identity(),
    }
    unlike = [key for key, value in wanted.items() if record["suite"].get(key) != value]
    if not unlike:
        return []
    detail = f"not asked as the shipped {suite['name']} asks: {', '.join(unlike)} differ"
    return [Check("settings", Status.WARN, detail, caveat=detail)]
