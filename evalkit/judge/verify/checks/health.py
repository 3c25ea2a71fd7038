"""Checks what a reader of a consistent record must know all the same: NaN answers, cut prompts, an
altered lm-eval, unlike machines, a part of the suite only.
"""

from datetime import UTC, datetime, timedelta

from evalkit.base import canon
from evalkit.record.reading.evidence.journal import Journal
from evalkit.record.reading.evidence.plan import Plan
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.sections import Health
from evalkit.record.types import Record

_WARNED = {
    "truncated_prompts": "prompts cut on the left",
    "missing_bos": "prompts without BOS",
    "double_bos": "prompts with two BOS",
    "appended_eos": "texts that the tokenizer ends with EOS",
    "dropped_system_turns": "system turns left out, which the chat template refuses",
    "fewshot_leaks": "documents that are a worked example in their own prompt",
    "empty_texts": "documents without a text to score",
    "empty_generations": "empty generations",
    "endless_thoughts": "generations that never stopped thinking",
    "cut_generations": "generations cut at the length limit",
    "answers_not_found": "generations in which no answer was found",
    "split_batches": "batches split because memory ran out (bits are promised for equal splits)",
}
_AHEAD = timedelta(days=1)  # by which one clock may well be ahead of another


def health(
    record: Record, plan: Plan | None, journal: Journal | None, samples: Samples | None = None
) -> list[Check]:
    """Check the record's health counts. NaN answers, an lm-eval that isn't the released one, and
    counts that the folder contradicts fail; other counts above zero warn."""
    findings = Findings("health")
    counts = record["health"]
    nan = len(journal.nan) if journal else 0
    if counts["nan_answers"] or nan:
        findings.add(f"{max(counts['nan_answers'], nan):,} samples with a NaN answer")
    intact = record["environment"]["harness_intact"]
    if intact is False:
        findings.add("lm-eval's installed files were not the released ones")
    _recount(counts, plan, journal, findings)
    if samples is not None and samples.readable and not findings.count:
        kinds = {leaf: task["output_type"] for leaf, task in record["tasks"].items()}
        ties = sum(n for leaf, n in samples.ties.items() if kinds.get(leaf) == "multiple_choice")
        findings.add_unequal("answers_not_found", counts["answers_not_found"], samples.not_found)
        findings.add_unequal("exact_ties", counts["exact_ties"], ties)
    above_zero = [(counts.get(key), text) for key, text in _WARNED.items() if counts.get(key)]
    warnings = [_warning(count, text) for count, text in above_zero]
    if isinstance(intact, dict):
        warnings.append(f"whether lm-eval was intact is unknown ({shown(intact['unknown'])})")
    ties_note = f"; {counts['exact_ties']:,} exact ties" if counts["exact_ties"] else ""
    if findings.count or not warnings:
        return [findings.check(f"no NaN, cut or empty answers{ties_note}")]
    return [Check("health", Status.WARN, "; ".join(warnings) + ties_note)]


def texts(record: Record, journal: Journal | None, samples: Samples) -> list[Check]:
    """Count each leaf task's texts again and compare with the record: how many were cut, their
    tokens, and the scores of those that ended."""
    tasks = record["tasks"]
    recorded_texts = {leaf: task["texts"] for leaf, task in tasks.items() if "texts" in task}
    if journal is None or not recorded_texts:
        return []
    findings = Findings("texts")
    for leaf, recorded in sorted(recorded_texts.items()):
        values, metrics = samples.leaves[leaf].by_metric, tasks[leaf]["metrics"]
        counted = canon.finite(journal.texts[leaf].to_json(values, metrics))
        for key in sorted(counted.keys() | recorded.keys()):
            findings.add_unequal(f"{shown(leaf)}: {key}", recorded.get(key), counted.get(key))
    return [findings.check(f"{len(recorded_texts):,} tasks' texts counted again, equal")]


def _warning(count: object, text: str) -> str:
    if isinstance(count, dict):
        return f"{text}: unknown ({shown(count['unknown'])})"
    return f"{count:,} {text}"


