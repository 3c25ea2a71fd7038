"""What the report of a run without a record shows: the model, the suite, and how many requests are
answered. It has no scores, since lm-eval needs all answers for them, and says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import lease
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record import journal
from evalkit.record.reading.evidence.plan import MAX_PLAN
from evalkit.record.reading.folder import BROKEN, Folder, MiB


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of a leaf task's requests are answered."""

    name: str
    answered: int
    requests: int

    @property
    def share(self) -> float:
        """The answered part."""
        return self.answered / max(self.requests, 1)


def context(run: Path) -> dict[str, object]:
    """Return what the template `unfinished.html.j2` shows; EvalkitError (3) where there is no
    run."""
    folder = Folder(run)
    try:
        body = folder.json("run.json", MiB)
        batches = {batch["id"]: batch for batch in folder.json("plan.json", MAX_PLAN)["batches"]}
        tasks = [item["task"] for item in body["suite"]["tasks"]]
        facts = {"model": body["model"]["reference"], "suite": body["suite"]["name"],
                 "run": body["ids"]["run"], "created": body["created"]}  # fmt: skip
    except BROKEN as error:
        raise EvalkitError(
            "there is neither a record nor a planned run", where=str(run), code=Exit.MISSING
        ) from error
    done = journal.done(run / "journal", facts["run"], batches)
    progress = _progress(batches, done.batches)
    return {
        "title": f"{facts['model']} on {facts['suite']}, unfinished",
        "facts": facts,
        "tasks": tasks,
        "running": lease.is_held(run),
        "progress": progress,
        "answered": sum(task.answered for task in progress),
        "requests": sum(task.requests for task in progress),
        "set_aside": len(done.set_aside),
        "share": sum(int(batches[name]["cost"]) for name in done.batches if name in batches)
        / max(sum(int(batch["cost"]) for batch in batches.values()), 1),
    }


def _progress(batches: dict[str, Any], done: set[str]) -> list[Progress]:
    counts: dict[str, list[int]] = {}
    for name, batch in batches.items():
        count = counts.setdefault(str(batch["task"]), [0, 0])
        count[0] += len(batch["targets"]) if name in done else 0
        count[1] += len(batch["targets"])
    return [Progress(name, *count) for name, count in sorted(counts.items())]
