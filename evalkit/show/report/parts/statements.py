"""What those who signed a record say that they found."""

from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.record.reading.folder import BROKEN, Folder
from evalkit.record.signing import attest

KINDS = {attest.EVALUATION: "author", attest.AUDIT: "audit", attest.REPRODUCTION: "reproduction"}


def said(folder: Folder, record: str) -> list[dict[str, Any]]:
    """The statements on a record (`record`: its sha256) whose signatures are valid. Whose keys
    these are is the reader's to know: verify's verdict goes by that, this list does not."""
    try:
        data = folder.read(attest.NAME, attest.MAX_BYTES)
        statements = attest.read(data, record).statements
    except BROKEN:
        return []
    return [
        {
            "kind": KINDS.get(statement.kind, "author"),
            "signers": [signer.fingerprint for signer in statement.signers],
            "claim": statement.claim,
        }
        for statement in statements
    ]


def reproductions(original: Path, again: Path) -> list[dict[str, Any]]:
    """The statements on a run's record that another execution, in the folder `again`, is its
    reproduction; none where either is no record but lm-eval's own results. Records that are there
    have been read before, as `compare` does."""
    records = [run / "record.json" for run in (original, again)]
    if not all(record.is_file() for record in records):
        return []
    ours, theirs = map(canon.sha256_file, records)
    found = said(Folder(original), ours)
    return [each for each in found if each["claim"].get("record") == theirs]
