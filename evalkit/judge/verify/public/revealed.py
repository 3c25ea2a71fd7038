"""Whether documents of a public pack that its author opened are the ones behind its digests.

`evalkit pack RUN --reveal TASK/DOC` writes such a file: the texts of one document and its salt.
It opens that document and no other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading.findings import Check, Findings, Status, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.salted import LINES, hidden

MAX_BYTES = 64 << 20

Value = dict[str, Any]


def read(path: Path) -> Value:
    """A file that opens a document; EvalkitError where it is none."""
    try:
        found: Value = canon.loads(canon.read_bytes(path, MAX_BYTES))
    except OSError as error:
        what = f"can't read it: {error.strerror}"
        raise EvalkitError(what, where=str(path), code=Exit.MISSING) from None
    except (ValueError, RecursionError) as error:
        raise EvalkitError(f"it is not readable JSON: {error}", where=str(path)) from None
    if problems := schema.check("revealed", found):
        raise EvalkitError(f"it opens no document: {problems[0]}", where=str(path))
    return found


def check(folder: Folder, sha256: str, opened: Sequence[Value]) -> Check:
    """Whether each is as a line of the pack says it. `sha256`: of record.json."""
    if not folder.is_public:
        return Check("revealed", Status.FAIL, "this is no public pack: nothing in it is hidden")
    findings = Findings("revealed")
    wanted = {(each["task"], each["doc_id"]): each for each in opened}
    try:
        for _, raw in folder.gzip_lines(LINES):
            line = canon.loads(raw)
            each = wanted.pop((line["task"], line["doc_id"]), None)
            if each is not None:
                findings.add(_unlike(line, each, sha256))
    except BROKEN as error:
        findings.add(reason(error))
    for task, number in sorted(wanted):
        findings.add(f"the pack has no {shown(task)} document {number}")
    return findings.check(f"{len(opened):,} documents are those behind their digests")


def _unlike(line: Value, opened: Value, sha256: str) -> str:
    name, salt = f"{shown(line['task'])} document {line['doc_id']}", opened["salt"]
    if opened["record"] != sha256:
        return f"{name} was opened for another record"
    if hidden(salt, opened["document"]) != line["sha256"]:
        return f"{name} is not the one behind its digest"
    if opened["answers"] is not None:
        said = [[hidden(salt, text) for text in repeats] for repeats in opened["answers"]]
        if said != [[answer["text"] for answer in repeats] for repeats in line["answers"]]:
            return f"{name}: its answers are not those behind their digests"
    if opened["filtered"] is not None and _digests(opened["filtered"], salt) != line["filtered"]:
        return f"{name}: what its filters made is not what is behind its digests"
    return ""


def _digests(value: Any, salt: str) -> Any:
    if isinstance(value, dict):
        return {key: _digests(item, salt) for key, item in value.items()}
    if isinstance(value, list):
        return [_digests(item, salt) for item in value]
    return {"sha256": hidden(salt, str(value))}
