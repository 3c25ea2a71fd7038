"""Tables for a task whose data is not there: every field that it reads (`bench.reads`), in rows.

That is a guess. A task whose code takes none of these rows can be told from its real data only.
"""

import sys
from collections.abc import Iterable
from typing import Any

from bench import reads
from bench.reads import ITEM, Shape

_PARTS = ("process_docs", "doc_to_text", "doc_to_target", "doc_to_choice", "description")
ROWS = 8


def tables(task: Any, more: Iterable[str], text: Any, split: str | None) -> Any:
    """What `datasets.load_dataset` returns to a task: the same rows as each of its splits, or as
    the one that it asks for. `more`: fields besides those that it is seen to read; `text`: what
    stands in fields of which nothing is known."""
    from datasets import Dataset, DatasetDict

    config = getattr(task, "config", None)
    shape = _of_config(config)
    if not shape.below and task is not None:
        reads.of_module(sys.modules[type(task).__module__].__file__ or "", shape)
    for name in more:
        shape.at((name,))
    count = max(ROWS, (getattr(config, "num_fewshot", None) or 0) + 2)
    table = Dataset.from_list(rows(shape, count, text))
    if split is not None:
        return table
    named = [getattr(config, f"{each}_split", None)
             for each in ("training", "validation", "test", "fewshot")]  # fmt: skip
    named += [getattr(getattr(config, "fewshot_config", None), "split", None)]
    names = {name for name in named if isinstance(name, str)} | {"train", "validation", "test"}
    return DatasetDict(dict.fromkeys(sorted(names), table))


def some_left(filtered: Any) -> Any:
    """`Dataset.filter` that keeps all rows where it would keep none: no invented row is of the
    subject that a task picks."""

    def some(table: Any, *arguments: Any, **named: Any) -> Any:
        return filtered(table, *arguments, **named) or table

    return some


def rows(shape: Shape, count: int, text: Any) -> list[dict[str, Any]]:
    """Return `count` documents of that shape; `text` is what their strings say."""
    names = sorted(name for name in shape.below if isinstance(name, str)) or ["text"]
    return [{name: shape.at((name,)).value(text, row) for name in names} for row in range(count)]


def _of_config(config: Any) -> Shape:
    """The shape of the rows that a task's config reads."""
    found = Shape()
    sources = (config, getattr(config, "fewshot_config", None))
    parts = [getattr(source, name, None) for source in sources for name in _PARTS]
    parts += [value for part in parts if isinstance(part, dict) for value in part.values()]
    for part in parts:
        if callable(part):
            reads.of_function(part, found)
        elif isinstance(part, str):
            reads.of_template(part, found)
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        _plain_column(config, name, found)
    return found


def _plain_column(config: Any, name: str, found: Shape) -> None:
    """A field that is named without a template: choices are a list, a choice's target a number."""
    part = getattr(config, name, None)
    bare = str(part).replace("{{", "").replace("}}", "").strip()
    if not isinstance(part, str) or not bare.isidentifier():
        return
    shape = found.at((bare,))
    if shape.below or shape.only is not None:
        return
    if name == "doc_to_choice":
        shape.at((ITEM,))
    elif name == "doc_to_target" and config.output_type == "multiple_choice":
        shape.only = 0
