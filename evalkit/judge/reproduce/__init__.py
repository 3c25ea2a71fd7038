"""`reproduce`: run a recorded suite again, and say how much of it came out.

The second execution has a folder and an id of its own and never sees the original's journal. What
differs between the two environments is printed before anything runs, and one verdict comes last.
What a record asks for is run as evalkit understands it; its model's own code and pickles run only
on the reproducer's word.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.base.events import Events
from evalkit.base.machine import stamp
from evalkit.inputs import engine_name
from evalkit.judge import compare
from evalkit.judge.audit import Asked, replaying
from evalkit.judge.audit.noise import Noise, measure
from evalkit.judge.reproduce import differences as differing
from evalkit.judge.reproduce import sampling, verdicts
from evalkit.judge.reproduce.answers import Apart, apart, matched
from evalkit.judge.reproduce.differences import Difference
from evalkit.judge.reproduce.outcome import Outcome, unfit
from evalkit.judge.reproduce.verdicts import Verdict
from evalkit.judge.verify import require_consistent
from evalkit.plan import store
from evalkit.record import journal
from evalkit.record.journal import Answers
from evalkit.record.reading import scored
from evalkit.record.signing import attest, keys
from evalkit.run import evaluate as run
from evalkit.run.preparing import named, prepare
from evalkit.run.preparing.prepare import Job, Options

__all__ = ["Outcome", "Wanted", "prepared", "reproduce"]

NOTHING = "no recorded input differs: one of the records was changed, or a machine does not repeat"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reproducer chooses. `options` of the new execution are as recorded but for those that
    are given; `sample`: that many batches of the original's plan only, drawn with `seed`."""

    out: Path
    given: dict[str, Any]
    workers: int | None = None
    sample: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A reproduction that could start: the original, the job that would run, what differs."""

    original: Path
    record: dict[str, Any]
    job: Job
    differences: tuple[Difference, ...]

    def lines(self) -> list[str]:
        """What would be done, the environment's differences first."""
        tasks, model = self.record["tasks"], self.record["model"]["reference"]
        figures = store.figures(store.Plan(self.original).body)
        executed = self.record["phases"].get("execute", {}).get("seconds")
        took = f", {executed:.1f} s then" if isinstance(executed, int | float) else ""
        return [
            *differing.told(self.differences),
            f"original  {model} on {self.record['suite']['name']}, run"
            f" {self.record['ids']['run'][7:19]}",
            f"to do     {sum(task['n'] for task in tasks.values()):,} documents of {len(tasks):,}"
            f" leaf tasks, {figures.batches:,} batches, {figures.computed:,} tokens{took}",
        ]


def prepared(original: Path, wanted: Wanted) -> Prepared:
    """Check the original, resolve what would run, and name what differs; nothing is run.

    Raises EvalkitError (1) for a record that contradicts itself.
    """
    require_consistent(original, "reproduce")
    record = canon.read_json(original / "record.json")
    job = prepare.prepare(_options(record, wanted, original))
    if original.resolve().is_relative_to(job.folder.resolve()):
        raise EvalkitError(
            "the original lies where the reproduction would be", where=str(job.folder),
            fix="choose another --out",
        )  # fmt: skip
    found = differing.of_inputs(differing.inputs_of(record), job.inputs)
    here = stamp.environment(_hardware(job))
    found += differing.of_environments(record["environment"], here)
    return Prepared(original, record, job, tuple(found))


def _hardware(job: Job) -> dict[str, Any]:
    from evalkit import engine

    return engine.hardware(job.device)


def _options(record: dict[str, Any], wanted: Wanted, where: Path) -> Options:
    """The recorded settings, as far as nothing else is given.

    What can be opened, run or sent to is never taken from a record: the model, an adapter, an
    engine with its arguments and a suite that isn't shipped must be given (EvalkitError says
    which), and so must what lets a model run code.
    """
    given = {name: value for name, value in wanted.given.items() if value not in (None, ())}
    model, numerics, engine = record["model"], record["numerics"], record["engine"]
    adapter = model["adapter"]["reference"] if model["adapter"] else None
    named.require(
        [
            *named.model(model["reference"], given.get("model")),
            *named.suite(record["suite"]["name"], given.get("suite")),
            *named.adapter(adapter, given.get("adapter")),
            *named.engine(engine["name"], engine["args"], given.get("engine")),
        ],
        where,
    )
    own = given.get("engine", engine["name"]) == engine["name"] == engine_name.OWN
    recorded = Options(
        model=model["reference"],
        suite=record["suite"]["name"],
        revision=_revision(record, given.get("model")),
        limit=record["suite"]["limit"],
        out=wanted.out,
        dtype=numerics["dtype"] if isinstance(numerics["dtype"], str) else None,
        profile=numerics["profile"] if own else None,
        level=engine["level"] if own else None,
        seed=_seed(record["suite"]["seeds"]),
        threads=numerics["threads"] if own else 1,
        memory=engine["policy"].get("memory", 0),
        clock=record["suite"].get("clock"),
    )
    return replace(recorded, **given)


def _revision(record: dict[str, Any], model: str | None) -> str | None:
    """The recorded commit, of the model that the reader names as the record does."""
    recorded = record["model"]
    same = model in (None, recorded["reference"])
    return recorded["revision"] if same and isinstance(recorded["revision"], str) else None


def _seed(seeds: dict[str, int]) -> int | None:
    """What was given as --seed, which sets all of them; None for seeds that are not one."""
    found = set(seeds.values())
    return found.pop() if len(found) == 1 else None


