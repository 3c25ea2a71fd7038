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

from evalkit import journal, stamp
from evalkit.errors import EvalkitError, Exit
from evalkit.events import Events
from evalkit.model import Model
from evalkit.plan import Plan
from evalkit.prepare import Run, first_difference, read


@dataclass(frozen=True, slots=True)
class Device:
    """Where a plan is executed, and under which numerics (`engine.Numerics` as JSON)."""

    name: str
    numerics: dict[str, Any]


def segment_name() -> str:
    """A name for this process's stretch of a run: when it started, where, and a random end."""
    started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    host = "".join(c if c.isalnum() else "-" for c in os.uname().nodename)[:40].strip("-")
    return f"{started}-{host or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


def check_inputs(run: Run, model: Model, numerics: dict[str, Any]) -> None:
    """EvalkitError (2) naming the first input of the run's identity that is not what it was."""
    now = run.body["inputs"] | {
        "model": model.sha256(),
        "numerics": numerics,
        "versions": stamp.versions(),
    }
    if now != run.body["inputs"]:
        name, old, new = first_difference(run.body["inputs"], now)
        raise EvalkitError(
            f"this run was planned with another {name}: {old} -> {new}",
            where=str(run.folder),
            fix="continue it where it was started, or start another run",
        )


def execute(run: Run, model: Model, device: Device, events: Events) -> None:
    """Answer every batch of the run's plan that its journal does not hold yet.

    Raises EvalkitError where a batch can't be computed or written; what came before is kept.
    """
    check_inputs(run, model, device.numerics)
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
    events.say(f"loading {run.body['model']['reference']} ({device.numerics['dtype']})")
    engine, hardware = _load(model, device)
    events.log("segment.start", segment=segment, **stamp.segment_start(hardware))
    events.log("environment", **stamp.environment(hardware))
    try:
        _work(plan, todo, engine, journal.Writer(
            run.folder / "journal", run.body["ids"]["run"], segment), events)  # fmt: skip
    finally:
        events.log("segment.stop", segment=segment)


def _load(model: Model, device: Device) -> tuple[Any, dict[str, Any]]:
    from evalkit import engine
    from evalkit.tokenizer import Tokenizer

    numerics = engine.Numerics(**device.numerics)
    loaded = engine.load(model, Tokenizer(model), numerics, device.name)
    return loaded, engine.hardware(device.name)


def _work(plan: Plan, todo: list[str], engine: Any, writer: journal.Writer, events: Events) -> None:
    total = sum(plan.entries[batch]["cost"] for batch in todo)
    computed = 0
    started = time.monotonic()
    try:
        with events.phase("execute", total, "tokens") as phase:
            for count, batch in enumerate(todo, 1):
                answers = engine.execute(plan.batch(batch))
                writer.append(batch, answers)
                entry = plan.entries[batch]
                computed += entry["tokens"]
                computed += sum(len(answer.get("tokens", ())) for answer in answers.values())
                phase.advance(entry["cost"], f"batch {count}/{len(todo)}")
        writer.close()
    finally:  # a segment that is stopped has cost its time as well
        events.log(
            "executed",
            seconds=time.monotonic() - started,
            tokens=computed,
            peak_memory_bytes=stamp.peak_memory_bytes(),
        )


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
