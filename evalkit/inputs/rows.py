"""Every single document that a suite means, by short digests: the file beside a lock.

`<suite>.lock.rows` (in a run: `lock.rows`) has a line for each leaf task with 8 bytes, in order, of
each document's doc_hash, prompt, target with choices, and of each row of its shots. So the first
row that differs can be named, and a limit be shown to have taken the first documents. The lock
holds the digest of this file. No data is loaded here.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit

SCHEMA = "evalkit/rows/1"
SIZE = 8  # bytes of a row's digest
MAX_BYTES = 64 << 20  # of such a file: six million rows
NOT_SETTINGS = {"metadata", "dataset_kwargs", "custom_dataset"}  # of lm-eval's config
MAX_LEAVES = 20_000  # lm-eval has 14,000 tasks


@dataclass(frozen=True, slots=True)
class Rows:
    """A leaf task's documents, and the rows that its shots are drawn from (None: none are, or they
    are not pinned), and of each document its prompts and its targets: `SIZE` bytes each, in order.
    """

    documents: bytes
    shots: bytes | None = None
    prompts: bytes = b""
    targets: bytes = b""


def beside(lock: Path) -> Path:
    """Where the file of a lock's single rows lies."""
    return lock.with_suffix(".rows")


def short(doc_hash: str) -> bytes:
    """A row's digest: the first bytes of lm-eval's doc_hash (hex)."""
    return bytes.fromhex(doc_hash[: 2 * SIZE])


def of_prompts(prompts: Sequence[str]) -> bytes:
    """The digest of a document's prompts: of each request's, or of the one that they share."""
    same = all(prompt == prompts[0] for prompt in prompts)
    return _digest([prompts[0]] if same else list(prompts))


def of_target(target: str, continuations: Sequence[str]) -> bytes:
    """The digest of a document's target in its sample, and of what is scored after its prompts."""
    return _digest([target, *continuations])


def of_settings(config: Mapping[str, Any]) -> str:
    """The digest of lm-eval's config of a leaf task, as results.json has it: all that decides how
    a document is asked and scored."""
    return canon.digest({key: config[key] for key in sorted(config.keys() - NOT_SETTINGS)})


def _digest(texts: list[str]) -> bytes:
    return hashlib.sha256(canon.dumps(texts).encode()).digest()[:SIZE]


def text(leaves: dict[str, Rows]) -> str:
    """The file's content: a line of canonical JSON for each leaf task, by name."""
    return "".join(f"{canon.dumps(_line(name, leaves[name]))}\n" for name in sorted(leaves))


def _line(name: str, rows: Rows) -> dict[str, str | None]:
    columns = {key: getattr(rows, key) for key in ("documents", "prompts", "targets", "shots")}
    coded = {
        key: None if data is None else base64.b64encode(data).decode()
        for key, data in columns.items()
    }
    return {"schema": SCHEMA, "task": name, **coded}


def parse(data: bytes, where: str) -> dict[str, Rows]:
    """The rows in a file's bytes, by leaf task; EvalkitError (1) where they are not such a file."""
    lines = data.splitlines() if len(data) <= MAX_BYTES else []
    if len(data) > MAX_BYTES or len(lines) > MAX_LEAVES:
        most = f"{MAX_BYTES >> 20} MiB or {MAX_LEAVES:,} leaf tasks"
        raise _broken(f"holds more than {most}", where)
    found: dict[str, Rows] = {}
    last = ""
    for number, line in enumerate(lines, 1):
        try:
            value = canon.loads(line)
            problems = schema.check("rows", value)
            if problems:
                raise ValueError(problems[0])
            if value["task"] <= last:
                raise ValueError("it stands out of order, or twice")
            last = value["task"]
            shots = None if value["shots"] is None else _bytes(value["shots"])
            found[last] = Rows(
                *(_bytes(value["documents"]), shots),
                *(_bytes(value["prompts"]), _bytes(value["targets"])),
            )
        except (ValueError, RecursionError) as error:
            raise _broken(f"is damaged in line {number:,}: {error}", where) from None
    return found


def _bytes(value: str) -> bytes:
    try:
        found = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if len(found) % SIZE:
        raise ValueError(f"not a multiple of {SIZE} bytes")
    return found


def _broken(what: str, where: str) -> EvalkitError:
    return EvalkitError(
        f"the file of the lock's single rows {what}",
        where=where,
        fix="restore it, or make it again with `evalkit lock`",
        code=Exit.FAILED,
    )


def joined(doc_hashes: Iterable[str]) -> bytes:
    """The digests of rows in order, from their doc_hash values."""
    return b"".join(map(short, doc_hashes))


def difference(found: bytes, locked: bytes, what: str = "document") -> str:
    """The first row that is not the locked one, counted from 0, and how many are not; or nothing.
    `what` calls a row by its name."""
    count, wanted = len(found) // SIZE, len(locked) // SIZE
    both = min(count, wanted)
    unlike = [
        index
        for index in range(both)
        if found[index * SIZE : (index + 1) * SIZE] != locked[index * SIZE : (index + 1) * SIZE]
    ]
    if unlike:
        more = f"{len(unlike):,} of {both:,} differ"
        return f"{what} {unlike[0]:,} (counted from 0) is not the locked one, {more}"
    if count < wanted:
        return f"{what} {both:,} (counted from 0) is missing"
    return f"{what} {both:,} (counted from 0) is not in the lock" if count > wanted else ""
