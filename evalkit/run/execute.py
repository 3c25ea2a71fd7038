"""Works through a plan: what of it is left, and who answers that.

Needs the run's folder and the model; no suite, no dataset, no lm-eval. What the journal already
holds is not done again. Batches go to workers in processes of their own (`workers`), or, without
any, are answered here, one after another.
"""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import stopping
from evalkit.base.errors import EvalkitError
from evalkit.base.events import Events
from evalkit.base.machine import stamp
from evalkit.base.stopping import Stop
from evalkit.inputs.models.model import Model
from evalkit.plan import shards
from evalkit.plan.shards import Shard
from evalkit.plan.store import Plan, plan_id
from evalkit.record import journal
from evalkit.run import pace, telemetry
from evalkit.run.folder import Run, first_difference, plan_of, read, run_id
from evalkit.run.means import Early, Means, places_of
from evalkit.run.preparing import engines
from evalkit.run.preparing.engines import Place
from evalkit.run.processes import worker
from evalkit.run.processes.workers import Workers


def check_inputs(run: Run, plan: Plan, model: Model, place: Place) -> None:
    """EvalkitError (2) naming the first input of the run's identity that is not what it was."""
    planned = run.body["inputs"]
    now = planned | {
        "model": model.sha256(),
        "adapter": place.adapter_digests(),
        "engine": planned["engine"] | {"versions": engines.of_inputs(planned).versions()},
        "versions": stamp.versions(),
    }
    fix = "continue it where it was started, or start another run"
    if now != planned:
        name, old, new = first_difference(planned, now)
        what = f"this run was planned with another {name}: {old} -> {new}"
        raise EvalkitError(what, where=str(run.folder), fix=fix)
    ids = run.body["ids"]
    followed = {"plan": plan_id(plan.body), "run": run_id(ids["plan"], planned)}
    for name, recorded in ids.items():
        if followed.get(name, recorded) != recorded:
            what = f"run.json or plan.json was changed: the {name} id does not follow from them"
            raise EvalkitError(what, where=str(run.folder), fix=fix)


def _check_clock(run: Run) -> None:
    if (run.folder / "seal.json").is_file():
        from evalkit.record.signing import sealing

        sealing.check_clock(run.folder)


def execute(
    run: Run, model: Model, means: Means, events: Events,
    check: Callable[[], None] = lambda: None, early: Early | None = None,
) -> None:  # fmt: skip
    """Answer every batch of the run's plan, or of a shard, that its journal does not hold yet.

    `check` is called between batches and may raise; workers of `early` are used first. Raises
    EvalkitError where a batch can't be computed or written, KeyboardInterrupt where a signal ended
    it; what came before is kept.
    """
    plan = plan_of(run.folder)
    check_inputs(run, plan, model, means.place)
    if run.finished:
        events.say("this run is already finished")
        return
    _check_clock(run)
    segment = worker.segment_name()
    events.open(run.folder / "events" / f"{segment}.jsonl")
    todo = unanswered(run, plan, means.shard, events)
    if not todo:
        return
    before = 0 if means.shard else _before(plan, todo)
    places = places_of(run.body["inputs"], model, means, len(todo))
    on = f" on {len(places)} workers" if len(places) > 1 else ""
    events.say(f"loading {run.body['model']['reference']}{on} ({_how(run)})")
    path = run.folder / "telemetry" / f"{segment}.jsonl"
    sampled = telemetry.Telemetry(path, telemetry.meter())
    deferred = stopping.deferred(means.grace_s, lambda: _say_stopping(events, means))
    with sampled, deferred as stop:
        if means.number == 0:
            _describe(run, means, events)
            _alone(run, plan, model, places[0], todo, before, events, stop, check)
        else:
            first = early or Early(None, [])
            team = Workers(run, plan, model, places, events, check, first.children, first.template)
            _together(team, todo, before, stop, events, lambda: _describe(run, means, events))
        stop.check()
    if sampled.stopped_because:
        events.log("telemetry.stopped", why=stamp.without_paths(sampled.stopped_because))


def _together(
    team: Workers, todo: list[int], before: int, stop: Stop, events: Events,
    describe: Callable[[], None],
) -> None:  # fmt: skip
    try:
        team.work(todo, stop, describe, before)
    finally:  # a segment that is stopped has cost its time as well
        events.log("executed", tokens=team.tokens, **team.span.taken(team.peak_bytes))


