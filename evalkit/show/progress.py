"""How far a run is: what `plan` prints, what `status` answers, and the report of a run without a
record.

It reads the run's folder alone: its plan, its journal, its events.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.base import canon, lease
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify.plain import results_in
from evalkit.plan import store
from evalkit.plan.types import BatchEntry
from evalkit.record import journal
from evalkit.record.reading.evidence.plan import MAX_PLAN
from evalkit.record.reading.folder import BROKEN, Folder, MiB
from evalkit.run import execute


def show_plan(folder: Path, console: Console) -> None:
    """Print what a plan will compute: its level, its batches, and the longest of them."""
    body = canon.read_json(folder / "plan.json")
    unique = canon.read_json(folder / "run.json")["unique_tokens"]
    batches, figures, policy = body["batches"], store.figures(body), body["policy"]
    requests = {(b["task"], t[-1].partition("#")[0]) for b in batches for t in b["targets"]}
    longest = max(batches, key=lambda batch: batch["cost"])
    padding = 100 * figures.padding / max(figures.computed, 1)
    rows: dict[str, str] = {
        "level": body["level"],
        "requests": f"{len(requests):,}",
        "batches": f"{figures.batches:,}, and {figures.trunks:,} shared prefixes",
        "computed": f"{figures.computed:,} tokens, {figures.computed / max(unique, 1):.3f} times"
        f" the {unique:,} unique ones; {padding:.1f}% is padding",
    }
    if policy.get("memory"):  # a plan for GPUs
        rows["for"] = (
            f"GPUs of {policy['memory']} GB: {policy['max_tokens']:,} tokens a pass, up to"
            f" {policy['max_slots']} texts at once that grow to {policy['max_cache']:,} tokens in"
            f" all, shared prefixes of up to {policy['max_trunk']:,}"
        )
    rows["longest"] = f"a batch of {escape(longest['task'])}: {figures.longest:,} tokens"
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is. `state`: finished, running, unfinished, or imported, which has no batches;
    `devices`: what computes or computed them, once something has."""

    state: str
    progress: execute.Progress | None
    devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.progress is None:
            return "imported: lm-eval's own results, finished where they came from"
        done, batches = self.progress.done, self.progress.batches
        share = f"{100 * self.progress.share:.0f}% of the work, {done:,} of {batches:,} batches"
        left = "the same eval command continues it"
        if done == batches:  # of a suite with programs no command but this one goes on
            left = "`evalkit finish` scores it, and `evalkit grade` if it asks for programs"
        endings = {"finished": ", record written", "unfinished": f"; {left}"}
        return "\n".join([f"{self.state}: {share}{endings.get(self.state, '')}", *self.devices])

    def to_json(self) -> dict[str, object]:
        """Return its fields for programs."""
        progress = None if self.progress is None else asdict(self.progress)
        share = None if self.progress is None else self.progress.share
        return {"state": self.state, "share": share, "progress": progress,
                "devices": list(self.devices)}  # fmt: skip


def status(folder: Path) -> Standing:
    """Return how far a run is; EvalkitError (3) where there is none."""
    if not (folder / "run.json").is_file():
        if results_in(folder):
            return Standing("imported", None)
        raise EvalkitError("there is no run here", where=str(folder), code=Exit.MISSING)
    return Standing(_state(folder), execute.progress(folder), tuple(_devices(folder)))


def _state(folder: Path) -> str:
    if (folder / "record.json").is_file():
        return "finished"
    return "running" if lease.is_held(folder) else "unfinished"


def _devices(folder: Path) -> list[str]:
    lines: dict[str, None] = {}
    for path in sorted((folder / "events").glob("*.jsonl")):
        with canon.reader(path) as handle:
            for raw in handle:
                if b'"event":"device"' in raw.replace(b" ", b""):
                    with suppress(ValueError, LookupError, TypeError):  # a torn line
                        lines[str(canon.loads(raw)["line"])] = None
    return list(lines)


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """How many of a leaf task's requests are answered."""

    name: str
    answered: int
    requests: int

    @property
    def share(self) -> float:
        """The answered part."""
        return self.answered / max(self.requests, 1)


def unfinished_page(run: Path) -> dict[str, object]:
    """Return what the template `unfinished.html.j2` shows: the model, the suite, and how many
    requests are answered. There are no scores, since lm-eval needs all answers for them.
    EvalkitError (3) where there is no planned run."""
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
    tasks_done = _by_task(batches, done.batches)
    return {
        "title": f"{facts['model']} on {facts['suite']}, unfinished",
        "facts": facts,
        "tasks": tasks,
        "running": lease.is_held(run),
        "progress": tasks_done,
        "answered": sum(task.answered for task in tasks_done),
        "requests": sum(task.requests for task in tasks_done),
        "set_aside": len(done.set_aside),
        "share": sum(int(batches[name]["cost"]) for name in done.batches if name in batches)
        / max(sum(int(batch["cost"]) for batch in batches.values()), 1),
    }


def _by_task(batches: Mapping[str, BatchEntry], done: set[str]) -> list[TaskProgress]:
    counts: dict[str, list[int]] = {}
    for name, batch in batches.items():
        count = counts.setdefault(str(batch["task"]), [0, 0])
        count[0] += len(batch["targets"]) if name in done else 0
        count[1] += len(batch["targets"])
    return [TaskProgress(name, *count) for name, count in sorted(counts.items())]