def reproduce(
    original: Path, wanted: Wanted, events: Events, argv: list[str],
    key: keys.Private | None = None,
) -> Outcome:  # fmt: skip
    """Run the recorded suite again and judge what came out; with a key, sign that for the original.

    The order: 1 what differs, 2 whether the same is asked at all, 3 the new execution, 4 the
    verdict, 5 the statement.
    """
    ready = prepared(original, wanted)
    for line in ready.lines():
        events.say(line)
    asked = [each for each in ready.differences if each.kind == "suite"]
    if asked:
        outcome = unfit(ready.differences, str(asked[0]))
    elif wanted.sample is not None:
        outcome = _sampled(ready, wanted, events)
    else:
        made = run.evaluate(ready.job.options, events, argv, workers=wanted.workers)
        outcome = judge(ready, made)
    if key is not None:
        attest.sign(original, key, attest.REPRODUCTION, outcome.claim)
    return outcome


def _sampled(ready: Prepared, wanted: Wanted, events: Events) -> Outcome:
    assert wanted.sample is not None, "asked for"
    job = ready.job
    asked = Asked(samples=wanted.sample, device=job.options.device, adapter=job.options.adapter)
    level, numerics = job.inputs["engine"]["level"], job.inputs["numerics"]
    record = ready.record | {"numerics": numerics}
    record["engine"] = record["engine"] | {"level": level}
    level = ready.record["engine"]["level"]
    as_recorded = prepare.prepare(replace(job.options, level=level))
    with sampling.planned_here(as_recorded, events) as planned:
        if planned.body["ids"]["plan"] != ready.record["ids"]["plan"]:
            reason = "the batches that are planned here from the suite are not the record's"
            return unfit(ready.differences, reason)
        verdict, found, of = sampling.again(
            ready.original, record, planned, job.model, asked, events, wanted.seed
        )
    told = f"{min(wanted.sample, of):,} of {of:,} batches, seed {wanted.seed}"
    cause = differing.cause(list(ready.differences), plain=NOTHING)
    return Outcome(verdict, ready.differences, found, None, (), cause, told, None)


def judge(ready: Prepared, made: Path) -> Outcome:
    """The verdict on a finished second execution in the folder `made`."""
    record = canon.read_json(made / "record.json")
    if record["execution"] == ready.record["execution"]:
        raise EvalkitError(
            "both records are of the same execution: a copy reproduces nothing",
            where=str(made), fix="give another --out, so that it is run again",
        )  # fmt: skip
    differences = tuple(
        differing.of_inputs(differing.inputs_of(ready.record), differing.inputs_of(record))
        + differing.of_environments(ready.record["environment"], record["environment"])
    )
    ready = replace(ready, differences=differences)
    unlike = _other_question(ready.record, record)
    if unlike:
        return unfit(differences, unlike, made)
    cause = differing.cause(list(differences), plain=NOTHING)
    done = Outcome(Verdict.BITWISE, differences, None, None, (), cause, "", made)
    if record["ids"]["answers"] == ready.record["ids"]["answers"]:
        return replace(done, cause="")
    pair = compare.compare([ready.original, made]).pairs[0]
    tests = tuple(verdicts.equivalences(pair, _errors(ready.record, pair)))
    found = _apart(ready, made)
    if _scored_alike(ready.original, made):
        verdict = Verdict.ANSWERS
    elif not found.beyond:
        verdict = Verdict.NUMERICS
    else:
        verdict = verdicts.of_scores(pair, list(tests))
    return replace(done, verdict=verdict, answers=found, pair=pair, tests=tests)


def _other_question(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first leaf task whose questions or prompts are not the same, or nothing."""
    for name in sorted(before["tasks"].keys() | after["tasks"].keys()):
        old, new = before["tasks"].get(name), after["tasks"].get(name)
        if old is None or new is None:
            return f"{name} was asked on one side only"
        for kind in ("questions", "prompts"):
            if old[kind] != new[kind]:
                return f"{name} was asked other {kind}"
    return ""


def _errors(record: dict[str, Any], pair: compare.Pair) -> dict[str, float | None]:
    """The original's standard errors of the headline metrics, by task."""
    found: dict[str, float | None] = {}
    for row in pair.tops:
        entry = record["groups"].get(row.task) or record["tasks"][row.task]
        error = entry["metrics"][row.metric]["stderr"]
        found[row.task] = None if error is None else canon.number(error)
    return found


def _scored_alike(one: Path, other: Path) -> bool:
    """Whether every metric of every sample is equal."""
    old, new = scored.read(one), scored.read(other)
    return all(leaf.metrics == new.leaves[name].metrics for name, leaf in old.leaves.items())


def _apart(ready: Prepared, made: Path) -> Apart:
    """How far the two executions' answers are apart, with the wider of their numerics' noises."""
    sides = []
    for place in (ready.original, made):
        record, planned = canon.read_json(place / "record.json"), store.Plan(place)
        sides.append(Answers(planned, journal.of_record(place, record, planned.entries)))
    return apart(matched(sides[0], sides[1], ready.record["tasks"]), _noise(ready, made))


def _noise(ready: Prepared, made: Path) -> Noise:
    """Measured on the new execution's model, in its own numerics and, where those are others, in
    the original's; the wider of both. Where another engine answered, only what is always noise."""
    record = canon.read_json(made / "record.json")
    if not (record["engine"]["bit_repeatable"] and ready.record["engine"]["bit_repeatable"]):
        return measure([])
    model, options = ready.job.model, ready.job.options
    asked = Asked(device=options.device, adapter=options.adapter)
    found = [replaying.noise_of(made, model, asked)]
    if record["numerics"] != ready.record["numerics"]:
        found.append(replaying.noise_of(made, model, asked, ready.record["numerics"]))
    return max(found, key=lambda noise: noise.scale)