def unanswered(run: Run, plan: Plan, shard: Shard | None, events: Events) -> list[int]:
    """The batches to answer, by index."""
    names = list(plan.entries)
    mine = shards.deal(plan.body, shard.count)[shard.index - 1] if shard else range(len(names))
    done = journal.done(run.folder / "journal", run.body["ids"]["run"], plan.entries)
    todo = [index for index in mine if names[index] not in done.batches]
    if shard:
        events.say(f"shard {shard}: {len(mine)} of {len(plan)} batches, {len(todo)} to be done")
        pace.check(run, plan, shard, todo)
        events.log(pace.EVENT, **pace.noted(shard, todo, os.environ))
        return todo  # what is torn may be another's, and just being written
    for line in done.set_aside:
        events.say(f"set aside a torn or altered journal line ({line}); its batch is repeated")
        events.log("journal.set_aside", line=line)
    if todo and done.batches:
        events.say(f"continuing: {len(done.batches)} of {len(plan)} batches are done")
    return todo


def _before(plan: Plan, todo: list[int]) -> int:
    """The tokens of a whole run's batches that are done already."""
    entries = plan.body["batches"]
    left = set(todo)
    return sum(int(each["cost"]) for index, each in enumerate(entries) if index not in left)


def _say_stopping(events: Events, means: Means) -> None:
    events.say(
        f"stopping: the batches in hand have {means.grace_s:.0f} s to be done"
        " (interrupt again to drop them)"
    )


def _how(run: Run) -> str:
    """Engine, level and numerics in words: `evalkit, level tree, native float32`."""
    engine, numerics = run.body["inputs"]["engine"], run.body["inputs"]["numerics"]
    known = [text for text in (numerics["profile"], numerics["dtype"]) if isinstance(text, str)]
    return ", ".join(filter(None, [engine["name"], f"level {engine['level']}", " ".join(known)]))


def _describe(run: Run, means: Means, events: Events) -> None:
    """Log what is known of this host's software and hardware, before there is an answer of it."""
    here = engines.of_inputs(run.body["inputs"]).hardware(means.place.device)
    events.log("environment", **stamp.environment(here))


def _alone(
    run: Run, plan: Plan, model: Model, place: Place, todo: list[int], before: int, events: Events,
    stop: Stop, check: Callable[[], None],
) -> None:  # fmt: skip
    names, entries = list(plan.entries), plan.body["batches"]
    with events.phase("start", 1, "workers") as phase:
        inputs = run.body["inputs"]
        mine = worker.Worker(inputs, model, place, plan.body["max_length"])
        if not mine.is_checked:
            mine.check()
        mine.begin(run, plan, events.log)
        phase.advance(1)
    worker.log_probed(inputs["engine"]["level"], events, mine.probed, mine.key)
    total = before + sum(entries[index]["cost"] for index in todo)
    span = telemetry.Span()
    rest = _Rest([names[index] for index in todo], stop, check)
    try:
        with events.phase("execute", total, "tokens", before) as phase:
            rest.told = lambda name, note: phase.advance(plan.entries[name]["cost"], note)
            while (name := rest.following()) is not None:
                rest.done(name, mine.answer(name, None, rest))
    finally:
        mine.close()
        events.log("executed", tokens=rest.tokens, **span.taken())


class _Rest:
    """The batches that this process has not taken in hand yet, by name (`worker.Ahead`). `tokens`:
    what those that are answered took; `told` is told of each of them."""

    def __init__(self, names: list[str], stop: Stop, check: Callable[[], None]) -> None:
        self._names, self._stop, self._check = deque(names), stop, check
        self._all, self._done = len(names), 0
        self.tokens: int | None = 0
        self.told: Callable[[str, str], None] = lambda name, note: None

    def following(self) -> str | None:
        if not self._names or (self._done and self._stop.asked):
            return None
        self._check()
        return self._names.popleft()

    def peek(self) -> str | None:
        return self._names[0] if self._names and not self._stop.asked else None

    def take(self) -> None:
        self._names.popleft()

    def done(self, batch: str, tokens: int | None) -> None:
        self._done += 1
        self.tokens = worker.added(self.tokens, tokens)
        self.told(batch, f"batch {self._done}/{self._all}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: its batches, and their tokens, which are the work. `share` of the work is
    the one figure that the progress bar, `status` and the page show."""

    done: int
    batches: int
    done_tokens: int
    tokens: int

    @property
    def share(self) -> float:
        """The part of the work that is done."""
        return self.done_tokens / max(self.tokens, 1)


def progress(folder: Path) -> Progress:
    """How far a run is, by its journal."""
    run = read(folder)
    plan = plan_of(folder)
    done = journal.done(folder / "journal", run.body["ids"]["run"], plan.entries)
    costs = {name: int(entry["cost"]) for name, entry in plan.entries.items()}
    answered = sum(costs[name] for name in done.batches if name in costs)
    return Progress(len(done.batches), len(plan), answered, sum(costs.values()))
