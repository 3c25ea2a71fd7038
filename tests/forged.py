"""Records that are consistent in themselves and wrong: answers planted in a journal before a run is
scored, so that every digest and score follows from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import support

from evalkit.base import canon
from evalkit.record import journal

Plant = Callable[[str, dict[str, Any]], None]


def planted(folder: Path, plant: Plant) -> Path:
    """A finished demo run whose answers `plant` has changed, each given with its request id."""
    run = support.executed(folder)
    _plant(run, plant)
    support.call("finish", run).done()
    return run


def _plant(run: Path, plant: Plant) -> None:
    for path in sorted((run / "journal").glob("*.jsonl")):
        lines = []
        for line in path.read_text().splitlines():
            body = canon.loads(line)
            for request, answer in body["answers"].items():
                plant(request, answer)
            body["sha256"] = journal.checksum(body)
            lines.append(canon.dumps(body) + "\n")
        path.write_text("".join(lines))
