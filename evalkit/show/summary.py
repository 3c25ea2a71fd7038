"""What a person sees at the end of a run: scores, coverage, health, texts, verdict.

Made from the record alone.
"""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.inputs.chat import texts
from evalkit.inputs.chat.texts import TextsEntry
from evalkit.record.reading import score_table
from evalkit.record.reading.identity import read_record
from evalkit.record.reading.score_table import Score
from evalkit.record.sections import Health, TaskResult
from evalkit.record.types import Record
from evalkit.show import published


def show(folder: Path, console: Console) -> int:
    """Print a finished run's scores, coverage, health and verdict; return verify's exit code."""
    from evalkit.judge.verify import verify

    record = read_record(folder)
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
    for line in _texts(record):
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


def _scores(record: Record) -> Table:
    """Return the table of the suite's members with their intervals, subgroups below their group."""
    title = escape(f"{score_table.model_name(record)} on {record['suite']['name']}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "shots", "metric"):
        table.add_column(name, overflow="fold")
    figures = _published(record)
    heads = ("score", "± stderr", "95% interval", "documents", *(["published"] if figures else []))
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
            *([figures.get((score.task, score.metric_name), "")] if figures else []),
        )
    return table


def _published(record: Record) -> dict[tuple[str, str], str]:
    """Return the published figures of the model as text; ≠ marks one of another protocol."""
    figures: dict[tuple[str, str], str] = {}
    for match in published.matches(record):
        mark = "≠ " if match.differs else ""
        figures.setdefault((match.row.task, match.row.metric), f"{mark}{match.row.value:.4f}")
    return figures


def _health(health: Health) -> str:
    counts = [
        f"{name.replace('_', ' ')} unknown" if isinstance(count, dict)
        else f"{count:,} {name.replace('_', ' ')}"
        for name, count in health.items()
        if count
    ]  # fmt: skip
    return ", ".join(counts) or "nothing to report"


def _texts(record: Record) -> Iterator[str]:
    """Yield a line for each task and group whose texts were cut or spent tokens on thinking."""
    for score in score_table.scores(record):
        if not score.headline:
            continue
        leaves = [record["tasks"][name] for name in score_table.below(record, score.task)]
        counts = [leaf["texts"] for leaf in leaves if "texts" in leaf]
        parts = [*_cut(score, leaves, counts), *_thinking(counts)]
        if parts:
            yield f"{score.task}: {'; '.join(parts)}"


def _cut(score: Score, leaves: list[TaskResult], counts: list[TextsEntry]) -> Iterator[str]:
    cuts = [count["cut"] for count in counts]
    known = [cut for cut in cuts if isinstance(cut, int)]
    cut = sum(known)
    if not cut or len(known) < len(cuts):
        return
    total = sum(count["count"] for count in counts)
    yield f"{cut:,} of {total:,} texts were cut at their longest"
    if (ended := texts.of_group(leaves, score.metric)) is not None:
        value, num_ended, documents = ended
        yield (
            f"{score.name} is {value:.4f} of the {num_ended:,} documents whose texts ended,"
            f" {score.value:.4f} of all {documents:,}"
        )
    elif any(count["ended"] and not count["ended"]["n"] for count in counts):
        yield "no document's texts ended"


def _thinking(counts: list[TextsEntry]) -> Iterator[str]:
    if not any("endless" in count for count in counts):
        return
    tokens = [count["tokens"] for count in counts]
    if known := [spent for spent in tokens if "thinking" in spent]:
        thinking = sum(spent["thinking"] for spent in known)
        answering = sum(spent["answering"] for spent in known)
        yield f"{thinking:,} tokens of thinking, {answering:,} of answers"
    if endless := sum(count.get("endless", 0) for count in counts):
        yield f"{endless:,} texts never stopped thinking and count as empty"


def notes(record: Record) -> list[str]:
    """Return what a reader of the scores should know about how the model was asked."""
    lines = []
    if not record["engine"]["bit_repeatable"]:
        lines.append(f"not bit-repeatable: {record['engine']['name']} computed the answers")
    if record["model"]["chat_template"] and not record["suite"]["apply_chat_template"]:
        lines.append("the model has a chat template, and the suite does not apply it")
    kernels = [k for s in record["segments"] if isinstance(s.get("kernels"), list)
               for k in s["kernels"]]  # fmt: skip
    lines += [f"computed otherwise than stored: {k}" for k in dict.fromkeys(kernels)
              if "dequantised" in k]  # fmt: skip
    if own := record["model"].get("generation"):
        lines.append(f"the model's own generation settings count: {', '.join(sorted(own))}")
    for name, ids in sorted(record["model"].get("special_tokens", {}).items()):
        lines.append(f"the tokenizer's {name} is token {ids['tokenizer']}, the model's config says"
                     f" {ids['config']}")  # fmt: skip
    if text := record["model"].get("tokenizer_reads_otherwise"):
        lines.append(f"transformers' tokenizer reads {text!r} otherwise than its tokenizer.json"
                     " says, for lm-eval as well")  # fmt: skip
    if clock := record["suite"].get("clock"):
        lines.append(f"the chat template reads the clock, which stood at {clock}")
    for leaf, source in sorted(record["suite"]["shots"].items()):
        if "unknown" in source:
            lines.append(f"the rows that {leaf}'s shots are drawn from are not pinned:"
                         f" {source['unknown']}")  # fmt: skip
    for name, item in sorted(record["suite"]["datasets"].items()):
        if isinstance(item["revision"], dict):
            lines.append(f"the revision of {name} is not pinned, its rows are:"
                         f" {item['revision']['unknown']}")  # fmt: skip
    return lines


def _show_chance(record: Record, console: Console) -> None:
    """Compare a demo's scores with guessing: the demo's own model is random."""
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
