"""Which documents are among the worked examples in their own prompts.

lm-eval keeps a document out of its own shots only where the split that they are drawn from is named
and is the tested one. Where it is not named, where several splits hold the same row, or where a
sampler is the task's own, a prompt may hold the answer that it asks for. The scores are lm-eval's
all the same; that it happened is counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def seen(task: Any) -> Iterator[list[Any]]:
    """Within the block, the documents for which lm-eval draws themselves as shots are put into the
    list, as they come."""
    leaking: list[Any] = []
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        yield leaking
        return
    drawn: list[Any] = []
    sample, context = sampler.sample, task.fewshot_context

    def noted(*args: Any, **kwargs: Any) -> Any:
        drawn[:] = found = list(sample(*args, **kwargs))
        return found

    def watched(doc: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.clear()
        made = context(doc, *args, **kwargs)
        if any(shot is doc or shot == doc for shot in drawn):
            leaking.append(doc)
        return made

    sampler.sample, task.fewshot_context = noted, watched
    try:
        yield leaking
    finally:
        del sampler.sample, task.fewshot_context
