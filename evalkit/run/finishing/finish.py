"""From a complete journal to a record: assemble, score through lm-eval, stamp, write.

Everything here can be repeated safely; the record comes last.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events, now
from evalkit.base.machine import stamp
from evalkit.base.machine.types import Environment, Unknown
from evalkit.harness.data.pinning import group_metrics
from evalkit.harness.tasks import Loaded
from evalkit.inputs import locked
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.store import Plan
from evalkit.record import auditlog, journal, record
from evalkit.record.journal import Answers
from evalkit.record.sections import Phase, Segment
from evalkit.run import telemetry
from evalkit.run.finishing import graded
from evalkit.run.folder import Run, plan_of

Event = Mapping[str, Any]  # a line of events/<segment>.jsonl, which nothing has checked


def check_complete(run: Run, answered: int, total: int) -> None:
    """Raise EvalkitError (75) while batches have no answer."""
    if answered < total:
        raise EvalkitError(
            f"{total - answered} of {total} batches have no answer yet",
            where=str(run.folder),
            fix="run `evalkit execute` on it (the same eval command continues it)",
            code=Exit.STOPPED,
        )


def finish(
    run: Run, loaded: Loaded, tokenizer: Tokenizer, events: Events, argv: list[str],
    prefer: str | None = None,
) -> Path:  # fmt: skip
    """Score a run of which every batch is answered, write its record and return its path. Raises
    EvalkitError (75) while batches have no answer, and (1) where two segments answered one
    unequally and neither is `prefer`."""
    from evalkit.harness import publish
    from evalkit.harness.scoring import score

    known = graded.needed(run, loaded)
    _seal(run.folder, events)
    plan = plan_of(run.folder)
    done = journal.read(run.folder / "journal", run.body["ids"]["run"], plan.entries, prefer)
    check_complete(run, len(done.batches), len(plan))
    for left_behind in run.folder.rglob(".*.part"):  # by a process that was killed while writing
        left_behind.unlink()
    events.say("scoring with lm-eval")
    span = telemetry.Span()
    total = sum(len(entry["targets"]) for entry in plan.entries.values())
    with events.phase("score", total, "answers") as phase:
        answers = Answers(plan, done, phase.advance)
        template = tokenizer.chat_template_for(loaded.suite)
        scoring = score.Scoring(loaded, answers.of, template)
        facts = graded.write_samples(run, scoring.samples(), known)
        results = scoring.results()
    published = publish.published(
        results, scoring.task_hashes(), loaded.suite, run.body["model"]["reference"],
        tokenizer.reported(),
    )  # fmt: skip
    text = json.dumps(canon.finite(published), indent=2, ensure_ascii=False, allow_nan=False)
    canon.write_atomic(run.folder / "results.json", text + "\n")
    events.log("scored", **span.taken())
    events.close()
    body = _record(run, plan, done, answers, results, facts, loaded, argv)
    settled = {"segment": prefer, "batches": len(done.settled)} if prefer else None
    path = record.write(run.folder, body | {"preferred": settled})
    log_finished(run)
    return path


def _seal(folder: Path, events: Events) -> None:
    """Replace what other processes have written by copies: one that still works goes on writing
    into its own file, not into what the record lists."""
    for name in ("journal", "events", "telemetry"):
        for path in sorted((folder / name).glob("*.jsonl")):
            if path != events.path:
                with path.open("rb") as handle:
                    canon.write_atomic(path, iter(partial(handle.read, 1 << 20), b""))


def _record(
    run: Run,
    plan: Plan,
    done: journal.Journal,
    answers: Answers,
    results: dict[str, Any],
    facts: record.SampleFacts,
    loaded: Loaded,
    argv: list[str],
) -> dict[str, Any]:
    lock = locked.read_lock(run.folder / "lock.yaml")
    happened = _events(run.folder)
    tasks = record.tasks(results, lock, facts, answers, loaded.suite.limit)
    multiple_choice = {n for n, task in tasks.items() if task["output_type"] == "multiple_choice"}
    inputs = run.body["inputs"]
    return {
        "schema": record.SCHEMA,
        "ids": {**run.body["ids"], "answers": canon.digest(answers.digests)},
        "execution": run.body["execution"],
        "created": now(),
        "suite": run.body["suite"],
        "answers": answers.digests,
        "tasks": tasks,
        "groups": record.groups(
            results, {n: group_metrics(g) for n, g in loaded.task_dict["groups"].items()}
        ),
        "model": run.body["model"],
        "numerics": inputs["numerics"],
        "engine": inputs["engine"],
        "health": record.health(plan.body, answers, facts, multiple_choice, len(done.splits)),
        "environment": _environment(happened),
        "code": stamp.code(),
        "command": {"argv": stamp.command(argv), "config": run.body["options"]},
        "carried": run.body["carried"],
        "graded": graded.described(run),
        "phases": _phases(happened),
        "segments": _segments(happened, done),
        "files": record.list_files(run.folder),
    }


def _events(folder: Path) -> list[Event]:
    happened: list[Event] = []
    for path in sorted((folder / "events").glob("*.jsonl")):
        for raw in path.read_bytes().splitlines():
            try:
                event = canon.loads(raw)
            except ValueError:
                continue
            happened.append({**event, "file": path.stem})
    return sorted(happened, key=lambda event: str(event.get("time")))


def _environment(happened: list[Event]) -> Environment:
    """Return the environment of the last segment that executed a batch."""
    environments = [event for event in happened if event["event"] == "environment"]
    if not environments:
        raise EvalkitError("no segment of this run says where it ran (its events are missing)")
    own = ("time", "event", "file")  # the event's
    said = {key: value for key, value in environments[-1].items() if key not in own}
    return cast(Environment, said)


def _phases(happened: list[Event]) -> dict[str, Phase]:
    """Return seconds, tokens, memory and energy by phase; no tokens where a segment told none."""
    names = {"planned": "plan", "probed": "probe", "executed": "execute", "scored": "score"}
    by_phase: dict[str, list[Event]] = {}
    for event in happened:
        if event["event"] in names:
            by_phase.setdefault(names[event["event"]], []).append(event)
    phases = {name: _phase(events) for name, events in by_phase.items()}
    counts = [event["tokens"] for event in by_phase.get("execute", [])]
    if counts and None not in counts:
        phase = phases["execute"]
        phase["tokens"] = sum(counts)
        phase["tokens_per_second"] = sum(counts) / max(phase["seconds"], 1e-9)
    return phases


def _phase(events: list[Event]) -> Phase:
    return {
        "seconds": sum(event["seconds"] for event in events),
        "tokens": None,
        "tokens_per_second": None,
        "peak_memory_bytes": max(event["peak_memory_bytes"] for event in events),
        "energy_joules": {"cpu": _joules(events, "cpu"), "gpu": _joules(events, "gpu")},
    }


def _joules(events: list[Event], part: str) -> float | Unknown:
    """Return the sum of a part's energy, which is unknown where one of the values is."""
    values: list[float | Unknown] = [event["energy_joules"].get(part, 0.0) for event in events]
    for value in values:
        if isinstance(value, dict):
            return value
    return sum(value for value in values if not isinstance(value, dict))


