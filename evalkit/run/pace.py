"""How fast a run's stretches went, and whether a shard gets anywhere.

Seen from what they left: journals and events. A shard whose longest wait for a batch is longer than
the time that it is given starts, is stopped and starts again for as long as it is let, and answers
nothing; here that is noticed before its weights are loaded once more.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.plan.shards import START_S, Shard
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.run import folder
from evalkit.run.folder import Run

EVENT = "shard"  # what a stretch logs at its start: its shard, what of it is left, which job it is
STARTS = 2  # that may end without a batch


def speeds(run: Path, least_s: float = 0.0) -> list[float]:
    """Tokens a second that each of a run's writers has answered, from its start on; of those that
    worked for `least_s` at least."""
    found, plan = folder.read(run), Plan(run)
    costs = {entry["id"]: entry["cost"] for entry in plan.body["batches"]}
    speeds = []
    for path in (run / "journal").glob("*.jsonl"):
        seconds = path.stat().st_mtime - _started(path.name)
        told = [line for _, _, line in journal.lines(path) if line]
        mine = found.body["ids"]["run"]
        tokens = sum(costs.get(line["batch"], 0) for line in told if line["run"] == mine)
        if tokens and seconds > least_s:
            speeds.append(tokens / seconds)
    return speeds


def _started(segment: str) -> float:
    """When a segment began, in seconds since 1970, by its name."""
    return datetime.strptime(segment[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def noted(shard: Shard, todo: list[int], environment: Mapping[str, str]) -> dict[str, Any]:
    """What a stretch notes of itself. `todo`: the batches that its shard has left."""
    job = environment.get("SLURM_ARRAY_JOB_ID", "")
    return {"shard": str(shard), "left": len(todo), "job": job}


def check(run: Run, plan: Plan, shard: Shard, todo: list[int]) -> None:
    """EvalkitError (1) where this job has started a shard twice already and no batch was answered
    by it since; only asked where Slurm says that it is a restart."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    if not todo or not restarts.isdecimal() or int(restarts) < STARTS:
        return
    now = noted(shard, todo, os.environ)
    mine = [span for event, span in _stretches(run.folder) if event == now]
    spans = [span for span in mine if span >= START_S][-STARTS:]  # others were hardly started
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


def _stretches(run: Path) -> list[tuple[dict[str, Any], float]]:
    """What each stretch noted of itself, with the seconds that it lasted, oldest first."""
    found = []
    for path in sorted((run / "events").glob("*.jsonl")):
        with canon.reader(path) as handle:
            for line in handle.readlines(1 << 16):
                try:
                    event = canon.loads(line)
                except ValueError:
                    continue  # torn
                if event.get("event") == EVENT:
                    own = {name: event.get(name) for name in ("shard", "left", "job")}
                    found.append((own, max(path.stat().st_mtime - _started(path.name), 0.0)))
    return found
