"""`reproduce`: run a recorded suite again, and say how much of it came out.

The second execution has its own folder and never sees the original's journal. Differences between
the environments are printed before anything runs. The model's own code and pickles run only if the
user allows them.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.base.events import Events
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import Answer, EngineEntry
from evalkit.judge import compare
from evalkit.judge.audit import AuditOptions, drawing, loading, replaying
from evalkit.judge.audit.noise import Noise, measure_noise
from evalkit.judge.reproduce import differences as differing
from evalkit.judge.reproduce import verdicts
from evalkit.judge.reproduce.differences import Apart, apart
from evalkit.judge.reproduce.preparing import Prepared, Wanted, prepared
from evalkit.judge.reproduce.verdicts import Outcome, Verdict, incomparable
from evalkit.plan import store
from evalkit.record import journal
from evalkit.record.journal import Answers
from evalkit.record.reading import scored
from evalkit.record.reading.identity import read_record
from evalkit.record.signing import attest, keys
from evalkit.record.types import Record
from evalkit.run import evaluate
from evalkit.run.preparing import prepare
from evalkit.run.preparing.prepare import Job

__all__ = ["Outcome", "Wanted", "prepared", "reproduce"]


def reproduce(
    original: Path, wanted: Wanted, events: Events, argv: list[str],
    key: keys.Private | None = None,
) -> Outcome:  # fmt: skip
    """Run the recorded suite again and judge the outcome; with a key, sign that for the original.
    The order: 1 what differs, 2 whether the same is asked at all, 3 the new execution, 4 the
    verdict, 5 the statement."""
    ready = prepared(original, wanted)
    for line in ready.lines():
        events.say(line)
    suite = [difference for difference in ready.differences if difference.kind == "suite"]
    if suite:
        outcome = incomparable(ready.differences, str(suite[0]))
    elif wanted.sample is not None:
        outcome = _sampled(ready, wanted.sample, wanted.seed, events)
    else:
        made = evaluate.evaluate(ready.job.options, events, argv, workers=wanted.workers)
        outcome = judge(ready, made)
    if key is not None:
        attest.sign(original, key, attest.REPRODUCTION, outcome.claim)
    return outcome


def judge(ready: Prepared, made: Path) -> Outcome:
    """Return the verdict on a finished second execution in the folder `made`."""
    before, after = ready.record, read_record(made)
    if after["execution"] == before["execution"]:
        raise EvalkitError(
            "both records are of the same execution: a copy reproduces nothing",
            where=str(made), fix="give another --out, so that it is run again",
        )  # fmt: skip
    differences = differing.of_records(before, after)
    if unlike := _other_question(before, after):
        return incomparable(differences, unlike, made)
    if after["ids"]["answers"] == before["ids"]["answers"]:
        return Outcome(Verdict.BITWISE, differences, cause="", made=made)
    pair = compare.compare([ready.original, made]).pairs[0]
    tests = tuple(verdicts.equivalences(pair, _errors(before, pair)))
    answers = _apart(ready, made, after)
    if _scored_alike(ready.original, made):
        verdict = Verdict.ANSWERS
    elif not answers.beyond:
        verdict = Verdict.NUMERICS
    else:
        verdict = verdicts.of_scores(pair, tests)
    cause = differing.cause(differences)
    return Outcome(verdict, differences, cause, answers, pair, tests, made=made)


def _other_question(before: Record, after: Record) -> str:
    """Name the first leaf task that was asked something else; empty if there is none."""
    for name in sorted(before["tasks"].keys() | after["tasks"].keys()):
        old, new = before["tasks"].get(name), after["tasks"].get(name)
        if old is None or new is None:
            return f"{name} was asked on one side only"
        if old["questions"] != new["questions"]:
            return f"{name} was asked other questions"
        if old["prompts"] != new["prompts"]:
            return f"{name} was asked other prompts"
    return ""


def _errors(record: Record, pair: compare.Pair) -> dict[str, float | None]:
    errors: dict[str, float | None] = {}
    for row in pair.tops:
        entry = record["groups"].get(row.task) or record["tasks"][row.task]
        error = entry["metrics"][row.metric]["stderr"]
        errors[row.task] = None if error is None else canon.number(error)
    return errors


def _scored_alike(one: Path, other: Path) -> bool:
    old, new = scored.read(one), scored.read(other)
    return all(leaf.metrics == new.leaves[name].metrics for name, leaf in old.leaves.items())


def _apart(ready: Prepared, made: Path, after: Record) -> Apart:
    """Compare the two executions' answers, with the wider of their numerics' noises."""
    sides = []
    for place, record in ((ready.original, ready.record), (made, after)):
        planned = store.Plan(place)
        sides.append(Answers(planned, journal.of_record(place, record, planned.entries)))
    pairs = differing.matched(sides[0], sides[1], ready.record["tasks"])
    return apart(pairs, _noise(ready, made, after))


def _noise(ready: Prepared, made: Path, after: Record) -> Noise:
    """Return the wider noise of the two runs' numerics, measured on the model at hand; the least
    noise where another engine answered."""
    before = ready.record
    if not (after["engine"]["bit_repeatable"] and before["engine"]["bit_repeatable"]):
        return measure_noise([])
    model, options = ready.job.model, _audit_options(ready.job)
    noises = [replaying.noise_of(made, model, options)]
    if after["numerics"] != before["numerics"]:
        noises.append(replaying.noise_of(made, model, options, before["numerics"]))
    return max(noises, key=lambda noise: noise.scale)


def _audit_options(job: Job) -> AuditOptions:
    return AuditOptions(device=job.options.device, adapter=job.options.adapter)


def _sampled(ready: Prepared, count: int, seed: int, events: Events) -> Outcome:
    """Answer `count` whole batches of the original's plan again. They are planned here again, from
    the reader's suite: of the record's own plan only the id is used. Nothing is scored, so the
    verdict is never ANSWERS or REPRODUCED."""
    level = ready.record["engine"]["level"]
    as_recorded = prepare.prepare(replace(ready.job.options, level=level))
    with _planned_here(as_recorded, events) as planned:
        if planned.body["ids"]["plan"] != ready.record["ids"]["plan"]:
            reason = "the batches that are planned here from the suite are not the record's"
            return incomparable(ready.differences, reason)
        pairs = _answered_again(ready, planned, count, seed, events)
        answers, verdict = apart(pairs, measure_noise([])), Verdict.BITWISE
        if answers.unequal:
            noise = replaying.noise_of(ready.original, ready.job.model, _audit_options(ready.job))
            answers = apart(pairs, noise)
            verdict = Verdict.DIFFERENT if answers.beyond else Verdict.NUMERICS
        sample = f"{min(count, len(planned)):,} of {len(planned):,} batches, seed {seed}"
    cause = differing.cause(ready.differences)
    return Outcome(verdict, ready.differences, cause, answers, sample=sample)


def _answered_again(
    ready: Prepared, planned: store.Plan, count: int, seed: int, events: Events
) -> list[tuple[str, Answer | None, Answer | None]]:
    inputs = ready.job.inputs
    entry: EngineEntry = ready.record["engine"] | {"level": inputs["engine"]["level"]}
    record: Record = ready.record | {"numerics": inputs["numerics"], "engine": entry}
    engine, _ = loading.engine_for(record, ready.job.model, planned, _audit_options(ready.job))
    done = journal.of_record(ready.original, record, planned.entries)
    names = [(batch, 0) for batch in planned.entries]
    chosen = [batch for batch, _ in drawing.draw_of(ready.original, names, seed, count)]
    pairs: list[tuple[str, Answer | None, Answer | None]] = []
    with events.phase("reproduce", len(chosen), "batches") as phase:
        for batch in chosen:
            before = done.batches[batch].answers()
            after: Mapping[str, Any] = engine.execute(planned.batch(batch))
            pairs += [(part, before.get(part), answer) for part, answer in after.items()]
            phase.advance(1)
    return pairs


@contextmanager
def _planned_here(job: Job, events: Events) -> Iterator[store.Plan]:
    """Build the plan of a job from its suite; it is there until the block ends."""
    _, made = evaluate.batches(job, Tokenizer(job.model), events)
    with tempfile.TemporaryDirectory(prefix="evalkit-planned-") as place:
        canon.write_atomic(Path(place) / "plan.tokens", made.tokens)
        canon.write_json(Path(place) / "plan.json", made.body)
        yield store.Plan(Path(place))
