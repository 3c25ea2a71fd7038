"""results/audit.jsonl: one line for every run that finished or failed, chained by hash.

Each line holds the digest of the line before it, so a line that is removed or altered later shows.
Written under a lock, by `eval` and `finish` only.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from evalkit.base import canon, lease
from evalkit.base.events import now
from evalkit.record.types import Ids

SCHEMA = "evalkit/judge/audit/1"
FIRST = "sha256:" + "0" * 64
NAME = "audit.jsonl"


class LogLine(TypedDict, total=False):
    """What a line of the log may hold and readers ask for."""

    before: str
    status: str
    execution: str
    ids: Ids
    record: str
    run: str


def append(out: Path, status: str, fields: Mapping[str, object]) -> None:
    """Add a line about a run (`status`: finished or failed) to the log of a results folder."""
    with lease.held(out, ".audit.lock", wait_s=30.0):
        path = out / NAME
        lines = path.read_bytes().splitlines() if path.is_file() else []
        before = canon.digest_bytes(lines[-1]) if lines else FIRST
        log = canon.Appender(path)
        log.append({"schema": SCHEMA, "time": now(), "status": status, "before": before, **fields})
        log.close()


def has_finished(out: Path, execution: str) -> bool:
    """Whether the log says that this execution finished."""
    path = out / NAME
    if not path.is_file():
        return False
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, AttributeError, RecursionError):  # a torn line says nothing
            entry = canon.loads(line)
            if entry.get("execution") == execution and entry.get("status") == "finished":
                return True
    return False


def executions_of(plan: str, lines: Iterable[bytes]) -> list[str]:
    """The executions of a plan that some lines tell of, each once, in order."""
    found: dict[str, None] = {}
    for raw in lines:
        with suppress(ValueError, AttributeError, RecursionError):  # no line tells nothing
            line = canon.loads(raw)
            if line.get("ids", {}).get("plan") == plan:
                found[str(line.get("execution"))] = None
    return list(found)


def broken_at(path: Path) -> int | None:
    """The number of the first line whose `before` is not the line before it; None when whole. A
    line that was torn, as its writer died in it, is bound by the line behind it like any other."""
    before, torn = FIRST, 0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if canon.loads(line)["before"] != before:
                return torn or number
            torn = 0
        except (ValueError, KeyError, TypeError, RecursionError):
            torn = torn or number
        before = canon.digest_bytes(line)
    return None
