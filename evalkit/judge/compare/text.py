"""Writes a comparison as Markdown, which can be read in a terminal as it stands, and as JSON for
programs.

The Markdown shows the leaf tasks whose scores moved most; the JSON has all of them.
"""

import dataclasses
from collections.abc import Collection, Sequence

from evalkit.base import canon, statistics
from evalkit.judge.compare import Comparison, Excerpt, Kept, Pair, Row, Side
from evalkit.judge.compare.pairs import MIN_CLUSTERS
from evalkit.record.reading import output
from evalkit.record.reading.findings import few, shown

MOVED = 8  # leaf tasks that the Markdown shows
_HEAD = ("task", "metric", "documents", "{a}", "{b}", "{b} - {a} (95% interval)", "lost", "gained")
_TOP = (*_HEAD, "p", "Holm", "detectable", "so")
_LEAF = (*_HEAD, "p")


def _word(text: object) -> str:
    return output.markdown(shown(text))


def _words(names: Collection[object]) -> str:
    return output.markdown(few(names))


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown, every pair under its own heading."""
    parts = [_pair(pair, comparison) for pair in comparison.pairs]
    return "\n\n".join(parts) + "\n"


def to_json(comparison: Comparison) -> str:
    """Return the whole comparison as canonical JSON, with each row's interval."""
    body = dataclasses.asdict(comparison)
    for entries, pair in zip(body["pairs"], comparison.pairs, strict=True):
        for entry, row in zip(entries["rows"], pair.rows, strict=True):
            entry["interval"] = row.difference.interval() if row.difference.error else None
    return canon.dumps(body)


def _pair(pair: Pair, comparison: Comparison) -> str:
    a, b = pair.before.label, pair.after.label
    lines = [f"# {b} against {a}", "", _side(pair.before), _side(pair.after)]
    lines += [f"- note: {_word(note)}" for note in pair.notes]
    groups = [row for row in pair.rows if row.top or row.is_group]
    rows = [_cells(row, a, b) for row in groups]
    lines += ["", *table([name.format(a=a, b=b) for name in _TOP], rows, left=2)]
    lines += ["", *_method(comparison.tests), *_few(groups)]
    lines += _moved(pair)
    if pair.kept:
        lines += ["", f"## What {b} kept of {a}", "", *_kept(pair.kept)]
    lines += _flips(pair)
    if pair.left_out:
        reasons = dict.fromkeys(item.reason for item in pair.left_out)
        lines += ["", "## Not compared", ""]
        for reason in reasons:
            tasks = [item.task for item in pair.left_out if item.reason == reason]
            lines.append(f"- {_words(tasks)}: {_word(reason)}")
    return "\n".join(lines)


def _side(side: Side) -> str:
    run = f", run {side.ids['run'][7:19]}" if side.ids else ""
    return f"- {side.label}: {_word(side.model)} ({side.kind}{run}), {_word(side.path)}"


def _method(tests: int) -> list[str]:
    return [
        "p: McNemar's exact test for a leaf task of zeros and ones, else Student's t on paired",
        f"differences, clustered by leaf task in a group of {MIN_CLUSTERS} or more, else over"
        f" documents. Holm: adjusted over the {tests} headline tests.",
        f"detectable: the smallest true difference found with {statistics.POWER:.0%} probability"
        f" at {statistics.ALPHA:.0%}.",
    ]


def _few(rows: Sequence[Row]) -> list[str]:
    """Name the groups that have too few leaf tasks to be clustered by them."""
    names = [row.task for row in rows if row.is_group and row.headline
             and len(row.leaves) < MIN_CLUSTERS]  # fmt: skip
    if not names:
        return []
    return [
        f"few leaf tasks: {_words(names)}, tested over documents; leaf tasks that move unlike each"
        " other would make the interval wider."
    ]


def _cells(row: Row, a: str, b: str) -> list[str]:
    return [
        *_leaf_cells(row)[:-1],
        p_value(row.p),
        p_value(row.adjusted) if row.adjusted is not None else "",
        _detectable(row),
        _conclusion(row, a, b) if row.top and row.headline else "",
    ]


