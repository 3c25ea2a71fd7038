"""How far a run is: what `plan` prints of it, and what `status` answers.

Read from the run's folder alone: its plan, its journal, its events.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.base import canon, lease
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify.plain import results_in
from evalkit.plan import store
from evalkit.run import execute


def show_plan(folder: Path, console: Console) -> None:
    """Print what a plan will compute: its level, its batches, and the longest of them."""
    body = canon.read_json(folder / "plan.json")
    unique = canon.read_json(folder / "run.json")["unique_tokens"]
    batches, figures, policy = body["batches"], store.figures(body), body["policy"]
    requests = {(b["task"], t[-1].partition("#")[0]) for b in batches for t in b["targets"]}
    longest = max(batches, key=lambda batch: batch["cost"])
    padding = 100 * figures.padding / max(figures.computed, 1)
    rows = {
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
        endings = {
            "finished": ", record written",
            "unfinished": "; the same eval command continues it",
        }
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
    """Return what the run's segments say that they compute on, each device once."""
    lines: dict[str, None] = {}
    for path in sorted((folder / "events").glob("*.jsonl")):
        for raw in path.read_bytes().splitlines():
            if b'"event":"device"' in raw.replace(b" ", b""):
                with suppress(ValueError):  # a torn line
                    event: dict[str, Any] = canon.loads(raw)
                    lines[str(event["line"])] = None
    return list(lines)
