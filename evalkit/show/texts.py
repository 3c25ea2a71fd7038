"""What a person sees of a run's texts at its end: how many were cut and what those score that
ended by themselves, and what was spent on thinking.
"""

from collections.abc import Iterator
from typing import Any

from evalkit.base import canon
from evalkit.inputs.chat import texts
from evalkit.record.reading.scores import score_table

Value = dict[str, Any]


def lines(record: Value) -> Iterator[str]:
    """A line for each task and group of the score table, where there is something to say."""
    for score in score_table.scores(record):
        if not score.headline:
            continue
        below = [record["tasks"][name] for name in score_table.below(record, score.task)]
        found = [leaf["texts"] for leaf in below if "texts" in leaf]
        said = [*_cut(score, below, found), *_thought(found)]
        if said:
            yield f"{score.task}: {'; '.join(said)}"


def _cut(score: score_table.Score, below: list[Value], found: list[Value]) -> Iterator[str]:
    unknown = next((each["cut"] for each in found if isinstance(each["cut"], dict)), None)
    cut = 0 if unknown else sum(each["cut"] for each in found)
    if not cut:
        return
    yield f"{cut:,} of {sum(each['count'] for each in found):,} texts were cut at their longest"
    if (ended := texts.of_group(below, score.metric)) is not None:
        value, count, documents = ended
        yield (
            f"{score.name} is {value:.4f} of the {count:,} documents whose texts ended,"
            f" {canon.number(score.value):.4f} of all {documents:,}"
        )
    elif any(each["ended"] and not each["ended"]["n"] for each in found):
        yield "no document's texts ended"


def _thought(found: list[Value]) -> Iterator[str]:
    if not any("endless" in each for each in found):
        return
    counted = [each["tokens"] for each in found if "thinking" in each["tokens"]]
    if counted:
        thinking, answering = (sum(each[k] for each in counted) for k in ("thinking", "answering"))
        yield f"{thinking:,} tokens of thinking, {answering:,} of answers"
    if endless := sum(each.get("endless", 0) for each in found):
        yield f"{endless:,} texts never stopped thinking and count as empty"
