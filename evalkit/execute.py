"""Works through a plan, a batch at a time: read, execute, journal, on the disk, next.

Needs the run's folder and the model; no suite, no dataset, no lm-eval. What the journal already
holds is not done again.
"""

import os
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit import journal, prepare, stamp
from evalkit import model as models
from evalkit.choice import Choice
from evalkit.errors import EvalkitError, Exit
from evalkit.events import Events
from evalkit.folder import Run, first_difference, read
from evalkit.model import Model
from evalkit.plan import Plan


@dataclass(frozen=True, slots=True)
class Place:
    """What a plan is executed with that is this host's own: the device and an adapter's folder."""

    device: str
    adapter: Path | None = None


def segment_name() -> str:
    """A name for this process's stretch of a run: when it started, where, and a random end."""
    started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    host = "".join(c if c.isalnum() else "-" for c in os.uname().nodename)[:40].strip("-")
    return f"{started}-{host or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


def check_inputs(run: Run, model: Model, place: Place) -> None:
    """EvalkitError (2) naming the first input of the run's identity that is not what it was."""
    planned = run.body["inputs"]
    found = models.resolve_adapter(place.adapter) if place.adapter else None
    now = planned | {
        "model": model.sha256(),
        "adapter": prepare.digests(found),
        "engine": planned["engine"] | {"versions": prepare.engine_versions(engine_of(run))},
        "versions": stamp.versions(),
    }
    if now != planned:
        name, old, new = first_difference(planned, now)
        raise EvalkitError(
            f"this run was planned with another {name}: {old} -> {new}",
            where=str(run.folder),
            fix="continue it where it was started, or start another run",
        )


def engine_of(run: Run) -> Choice:
    """The engine that a run was planned for."""
    planned = run.body["inputs"]["engine"]
    return Choice(planned["name"], planned["args"])


def execute(run: Run, model: Model, place: Place, events: Events) -> None:
    """Answer every batch of the run's plan that its journal does not hold yet.

    Raises EvalkitError where a batch can't be computed or written; what came before is kept.
    """
    check_inputs(run, model, place)
    if run.finished:
        events.say("this run is already finished")
        return
    plan = Plan(run.folder)
    segment = segment_name()
    done = journal.read(run.folder / "journal", run.body["ids"]["run"], set(plan.entries))
    todo = [batch for batch in plan.entries if batch not in done.batches]
    events.open(run.folder / "events" / f"{segment}.jsonl")
    for line in done.set_aside:
        events.say(f"set aside a torn or altered journal line ({line}); its batch is repeated")
        events.log("journal.set_aside", line=line)
    if not todo:
        return
    if done.batches:
        events.say(f"continuing: {len(done.batches)} of {len(plan)} batches are done")
    events.say(f"loading {run.body['model']['reference']} ({_how(run)})")
    engine, hardware = _load(run, plan, model, place)
    events.log("segment.start", segment=segment, **stamp.segment_start(hardware))
    events.log("environment", **stamp.environment(hardware))
    try:
        _probe(run, engine, events)
        writer = journal.Writer(run.folder / "journal", run.body["ids"]["run"], segment)
        _work(plan, todo, engine, writer, events)
    finally:
        events.log("segment.stop", segment=segment)


def _how(run: Run) -> str:
    """Engine, level and numerics in words: `evalkit, level A, native float32`."""
    engine, numerics = run.body["inputs"]["engine"], run.body["inputs"]["numerics"]
    told = [numerics[key] for key in ("profile", "dtype") if isinstance(numerics[key], str)]
    return ", ".join([engine["name"], f"level {engine['level']}", *filter(None, [" ".join(told)])])


