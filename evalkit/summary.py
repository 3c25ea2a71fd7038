"""What a person sees at the end of a run, and what `status` answers.

Made from the record alone.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit import canon, execute, lease, plan, published
from evalkit.errors import EvalkitError, Exit


def show(folder: Path, console: Console) -> int:
    """Print a finished run's score table, its coverage, its health, and what verify says; the
    exit code that verify has for it."""
    from evalkit.verify import verify

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
    """Top-level tasks and groups with standard errors, a group's subgroups below it."""
    title = escape(f"{record['model']['reference']} on {record['suite']['name']}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "shots", "metric"):
        table.add_column(name, overflow="fold")
    others = _published(record)
    for name in ("score", "± stderr", "documents", *(["published"] if others else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for depth, name in rows(record):
        result = record["groups"].get(name) or record["tasks"][name]
        for index, (metric, value) in enumerate(sorted(result["metrics"].items())):
            stderr = value["stderr"]
            table.add_row(
                "  " * depth + escape(name) if not index else "",
                shots(record, name) if not index else "",
                escape(metric.removesuffix(",none")),
                f"{canon.number(value['value']):.4f}",
                f"{canon.number(stderr):.4f}" if stderr is not None else "",
                f"{result['n']:,}" if not index else "",
                *([others.get((name, metric.partition(",")[0]), "")] if others else []),
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


def rows(record: dict[str, Any]) -> list[tuple[int, str]]:
    """(depth, name) of each row: all groups, and the leaf tasks that are in no group."""
    children = {c for group in record["groups"].values() for c in group["subtasks"]}
    found: list[tuple[int, str]] = []

    def add(name: str, depth: int, above: tuple[str, ...] = ()) -> None:
        found.append((depth, name))
        for child in record["groups"].get(name, {"subtasks": []})["subtasks"]:
            if child in record["groups"] and child not in (name, *above):
                add(child, depth + 1, (name, *above))

    for name in [*record["groups"], *record["tasks"]]:
        if name not in children:
            add(name, 0)
    return _by_suite(found, record)


def _by_suite(rows: list[tuple[int, str]], record: dict[str, Any]) -> list[tuple[int, str]]:
    """The rows with the suite's members in the suite's order, each followed by its subgroups."""
    order = {item["task"]: index for index, item in enumerate(record["suite"]["tasks"])}
    blocks: list[list[tuple[int, str]]] = []
    for row in rows:
        if row[0] == 0:
            blocks.append([])
        blocks[-1].append(row)
    blocks.sort(key=lambda block: order.get(block[0][1], len(order)))
    return [row for block in blocks for row in block]


def below(record: dict[str, Any], name: str) -> list[str]:
    """The leaf tasks of a task or group, each once; a group inside itself is passed over."""
    found: dict[str, None] = {}
    pending, seen = [name], set()
    while pending:
        each = pending.pop(0)
        if each in seen:
            continue
        seen.add(each)
        if each in record["tasks"]:
            found[each] = None
        else:
            pending = [*record["groups"].get(each, {"subtasks": []})["subtasks"], *pending]
    return list(found)


def shots(record: dict[str, Any], name: str) -> str:
    """A task's shots, or a group's where all its leaf tasks agree."""
    found = {str(record["tasks"][leaf]["num_fewshot"]) for leaf in below(record, name)}
    return found.pop() if len(found) == 1 else "mixed"


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
    for leaf, source in sorted(record["suite"]["shots"].items()):
        if "unknown" in source:
            found.append(f"the rows that {leaf}'s shots are drawn from are not pinned:"
                         f" {source['unknown']}")  # fmt: skip
    return found


def _show_chance(record: dict[str, Any], console: Console) -> None:
    """Hold a demo's scores against what guessing gives: the demo's own model is random, so they
    must be that; another model may do better."""
    from evalkit.demo import CHANCE, at_chance

    is_random = record["model"]["reference"] == "demo"
    head = (
        "The demo's model is random, so it must score at chance:" if is_random else "By guessing:"
    )
    console.print(head, markup=False)
    for name, chance in CHANCE.items():
        if name not in record["groups"] and name not in record["tasks"]:
            continue  # somebody's own suite of that name
        result = record["groups"].get(name) or record["tasks"][name]
        metric = next(iter(sorted(result["metrics"])))
        value = result["metrics"][metric]
        score, stderr = canon.number(value["value"]), canon.number(value["stderr"] or 0)
        verdict = "at chance" if at_chance(score, stderr, chance) else "NOT at chance"
        if not is_random and verdict != "at chance":
            verdict = "above chance" if score > chance else "below chance"
        console.print(f"  {name:<14} {score:.3f} ± {stderr:.3f}, chance {chance:.3f}: {verdict}",
                      markup=False)  # fmt: skip


def show_plan(folder: Path, console: Console) -> None:
    """Print what a plan will compute: its level, its batches, and the longest of them."""
    body = canon.read_json(folder / "plan.json")
    console.print(_planned(body, canon.read_json(folder / "run.json")["unique_tokens"]))


def _planned(body: dict[str, Any], unique: int) -> Table:
    batches, found = body["batches"], plan.figures(body)
    requests = {(b["task"], t[-1].partition("#")[0]) for b in batches for t in b["targets"]}
    longest = max(batches, key=lambda batch: batch["cost"])
    part = 100 * found.padding / max(found.computed, 1)
    rows = {
        "level": body["level"],
        "requests": f"{len(requests):,}",
        "batches": f"{found.batches:,}, and {found.trunks:,} shared prefixes",
        "computed": f"{found.computed:,} tokens, {found.computed / max(unique, 1):.3f} times the"
        f" {unique:,} unique ones; {part:.1f}% is padding",
        "longest": f"a batch of {escape(longest['task'])}: {found.longest:,} tokens",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def status(folder: Path) -> str:
    """One line: how many of a run's batches are done, and whether it has its record."""
    if not (folder / "run.json").is_file():
        raise EvalkitError("there is no run here", where=str(folder), code=Exit.MISSING)
    done, total = execute.progress(folder)
    share = f"{done:,} of {total:,} batches answered ({100 * done / max(total, 1):.0f}%)"
    if (folder / "record.json").is_file():
        return f"finished: {share}, record written"
    if lease.is_held(folder):
        return f"running: {share}"
    return f"unfinished: {share}; the same eval command continues it"
