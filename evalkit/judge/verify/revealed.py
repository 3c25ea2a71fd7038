"""Opens single documents of a public pack that its author revealed: `evalkit pack RUN --reveal
TASK/DOC` writes the texts of one document and its salt, which open that document only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError
from evalkit.record.reading.findings import Check, Findings, Status, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.salted import LINES, HiddenText, PublicLine, Revealed, hidden

MAX_REVEALED = 64 * MiB


def read(path: Path) -> Revealed:
    """Read a file that opens a document; EvalkitError if it is none."""
    data = canon.read_given(path, MAX_REVEALED, "it")
    try:
        opened: Revealed = canon.loads(data)
    except (ValueError, RecursionError) as error:
        raise EvalkitError(f"it is not readable JSON: {error}", where=str(path)) from None
    if problems := schema.check("revealed", opened):
        raise EvalkitError(f"it opens no document: {problems[0]}", where=str(path))
    return opened


def check(folder: Folder, sha256: str, opened: Sequence[Revealed]) -> Check:
    """Check that each opened document is one that the pack of this record (`sha256`) hides."""
    if not folder.is_public:
        return Check("revealed", Status.FAIL, "this is no public pack: nothing in it is hidden")
    findings = Findings("revealed")
    remaining = {(document["task"], document["doc_id"]): document for document in opened}
    try:
        for _, raw in folder.gzip_lines(LINES):
            line = canon.loads(raw)
            document = remaining.pop((line["task"], line["doc_id"]), None)
            if document is not None:
                findings.add(_unlike(line, document, sha256))
    except BROKEN as error:
        findings.add(reason(error))
    for task, number in sorted(remaining):
        findings.add(f"the pack has no {shown(task)} document {number}")
    return findings.check(f"{len(opened):,} documents have the digests in the pack")


def _unlike(line: PublicLine, opened: Revealed, sha256: str) -> str:
    name, salt = f"{shown(line['task'])} document {line['doc_id']}", opened["salt"]
    if opened["record"] != sha256:
        return f"{name} was opened for another record"
    if hidden(salt, opened["document"]) != line["sha256"]:
        return f"{name} is not the one behind its digest"
    if opened["answers"] is not None:
        answers = [[hidden(salt, text) for text in repeats] for repeats in opened["answers"]]
        if answers != [list(map(_text_digest, repeats)) for repeats in line["answers"]]:
            return f"{name}: its answers are not those behind their digests"
    if opened["filtered"] is not None and _digests(opened["filtered"], salt) != line["filtered"]:
        return f"{name}: what its filters made is not what is behind its digests"
    return ""


def _text_digest(answer: HiddenText | list[Any]) -> str | None:
    return answer["text"] if isinstance(answer, dict) else None


def _digests(value: Any, salt: str) -> Any:
    if isinstance(value, dict):
        return {key: _digests(item, salt) for key, item in value.items()}
    if isinstance(value, list):
        return [_digests(item, salt) for item in value]
    return {"sha256": hidden(salt, str(value))}
