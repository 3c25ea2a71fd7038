"""The table of `make bench-large`, from its figures."""

from collections.abc import Iterator
from typing import Any

from bench.tables import on, table

LIMIT = 4e9  # bytes that no phase may take
Figures = dict[str, Any]


def text(figures: Figures) -> str:
    """Everything that goes into the docs."""
    sizes = figures["sizes"]
    head = ["phase"]
    for size in sizes:
        head += [f"{size['planned']:,} requests: s", "CPU s", "s per 1,000", "peak, GB"]
    peak = max(phase["peak_bytes"] for size in sizes for phase in size["phases"].values())
    verdict = "below" if peak < LIMIT else "**not below**"
    return "\n\n".join(
        [
            on(figures["machine"]),
            table(head, list(_phases(sizes))),
            f"The most memory that a phase takes is {peak / 1e9:.2f} GB, {verdict}"
            f" {LIMIT / 1e9:.0f}.",
            table(
                ["requests", "documents", "batches", "trunks", "run's folder, MB"],
                [_run(size) for size in sizes],
            ),
        ]
    )


def _phases(sizes: list[Figures]) -> Iterator[list[str]]:
    for name in sizes[0]["phases"]:
        yield _row(name, sizes, [[size["phases"][name]] for size in sizes])
    yield _row("**all**", sizes, [list(size["phases"].values()) for size in sizes])


def _row(name: str, sizes: list[Figures], found: list[list[Figures]]) -> list[str]:
    row = [name]
    for size, phases in zip(sizes, found, strict=True):
        seconds, cpu = (sum(phase[key] for phase in phases) for key in ("seconds", "cpu_seconds"))
        peak = max(phase["peak_bytes"] for phase in phases)
        per_thousand = 1000 * seconds / size["planned"]
        row += [f"{seconds:,.1f}", f"{cpu:,.1f}", f"{per_thousand:.2f}", f"{peak / 1e9:.2f}"]
    return row


def _run(size: Figures) -> list[str]:
    counts = [f"{size[key]:,}" for key in ("planned", "documents", "batches", "trunks")]
    return [*counts, f"{size['run_bytes'] / 1e6:,.0f}"]
