"""Figures as tables: in docs/speed.md between the markers of the command that wrote them, and as
JSON in bench/figures."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import ROOT
from evalkit.base import canon
from evalkit.base.machine import stamp

DOC = ROOT / "docs" / "speed.md"
FIGURES = ROOT / "bench" / "figures"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "simd": str(torch.backends.cpu.get_cpu_capability()),
        "python": platform.python_version(),
        "versions": stamp.versions(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def on(found: dict[str, Any]) -> str:
    """A machine in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['date']}, {found['cores']} cores of {found['cpu']} ({found['simd']}), Python"
        f" {found['python']}, {versions}."
    )


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median and, of several, the least and the greatest."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def publish(name: str, text: str, figures: dict[str, Any], page: Path | None = None) -> None:
    """Put a command's text into the docs between its markers, and its figures beside it."""
    write(name, text, page or DOC)
    canon.write_atomic(FIGURES / f"{name}.json", json.dumps(figures, indent=1) + "\n")


def write(name: str, text: str, page: Path) -> None:
    """Put a command's text into a page between its markers."""
    opening, closing = f"<!-- made by make {name} -->", f"<!-- end of make {name} -->"
    before, rest = page.read_text("utf-8").split(opening)
    after = rest.split(closing)[1]
    canon.write_atomic(page, f"{before}{opening}\n\n{text}\n\n{closing}{after}")