def _recount(
    counts: Health, plan: Plan | None, journal: Journal | None, findings: Findings
) -> None:
    if plan is not None:
        truncated = sum(plan.body["truncated"].values())
        findings.add_unequal("truncated_prompts", counts["truncated_prompts"], truncated)
        for key in ("missing_bos", "double_bos", "appended_eos", "dropped_system_turns"):
            findings.add_unequal(key, counts.get(key), plan.body.get(key, counts.get(key)))
        leaking = sum(plan.body["leaking"].values())
        findings.add_unequal("fewshot_leaks", counts["fewshot_leaks"], leaking)
        empty = sum(map(len, plan.body["empty_texts"].values()))
        findings.add_unequal("empty_texts", counts["empty_texts"], empty)
    if journal is not None:
        cut = counts["cut_generations"]
        if not (isinstance(cut, dict) and journal.untold):
            findings.add_unequal("cut_generations", cut, journal.cut)
        findings.add_unequal("endless_thoughts", counts.get("endless_thoughts", 0), journal.endless)
        findings.add_unequal("split_batches", counts["split_batches"], journal.splits)
        if not journal.empty <= counts["empty_generations"] <= journal.blank:
            findings.add_unequal("empty_generations", counts["empty_generations"], journal.empty)


def engine(record: Record) -> Check:
    """Check what computed the answers. evalkit's own engine promises equal bits; an engine of
    lm-eval's does not, which is a warning."""
    findings = Findings("engine")
    engine, numerics = record["engine"], record["numerics"]
    own = engine["name"] == "evalkit"
    if engine["bit_repeatable"] != own:
        findings.add(f"{shown(engine['name'])} claims bit_repeatable {engine['bit_repeatable']}")
    if own and (engine["args"] or engine["versions"]):
        findings.add("evalkit's own engine has no arguments and no versions of its own")
    if own and any(isinstance(value, dict) for value in numerics.values()):
        findings.add("evalkit's own engine has numerics that it says it does not know")
    if not own and engine["level"] != "none":
        findings.add(f"{shown(engine['name'])} has level {engine['level']}, not none")
    known = [value for value in (numerics["profile"], numerics["dtype"]) if isinstance(value, str)]
    parts = [engine["name"], f"level {engine['level']}", " ".join(known)]
    how = ", ".join(filter(None, parts))
    if findings.count or own:
        return findings.check(shown(how))
    return Check("engine", Status.WARN, f"{shown(how)}: not bit-repeatable")


def segments(record: Record) -> Check:
    """Check that every segment ran on like hardware and that no segment's answers had to be
    preferred to another's: only then are equal bits promised."""
    kinds: dict[str, list[str]] = {}
    for segment in record["segments"]:
        kinds.setdefault(canon.dumps(segment["hardware"]), []).append(segment["segment"])
    machines = [segment["hardware"] for segment in record["segments"]]
    if any(isinstance(machine, dict) and "unknown" in machine for machine in machines):
        return Check("segments", Status.WARN, "what they ran on is not known")
    if carried := record.get("carried"):
        detail = (
            f"{carried['batches']:,} batches were answered by run {carried['run'][7:19]}, before"
        )
        return Check("segments", Status.WARN, f"{detail} the suite's tasks were mended")
    if preferred := record["preferred"]:
        detail = f"{preferred['batches']:,} batches were answered unequally, and the answers of"
        return Check("segments", Status.WARN, f"{detail} {shown(preferred['segment'])} count")
    if len(kinds) == 1:
        count = len(record["segments"])
        number = f"{count:,} segments" if count != 1 else "1 segment"
        return Check("segments", Status.PASS, f"{number} on like hardware")
    detail = f"{len(kinds):,} kinds of hardware in one run: {few(set(kinds))}"
    return Check("segments", Status.WARN, detail)


def dated(record: Record) -> list[Check]:
    """Check that the record was not written in the future, by this host's clock. A warning: some
    clock was wrong, and no clock is proof of anything."""
    written = datetime.fromisoformat(record["created"])
    if written <= datetime.now(UTC) + _AHEAD:
        return []
    detail = f"written at {shown(record['created'])}, which is still to come by this host's clock"
    return [Check("created", Status.WARN, detail)]


def partial(record: Record) -> Check:
    """Check that the whole suite was asked, or that the record says that it was not."""
    suite = record["suite"]
    limit = suite["limit"]
    fewer = {n for n, entry in record["tasks"].items() if entry["n_expected"] < entry["documents"]}
    if fewer and not suite["partial"]:
        detail = f"{len(fewer):,} leaf tasks are partial, the record says whole: {few(fewer)}"
        return Check("whole", Status.FAIL, detail)
    if suite["partial"] and limit is None:
        return Check("whole", Status.FAIL, "the record says partial but names no limit")
    if suite["partial"] or limit is not None:
        detail = f"partial: {limit} documents a leaf task"
        return Check("whole", Status.WARN, detail, caveat=detail)
    return Check("whole", Status.PASS, "every document of every leaf task")
