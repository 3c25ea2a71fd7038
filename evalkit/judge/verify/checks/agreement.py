"""Finds contradictions within a record, its plan and its samples, for which no model is needed.

Each field is compared with every other one that it follows from: docs/record.md has the whole list,
and says what is the author's word alone. What an honest run can't write down fails here, however
well its digests fit.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from evalkit.base import canon
from evalkit.harness.samples import REQUESTED_AS, RunResults
from evalkit.judge.verify.checks import completeness
from evalkit.plan.requests.request import recorded_terms, settings_from
from evalkit.record import sections, segments
from evalkit.record.reading import score_table
from evalkit.record.reading.evidence.journal import Journal
from evalkit.record.reading.evidence.plan import Plan
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, shown
from evalkit.record.reading.folder import BROKEN, reason
from evalkit.record.sections import GroupResult, Phase, Segment, TaskResult
from evalkit.record.types import Record

PROFILES = ("native", "precise")
DTYPES = ("float32", "bfloat16", "float16")
OF_TASKS = (sections.MEAN, sections.BOOTSTRAP)  # how standard errors are made
OF_GROUPS = (sections.POOLED, sections.UNWEIGHTED)
_SLACK_S = 60.0  # by which two clocks, or two readings of one, may be apart


def check(
    record: Record, results: RunResults | None, plan: Plan | None, journal: Journal | None,
    samples: Samples,
) -> Check:  # fmt: skip
    """Return the one check of all contradictions."""
    findings = Findings("agreement")
    for problem in _record(record):
        findings.add(problem)
    for problem in _segments(record, journal, plan):
        findings.add(problem)
    if plan is not None:
        for problem in _asked(record, results, plan, samples):
            findings.add(problem)
    return findings.check("settings, software, segments and rates agree with each other")


def _record(record: Record) -> Iterator[str]:
    numerics, engine, suite = record["numerics"], record["engine"], record["suite"]
    environment = record["environment"]
    for key, known in (("profile", PROFILES), ("dtype", DTYPES)):
        value = numerics.get(key)
        if isinstance(value, str) and value not in known:
            yield f"there is no {key} {shown(value)}"
    if numerics["profile"] == "precise" and numerics["tf32"] is True:
        yield "products are precise, and rounded to TF32"
    installed = {_plain(name): version for name, version in environment["packages"].items()}
    for name, version in environment["versions"].items():
        if name != "evalkit" and version != installed.get(name, "not installed"):
            yield f"{name} {shown(version)} in versions, {shown(installed.get(name))} in packages"
    if engine["versions"].get("lm_eval", installed.get("lm_eval")) != installed.get("lm_eval"):
        yield "the engine ran on another lm_eval than the packages have"
    if suite["apply_chat_template"] and record["model"]["chat_template"] is None:
        yield "a chat template was applied, and the model has none"
    config = record["command"]["config"]
    used = {"limit": suite["limit"], "engine": engine["name"]}
    if config.get("limit") is None and completeness.shipped_suite(suite["name"]) is None:
        del used["limit"]  # a suite of one's own may state it in its file
    for key, wanted in used.items():
        if config.get(key, wanted) != wanted:
            yield f"command.config's {key} is {shown(config.get(key))}, it was {shown(wanted)}"
    yield from _errors(record)
    yield from _rates(record["phases"])


def _plain(package: str) -> str:
    """Return a package's name as versions have it: installers write lm-eval, lm_eval or LM_eval."""
    return re.sub("[-_.]+", "_", package).lower()


def _errors(record: Record) -> Iterator[str]:
    """Yield standard errors without their method, methods without an error, and unknown methods."""
    parts: list[tuple[Mapping[str, TaskResult | GroupResult], tuple[str, ...]]] = [
        (record["tasks"], OF_TASKS), (record["groups"], OF_GROUPS),
    ]  # fmt: skip
    for section, known in parts:
        for name, entry in section.items():
            for key, metric in entry["metrics"].items():
                method = metric["stderr_method"]
                if (metric["stderr"] is None) != (method is None):
                    yield f"{shown(name)} {shown(key)}: an error without its method, or back"
                elif method not in (None, *known):
                    yield f"{shown(name)} {shown(key)}: no error is made by {shown(method)}"
    yield from _directions(record)


def _directions(record: Record) -> Iterator[str]:
    """Yield groups whose metrics are better in a direction that their leaf tasks' are not. lm-eval
    takes it from the members that state one, and None where these differ. A subgroup that it comes
    to later, as in mmlu, has not stated one yet."""
    groups = score_table.groups(record)
    for name, group in record["groups"].items():
        has_subgroups = not record["groups"].keys().isdisjoint(group["subtasks"])
        for key, metric in group["metrics"].items():
            ways = {
                entry["higher_is_better"]
                for leaf in groups.below(name)
                for other, entry in record["tasks"][leaf]["metrics"].items()
                if other.partition(",")[0] == key.partition(",")[0]
            }
            stated, told = metric["higher_is_better"], ways - {None}
            is_open = has_subgroups or len(ways) != 1 or not told
            is_told = stated in told and (has_subgroups or len(told) == 1)
            if not (is_told or (stated is None and is_open)):
                yield f"{shown(name)} {shown(key)}: its leaf tasks have another way up"


