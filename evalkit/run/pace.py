"""The speed of a run's stretches, and whether a shard makes progress, from journals and events.

A shard whose longest batch takes longer than its time limit would start, be stopped and start
again, and never answer a batch. Here this is noticed before its weights are loaded again.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.plan.shards import START_S, Shard
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.run import folder
from evalkit.run.folder import Run

EVENT = "shard"  # logged at the start of a stretch: its shard, the batches left, Slurm's job
STARTS = 2  # starts that may end without a batch


def speeds(run: Path, least_s: float = 0.0) -> list[float]:
    """Return the tokens a second of each writer of a run, from its start to its last batch, if it
    has worked for at least `least_s`."""
    plan, own = folder.plan_of(run), folder.read(run).body["ids"]["run"]
    costs = {entry["id"]: entry["cost"] for entry in plan.body["batches"]}
    speeds = []
    for path in (run / "journal").glob("*.jsonl"):
        seconds = path.stat().st_mtime - _started(path.name)
        lines = [line for _, _, line in journal.lines(path) if line]
        tokens = sum(costs.get(line["batch"], 0) for line in lines if line["run"] == own)
        if tokens and seconds > least_s:
            speeds.append(tokens / seconds)
    return speeds


def _started(segment: str) -> float:
    """Return when a segment began, in seconds since 1970, from its name."""
    return datetime.strptime(segment[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def noted(shard: Shard, todo: list[int], environment: Mapping[str, str]) -> dict[str, object]:
    """Return what a stretch notes of itself. `todo`: the batches that its shard has left."""
    job = environment.get("SLURM_ARRAY_JOB_ID", "")
    return {"shard": str(shard), "left": len(todo), "job": job}


def check(run: Run, plan: Plan, shard: Shard, todo: list[int]) -> None:
    """Raise EvalkitError (1) where Slurm restarts a shard that twice answered no batch."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    if not todo or not restarts.isdecimal() or int(restarts) < STARTS:
        return
    now = noted(shard, todo, os.environ)
    equal = [span for event, span in _stretches(run.folder) if event == now]
    spans = [span for span in equal if span >= START_S][-STARTS:]  # shorter ones hardly started
    if len(spans) < STARTS:
        return
    cost = max(plan.body["batches"][index]["cost"] for index in todo)
    known = speeds(run.folder)
    needs = f", about {cost / (sum(known) / len(known)):,.0f} s at the run's speed" if known else ""
    had = " and ".join(f"{span:,.0f} s" for span in spans)
    raise EvalkitError(
        f"shard {shard} was started {STARTS} times, for {had}, and answered no batch: its longest"
        f" is of {cost:,} tokens{needs or ', which takes longer than that'}",
        where=str(run.folder),
        fix="submit again with a longer --time and --grace, or on faster nodes",
        code=Exit.FAILED,
    )


def _stretches(run: Path) -> list[tuple[dict[str, object], float]]:
    """Return what each stretch noted of itself and its seconds, oldest first."""
    stretches = []
    for path in sorted((run / "events").glob("*.jsonl")):
        with canon.reader(path) as handle:
            for line in handle.readlines(1 << 16):
                try:
                    event = canon.loads(line)
                except ValueError:
                    continue  # torn
                if event.get("event") == EVENT:
                    own = {name: event.get(name) for name in ("shard", "left", "job")}
                    stretches.append((own, max(path.stat().st_mtime - _started(path.name), 0.0)))
    return stretches
