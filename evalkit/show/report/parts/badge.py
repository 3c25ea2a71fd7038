"""A record's verdict as a small picture for a README: what `verify` says by the reader's own list
of signers, and who vouches for it.
"""

from pathlib import Path

from markupsafe import Markup

from evalkit.base import canon
from evalkit.judge.verify import Report
from evalkit.record.reading.findings import few
from evalkit.show.report.page import visible

COLOURS = {"fine": "#157a45", "warn": "#8a5a00", "broken": "#c03221"}
WIDTH = 7.2  # of a character, in the picture's own units
_SVG = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="20" role="img"'
    ' aria-label="{title}"><title>{title}</title>'
    '<rect width="{width:.0f}" height="20" rx="4" fill="{colour}"/>'
    '<rect width="{left:.0f}" height="20" rx="4" fill="#3d434d"/>'
    '<rect x="{inner:.0f}" width="4" height="20" fill="#3d434d"/>'
    '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
    '<text x="8" y="14">evalkit</text><text x="{start:.0f}" y="14">{words}</text></g></svg>\n'
)


def words(report: Report) -> str:
    """The verdict in a few words: `SIGNED by a lab`, `CONSISTENT`, `BROKEN`."""
    standing = report.standing
    names = standing.reproducers or standing.witnesses or standing.authors
    word = report.verdict.partition(":")[0].partition(" ")[0]
    known = report.consistent and report.readable and names
    return f"{word} by {few(names)}" if known else word


def svg(report: Report, tone: str) -> str:
    """The picture."""
    told = words(report)
    left = 8 + WIDTH * len("evalkit") + 6
    width = left + 8 + WIDTH * len(told) + 8
    title = visible(f"evalkit: {report.verdict}").striptags()
    return str(
        _SVG.format(
            width=width, left=left, inner=left - 4, start=left + 8, colour=COLOURS[tone],
            words=visible(told).striptags(), title=title,
        )
    )  # fmt: skip


def write(path: Path, report: Report, tone: str) -> Path:
    """Write the picture."""
    canon.write_atomic(path, svg(report, tone))
    return path