def _rates(phases: Mapping[str, Phase]) -> Iterator[str]:
    for name, phase in phases.items():
        tokens, rate = phase["tokens"], phase["tokens_per_second"]
        if (tokens is None) != (rate is None):
            yield f"phase {name}: tokens without their rate, or back"
        elif tokens is not None and rate is not None:
            wanted = tokens / max(phase["seconds"], 1e-9)
            if abs(rate - wanted) > 1e-6 * max(wanted, 1.0):
                yield f"phase {name}: {rate:g} tokens a second, {wanted:g} by tokens and seconds"


def _segments(record: Record, journal: Journal | None, plan: Plan | None) -> Iterator[str]:
    """Yield the contradictions of segments: each is one process's stretch of the run."""
    names = [segment["segment"] for segment in record["segments"]]
    if len(set(names)) != len(names):
        yield "a segment stands twice"
    if record["preferred"] and record["preferred"]["segment"] not in names:
        yield f"the preferred segment {shown(record['preferred']['segment'])} is none of the run's"
    own = record["engine"]["name"] == "evalkit"
    for segment in record["segments"]:
        name = shown(segment["segment"])
        if journal is not None and segment["batches"] != journal.by_segment[segment["segment"]]:
            found = journal.by_segment[segment["segment"]]
            yield f"{name} claims {segment['batches']:,} batches, its journal holds {found:,}"
        if not own and segment.get("level") is not None:
            yield f"{name} checked the level of an engine that has none"
        if match := segments.NAME.fullmatch(segment["segment"]):
            yield from _named(segment, match, _time(segment["started"]))
        _time(segment["stopped"])  # any day will do: a clock may be set back while a segment runs
    if (carried := record["carried"]) and carried["run"] == record["ids"]["run"]:
        yield "its answers are carried over from itself"
    if plan is not None:
        if carried and carried["batches"] != len(plan.batches):
            yield f"{carried['batches']:,} batches are carried over, of {len(plan.batches):,}"
        total = sum(segment["batches"] for segment in record["segments"])
        if total > len(plan.batches):
            yield f"segments answered {total:,} batches, there are {len(plan.batches):,}"


def _named(segment: Segment, match: re.Match[str], started: datetime | None) -> Iterator[str]:
    """Yield where a segment's name has another start or host than the segment."""
    if (named := segments.time_in_name(match[1])) is None:
        yield f"{shown(segment['segment'])} is named after no time"
        return
    if started and abs((started - named).total_seconds()) > _SLACK_S:
        yield f"{shown(segment['segment'])} is named after another time than it started"
    host = segment["host"]
    if isinstance(host, str) and match[2] != segments.host_in_name(host):
        yield f"{shown(segment['segment'])} is named after another host, {shown(host)}"


def _time(text: object) -> datetime | None:
    """Return a time, or None where it is unknown; ValueError for a day that no calendar has."""
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _asked(
    record: Record, results: RunResults | None, plan: Plan, samples: Samples
) -> Iterator[str]:
    """Yield where the plan executes something else than the samples say was asked."""
    kinds: dict[str, set[str]] = {}
    for batch in plan.batches.values():
        kinds.setdefault(batch.task, set()).add(batch.kind)
    extra = plan.body["truncated"].keys() - record["tasks"].keys()
    if extra:
        yield f"prompts of {shown(min(extra))} were cut, and it was not asked"
    for leaf, count in plan.body["truncated"].items():
        if count > len(plan.requests.get(leaf, {})):
            yield f"{shown(leaf)}: more prompts were cut than there are"
    planned = plan.body["max_length"]
    length = results.get("max_length", planned) if results else planned
    if record["engine"]["name"] == "evalkit" and length != planned:
        yield f"the plan's context is {planned}, results.json says {shown(length)}"
    configs = results["configs"] if results else {}
    for leaf in sorted(record["tasks"].keys() & samples.leaves.keys() & kinds.keys()):
        kind = record["tasks"][leaf]["output_type"]
        if kinds[leaf] != {REQUESTED_AS.get(kind, kind)}:
            yield f"{shown(leaf)}: {kind} by {', '.join(sorted(kinds[leaf]))} batches"
        try:
            problem = _generated(record, configs.get(leaf, {}), plan, leaf, samples)
        except BROKEN as error:
            problem = reason(error)
        if problem:
            yield f"{shown(leaf)}: {problem}"


def _generated(
    record: Record, config: Mapping[str, Any], plan: Plan, leaf: str, samples: Samples
) -> str:
    used = sorted(samples.leaves[leaf].generated)
    if not used:
        return ""
    if len(used) > 1:
        return "its samples were generated with different settings"
    if canon.dumps(config.get("generation_kwargs")) != used[0]:
        return "its samples were generated with other settings than its config has"
    kwargs = canon.loads(used[0])
    terms = recorded_terms(record, plan.body["settings"])
    wanted = settings_from(kwargs, task=leaf, terms=terms).to_json()
    planned = [canon.dumps(settings) for settings in plan.settings_of(leaf)]
    if planned != [canon.dumps(wanted)]:
        return "the plan generates with other settings than its samples ask for"
    return ""