def _leaf_cells(row: Row) -> list[str]:
    unit = " nats" if row.nats else ""
    interval = row.difference.interval()
    known = interval is not None and row.difference.error  # 0: nothing moved, none is known
    span = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval and known else ""
    return [
        _word(row.task),
        _word(row.metric.removesuffix(",none")),
        f"{row.n:,}",
        f"{row.before:.4f}",
        f"{row.after:.4f}",
        f"{row.difference.value:+.4f}{unit}{span}",
        "" if row.lost is None else f"{row.lost:,}",
        "" if row.gained is None else f"{row.gained:,}",
        p_value(row.p),
    ]


def _detectable(row: Row) -> str:
    if row.detectable is None:
        return ""
    return "none" if row.lost is not None and row.detectable > 1 else f"{row.detectable:.4f}"


def _conclusion(row: Row, a: str, b: str) -> str:
    if not row.difference.value and not row.lost and not row.gained and not row.difference.error:
        return "equal"
    if row.adjusted is None:
        return "no error to judge by"
    if row.adjusted >= statistics.ALPHA:
        return "not told apart"
    return f"{b} better" if (row.difference.value > 0) == row.higher_is_better else f"{b} worse"


def _moved(pair: Pair) -> list[str]:
    """Show the leaf tasks below groups that moved most, by their p-values."""
    leaves = [row for row in pair.rows if row.headline and not row.top and not row.is_group]
    moved = [row for row in leaves if row.difference.value]
    moved.sort(key=lambda row: (1.0 if row.p is None else row.p, row.task))
    if not moved:
        return []
    a, b = pair.before.label, pair.after.label
    head = [name.format(a=a, b=b) for name in _LEAF]
    note = f"{len(moved):,} of {len(leaves):,} leaf tasks moved; "
    note += "those that moved most" if len(moved) > MOVED else "their p-values are not adjusted"
    return ["", "## Leaf tasks", "", note, "",
            *table(head, [_leaf_cells(row) for row in moved[:MOVED]], left=2)]  # fmt: skip


def _kept(kept: Sequence[Kept]) -> list[str]:
    head = ["task", "metric", "share kept", "95% interval", "chance", "drawn"]
    rows = []
    for entry in kept:
        share, span = "teacher is at chance", ""
        if entry.share is not None:
            share, span = f"{entry.share:.1%}", f"{entry.low:.1%} to {entry.high:.1%}"
        drawn = f"{entry.clusters:,}"
        rows.append([_word(entry.task), _word(entry.metric.removesuffix(",none")), share, span,
                     f"{entry.chance:.4f}", drawn])  # fmt: skip
    return [
        *table(head, rows, left=2), "",
        "Share: (student - chance) / (teacher - chance); interval by paired bootstrap over leaf"
        " tasks,",
        f"or over documents where there are fewer than {MIN_CLUSTERS}, seed {kept[0].seed}.",
    ]  # fmt: skip


def _flips(pair: Pair) -> list[str]:
    leaves = {row.task: row.n for row in pair.rows if not row.is_group}
    total = sum(leaves.values())
    if not pair.flips:
        return ["", f"No document of {total:,} scores otherwise."]
    lost = sum(flip.after < flip.before for flip in pair.flips)
    share = len(pair.flips) / max(total, 1)
    lines = [
        "", "## Flips", "",
        f"{len(pair.flips):,} of {total:,} documents ({share:.1%}) score otherwise:"
        f" {lost:,} lower, {len(pair.flips) - lost:,} higher.",
    ]  # fmt: skip
    for excerpt in pair.excerpts:
        lines += ["", *_excerpt(excerpt, pair.before.label, pair.after.label)]
    return lines


def _excerpt(excerpt: Excerpt, a: str, b: str) -> list[str]:
    flip = excerpt.flip
    return [
        f"- {_word(flip.task)} document {flip.doc_id}: {flip.before:g} -> {flip.after:g}",
        f"  - asked: {output.markdown(excerpt.question)}",
        f"  - right: {output.markdown(excerpt.target)}",
        f"  - {a}: {output.markdown(excerpt.answer_before)}",
        f"  - {b}: {output.markdown(excerpt.answer_after)}",
    ]


def p_value(p: float | None) -> str:
    """Return a p-value as people write it."""
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return a Markdown table whose columns line up; the first `left` columns are words."""
    cells = [list(head), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ) + " |"  # fmt: skip

    rule = ["-" * width if index < left else "-" * (width - 1) + ":"
            for index, width in enumerate(widths)]  # fmt: skip
    return [line(cells[0]), line(rule), *map(line, cells[1:])]
