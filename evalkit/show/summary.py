"""What a person sees at the end of a run, and what `status` answers.

Made from the record alone.
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
from evalkit.record.reading.scores import score_table
from evalkit.run import execute
from evalkit.show import texts
from evalkit.show.scores import published


def show(folder: Path, console: Console) -> int:
    """Print a finished run's score table, its coverage, its health, and what verify says; the
    exit code that verify has for it."""
    from evalkit.judge.verify import verify

    record = canon.read_json(folder / "record.json")
    console.print(_scores(record))
    documents = sum(task["n"] for task in record["tasks"].values())
    expected = sum(task["documents"] for task in record["tasks"].values())
    partial = " (PARTIAL: a limit was set)" if record["suite"]["partial"] else ""
    console.print(
        f"coverage  {len(record['tasks'])} leaf tasks, {documents:,} of {expected:,} documents"
        + partial,
        markup=False,
    )
    console.print(f"health    {_health(record['health'])}", markup=False)
    for line in texts.lines(record):
        console.print(f"texts     {line}", markup=False)
    for note in notes(record):
        console.print(f"note      {note}", markup=False)
    for match in published.matches(record):
        console.print(f"published {match}", markup=False)
    if record["suite"]["name"] == "demo":
        _show_chance(record, console)
    console.print(f"record    {folder / 'record.json'}", markup=False)
    report = verify(folder)
    console.print(f"verify    {report.lines()[-1]}", markup=False)
    return int(report.exit_code)


def _scores(record: dict[str, Any]) -> Table:
    """Top-level tasks and groups with their intervals, a group's subgroups below it."""
    title = escape(f"{score_table.model_name(record)} on {record['suite']['name']}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "shots", "metric"):
        table.add_column(name, overflow="fold")
    others = _published(record)
    heads = ("score", "± stderr", "95% interval", "documents", *(["published"] if others else []))
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for score in score_table.scores(record):
        first = score.is_first
        table.add_row(
            "  " * score.depth + escape(score.task) if first else "",
            score.shots if first else "",
            escape(score.name),
            f"{score.value:.4f}",
            f"{score.stderr:.4f}" if score.stderr else "",  # 0 is no error that is known
            "" if score.low is None else f"{score.low:.3f} to {score.high:.3f}",
            f"{score.count:,}" if first else "",
            *([others.get((score.task, score.metric.partition(",")[0]), "")] if others else []),
        )
    return table


def _published(record: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What others published of the same model, by task and metric; a figure of another protocol is
    marked as unlike."""
    found: dict[tuple[str, str], str] = {}
    for match in published.matches(record):
        mark = "≠ " if match.differs else ""
        found.setdefault((match.row.task, match.row.metric), f"{mark}{match.row.value:.4f}")
    return found


def _health(health: dict[str, Any]) -> str:
    found = [
        f"{name.replace('_', ' ')} unknown" if isinstance(count, dict)
        else f"{count:,} {name.replace('_', ' ')}"
        for name, count in health.items()
        if count
    ]  # fmt: skip
    return ", ".join(found) or "nothing to report"


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader of the scores should know of how the model was asked."""
    found = []
    if not record["engine"]["bit_repeatable"]:
        found.append(f"not bit-repeatable: {record['engine']['name']} computed the answers")
    if record["model"]["chat_template"] and not record["suite"]["apply_chat_template"]:
        found.append("the model has a chat template, and the suite does not apply it")
    kernels = [k for s in record["segments"] if isinstance(s.get("kernels"), list)
               for k in s["kernels"]]  # fmt: skip
    found += [f"computed otherwise than stored: {k}" for k in dict.fromkeys(kernels)
              if "dequantised" in k]  # fmt: skip
    if own := record["model"].get("generation"):
        found.append(f"the model's own generation settings count: {', '.join(sorted(own))}")
    for name, ids in sorted(record["model"].get("special_tokens", {}).items()):
        found.append(f"the tokenizer's {name} is token {ids['tokenizer']}, the model's config says"
                     f" {ids['config']}")  # fmt: skip
    if text := record["model"].get("tokenizer_reads_otherwise"):
        found.append(f"transformers' tokenizer reads {text!r} otherwise than its tokenizer.json"
                     " says, for lm-eval as well")  # fmt: skip
    if clock := record["suite"].get("clock"):
        found.append(f"the chat template reads the clock, which stood at {clock}")
    for leaf, source in sorted(record["suite"]["shots"].items()):
        if "unknown" in source:
            found.append(f"the rows that {leaf}'s shots are drawn from are not pinned:"
                         f" {source['unknown']}")  # fmt: skip
    for name, item in sorted(record["suite"]["datasets"].items()):
        if isinstance(item["revision"], dict):
            found.append(f"the revision of {name} is not pinned, its rows are:"
                         f" {item['revision']['unknown']}")  # fmt: skip
    return found


def _show_chance(record: dict[str, Any], console: Console) -> None:
    """Hold a demo's scores against what guessing gives: the demo's own model is random, so they
    must be that; another model may do better."""
    from evalkit.inputs.models.builtin.demo import CHANCE, at_chance

    is_random = record["model"]["reference"] == "demo"
    head = (
        "The demo's model is random, so it must score at chance:" if is_random else "By guessing:"
    )
    console.print(head, markup=False)
    for score in score_table.scores(record):
        chance = CHANCE.get(score.task)
        if chance is None or not score.headline:
            continue  # a subgroup, or somebody else's suite of that name
        verdict = (
            "at chance" if at_chance(score.value, score.stderr or 0, chance) else "NOT at chance"
        )
        if not is_random and verdict != "at chance":
            verdict = "above chance" if score.value > chance else "below chance"
        span = "" if score.low is None else f" ({score.low:.3f} to {score.high:.3f})"
        console.print(
            f"  {score.task:<14} {score.value:.3f}{span}, chance {chance:.3f}: {verdict}",
            markup=False,
        )


def show_plan(folder: Path, console: Console) -> None:
    """Print what a plan will compute: its level, its batches, and the longest of them."""
    body = canon.read_json(folder / "plan.json")
    console.print(_planned(body, canon.read_json(folder / "run.json")["unique_tokens"]))


def _planned(body: dict[str, Any], unique: int) -> Table:
    batches, found = body["batches"], store.figures(body)
    requests = {(b["task"], t[-1].partition("#")[0]) for b in batches for t in b["targets"]}
    longest = max(batches, key=lambda batch: batch["cost"])
    part = 100 * found.padding / max(found.computed, 1)
    rows = {
        "level": body["level"],
        "requests": f"{len(requests):,}",
        "batches": f"{found.batches:,}, and {found.trunks:,} shared prefixes",
        "computed": f"{found.computed:,} tokens, {found.computed / max(unique, 1):.3f} times the"
        f" {unique:,} unique ones; {part:.1f}% is padding",
        **_for_gpus(body["policy"]),
        "longest": f"a batch of {escape(longest['task'])}: {found.longest:,} tokens",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _for_gpus(policy: dict[str, int]) -> dict[str, str]:
    """What a plan for GPUs was made for."""
    if not policy.get("memory"):
        return {}
    return {
        "for": f"GPUs of {policy['memory']} GB: {policy['max_tokens']:,} tokens a pass, up to"
        f" {policy['max_slots']} texts at once that grow to {policy['max_cache']:,} tokens in all,"
        f" shared prefixes of up to {policy['max_trunk']:,}"
    }


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
        told = f"{100 * self.progress.share:.0f}% of the work, {done:,} of {batches:,} batches"
        ends = {
            "finished": ", record written",
            "unfinished": "; the same eval command continues it",
        }
        return "\n".join([f"{self.state}: {told}{ends.get(self.state, '')}", *self.devices])

    def to_json(self) -> dict[str, Any]:
        """Its fields for programs."""
        progress = None if self.progress is None else asdict(self.progress)
        share = None if self.progress is None else self.progress.share
        return {"state": self.state, "share": share, "progress": progress,
                "devices": list(self.devices)}  # fmt: skip


def status(folder: Path) -> Standing:
    """How far a run is; EvalkitError (3) where there is none."""
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
    """What the run's segments say that they compute on, each once."""
    lines: dict[str, None] = {}
    for path in sorted((folder / "events").glob("*.jsonl")):
        for raw in path.read_bytes().splitlines():
            if b'"event":"device"' in raw.replace(b" ", b""):
                with suppress(ValueError):  # torn
                    lines[str(canon.loads(raw)["line"])] = None
    return list(lines)