def _load(run: Run, plan: Plan, model: Model, place: Place) -> tuple[Any, dict[str, Any]]:
    """The run's engine with the model's weights, and what it runs on."""
    from evalkit import engine
    from evalkit.tokenizer import Tokenizer

    inputs, chosen = run.body["inputs"], engine_of(run)
    tokenizer, here = Tokenizer(model), engine.hardware(place.device)
    if not chosen.foreign:
        loaded: Any = engine.load(
            model, tokenizer, engine.Numerics(**inputs["numerics"]), place.device,
            level=inputs["engine"]["level"], adapter=place.adapter,
        )  # fmt: skip
        return loaded, here
    from evalkit.harness import classes, foreign

    loaded = foreign.load(
        chosen, model, tokenizer, numerics=inputs["numerics"], device=place.device,
        adapter=place.adapter, max_length=plan.body["max_length"],
    )  # fmt: skip
    return loaded, classes.hardware(chosen, here)


def _probe(run: Run, engine: Any, events: Events) -> None:
    """Hold the loaded model's answers at the plan's level against its plain forwards, before any
    batch; a foreign engine shares nothing that could be wrong."""
    if engine_of(run).foreign:
        return
    from evalkit.engine import probe

    started = time.monotonic()
    with events.phase("probe", 0, "prompts"):
        probe.check(engine)
    seconds = time.monotonic() - started
    events.say(f"level {run.body['inputs']['engine']['level']} checked in {seconds:.1f} s")
    events.log("probed", seconds=seconds, peak_memory_bytes=stamp.peak_memory_bytes())


def _work(plan: Plan, todo: list[str], engine: Any, writer: journal.Writer, events: Events) -> None:
    total = sum(plan.entries[batch]["cost"] for batch in todo)
    computed = _Computed(plan.body["trunks"])
    started = time.monotonic()
    try:
        with events.phase("execute", total, "tokens") as phase:
            for count, batch in enumerate(todo, 1):
                answers = engine.execute(plan.batch(batch))
                writer.append(batch, answers, split=engine.last_split)
                entry = plan.entries[batch]
                computed.add(entry, answers)
                phase.advance(entry["cost"], f"batch {count}/{len(todo)}")
        writer.close()
    finally:  # a segment that is stopped has cost its time as well
        events.log(
            "executed",
            seconds=time.monotonic() - started,
            tokens=computed.tokens,
            peak_memory_bytes=stamp.peak_memory_bytes(),
        )


class _Computed:
    """Counts the tokens that a worker computes, padding aside: of rows, of generations, and of each
    trunk when it is not the last batch's. None once an engine does not tell a generation's."""

    def __init__(self, trunks: list[dict[str, Any]]) -> None:
        self.tokens: int | None = 0
        self._trunks = trunks
        self._kept: set[int] = set()

    def add(self, entry: dict[str, Any], answers: dict[str, journal.Answer]) -> None:
        """Count a batch."""
        chain: set[int] = set()
        index = entry["trunk"]
        while index is not None:
            chain.add(index)
            index = self._trunks[index]["parent"]
        before = sum(self._trunks[index]["length"] for index in chain - self._kept)
        self._kept = chain
        written = [answer["tokens"] for answer in answers.values() if "tokens" in answer]
        if self.tokens is None or any(isinstance(tokens, dict) for tokens in written):
            self.tokens = None
        else:
            self.tokens += before + entry["tokens"] + sum(map(len, written))


def progress(folder: Path) -> tuple[int, int]:
    """(batches done, batches in the plan) of a run."""
    run = read(folder)
    plan = Plan(folder)
    done = journal.read(folder / "journal", run.body["ids"]["run"], set(plan.entries))
    return len(done.batches), len(plan)


def missing(plan: Plan, done: journal.Journal) -> EvalkitError | None:
    """What to say when not every batch of a plan has been answered; None when all have."""
    left = len(plan) - len(done.batches)
    if not left:
        return None
    return EvalkitError(
        f"{left} of {len(plan)} batches have no answer yet",
        where=str(plan.folder),
        fix="run `evalkit execute` on it (the same eval command continues it)",
        code=Exit.STOPPED,
    )
