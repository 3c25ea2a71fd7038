"""What a page says of a record's verdict: in a word, in a colour, as a small picture for a README,
and what those who signed the record say that they found.
"""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from evalkit.base import canon
from evalkit.judge.verify import Report, Status
from evalkit.record.reading.findings import few
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.signing import attest
from evalkit.record.signing.types import Claim
from evalkit.show.report.page import visible

KINDS = {attest.EVALUATION: "author", attest.AUDIT: "audit", attest.REPRODUCTION: "reproduction"}
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


@dataclass(frozen=True, slots=True)
class Statement:
    """A signed statement. `kind`: author, audit or reproduction; `signers`: fingerprints."""

    kind: str
    signers: list[str]
    claim: Claim


def word(report: Report) -> str:
    """Return the verdict in one word: BROKEN, CONSISTENT and so on."""
    return report.verdict.partition(":")[0].partition(" ")[0]


def tone(report: Report) -> str:
    """Return how the verdict is coloured: broken, warn or fine."""
    if not report.readable or not report.consistent:
        return "broken"
    warned = any(check.status is Status.WARN for check in report.checks)
    return "warn" if warned else "fine"


def words(report: Report) -> str:
    """Return the verdict in a few words: `SIGNED by a lab`, `CONSISTENT`, `BROKEN`."""
    standing = report.standing
    names = standing.reproducers or standing.witnesses or standing.authors
    is_vouched = report.consistent and report.readable and names
    return f"{word(report)} by {few(names)}" if is_vouched else word(report)


def write_badge(path: Path, report: Report) -> None:
    """Write the verdict as a small SVG."""
    text = words(report)
    left = 8 + WIDTH * len("evalkit") + 6
    picture = _SVG.format(
        width=left + 8 + WIDTH * len(text) + 8, left=left, inner=left - 4, start=left + 8,
        colour=COLOURS[tone(report)], words=visible(text).striptags(),
        title=visible(f"evalkit: {report.verdict}").striptags(),
    )  # fmt: skip
    canon.write_atomic(path, str(picture))


def statements(folder: Folder, record: str) -> list[Statement]:
    """Return the statements on a record (`record`: its sha256) whose signatures are valid. Whose
    keys these are is for the reader to know: verify's verdict depends on it, this list does not."""
    try:
        data = folder.read(attest.NAME, attest.MAX_BYTES)
        signed = attest.read(data, record).statements
    except BROKEN:
        return []
    return [
        Statement(KINDS.get(s.kind, "author"), [key.fingerprint for key in s.signers], s.claim)
        for s in signed
    ]


def reproductions(original: Path, again: Path) -> list[Statement]:
    """Return the statements on a run that another execution, in the folder `again`, reproduces it;
    none where either is lm-eval's own results."""
    records = [run / "record.json" for run in (original, again)]
    if not all(record.is_file() for record in records):
        return []
    first, second = map(canon.sha256_file, records)
    return [s for s in statements(Folder(original), first) if s.claim.get("record") == second]
