"""Tells where a task failed while its answers were scored: its name, and the line that raised.

A task's metrics and functions are its author's code, or lm-eval's: what they raise is no bug of
evalkit, whose answers stay on the disk until the task is mended.
"""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness import index

_FIX = (
    "mend the task, then `evalkit finish RUN`: answers are kept, and count while prompts are equal"
)


class Scored:
    """A block in which a leaf task is scored; what it raises becomes an EvalkitError (1).

    Where several are: `each` of them is tried again by `alone`, to name the one that fails.
    """

    def __init__(
        self, name: str, include_path: Path | None, each: Sequence[str] = (),
        alone: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._name, self._own, self._each, self._alone = name, include_path, each, alone

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if not isinstance(error, Exception) or isinstance(error, EvalkitError):
            return
        for name in self._each:
            with Scored(name, self._own):
                self._alone(name)
        place = self._place(trace)
        if place is None:
            return  # neither the task nor lm-eval had a part in it: our own bug
        reason = (str(error).strip().splitlines() or [""])[0]
        raise EvalkitError(
            f"task '{self._name}' can't be scored: {type(error).__name__}: {reason}",
            where=place, fix=_FIX, code=Exit.FAILED,
        ) from None  # fmt: skip

    def _place(self, trace: TracebackType | None) -> str | None:
        """The last line of the task's own code, else of lm-eval's, on the way to the error."""
        found: dict[str, str] = {}
        harness = index.task_folder().resolve().parent
        for frame in traceback.extract_tb(trace):
            file = Path(frame.filename)
            if self._own is not None and file.is_relative_to(self._own):
                found["own"] = f"{file.relative_to(self._own)} line {frame.lineno}"
            elif file.resolve().is_relative_to(harness):
                inside = file.resolve().relative_to(harness.parent)
                found["harness"] = f"{inside} line {frame.lineno}"
        return found.get("own") or found.get("harness")