def _segments(happened: list[Event], done: journal.Journal) -> list[Segment]:
    untold = stamp.unknown("an older evalkit does not say")
    stops = {e["segment"]: e["time"] for e in happened if e["event"] == "segment.stop"}
    found: list[Segment] = [
        {
            "segment": event["segment"],
            "started": event["time"],
            "stopped": stops.get(event["segment"], stamp.unknown("it was killed")),
            "host": event["host"],
            "hardware": event["hardware"],
            "slurm": event["slurm"],
            "level": event.get("level", untold),
            "repeats": event.get("repeats", untold),
            "kernels": event.get("kernels", untold),
            "batches": done.by_segment.get(event["segment"], 0),
        }
        for event in happened
        if event["event"] == "segment.start"
    ]
    lost = done.by_segment.keys() - {segment["segment"] for segment in found}
    return found + [_untold(name, done.by_segment[name]) for name in sorted(lost)]


def _untold(name: str, batches: int) -> Segment:
    """Return a segment of which only answers are there, since the host lost power."""
    why = "its events were lost"
    lost = stamp.unknown(why)
    return {
        "segment": name, "started": lost, "stopped": lost, "host": lost, "slurm": None,
        "hardware": {"unknown": why}, "level": lost, "repeats": lost, "kernels": lost,
        "batches": batches,
    }  # fmt: skip


def log_finished(run: Run) -> None:
    """See that a finished run stands once in its results folder's audit log."""
    out = run.folder.parent.parent
    if auditlog.has_finished(out, run.body["execution"]):
        return
    body = canon.read_json(run.folder / "record.json")
    auditlog.append(
        out,
        "finished",
        {
            "run": run.folder.relative_to(out).as_posix(),
            "execution": body["execution"],
            "record": canon.sha256_file(run.folder / "record.json"),
            "ids": body["ids"],
            "model": {key: body["model"][key] for key in ("reference", "revision")},
            "datasets": body["suite"]["datasets"],
            "seeds": body["suite"]["seeds"],
            "commit": body["code"]["commit"],
            "evalkit": body["environment"]["versions"]["evalkit"],
        },
    )


def log_failure(run: Run, error: EvalkitError) -> None:
    """Note in the audit log that a run failed, and why."""
    out = run.folder.parent.parent
    fields = {
        "run": run.folder.relative_to(out).as_posix(),
        "execution": run.body["execution"],
        "ids": run.body["ids"],
        "error": stamp.without_paths(error.what),
        "code": int(error.code),
    }
    auditlog.append(out, "failed", fields)
