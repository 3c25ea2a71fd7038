"""Which rows share a batch, fixed from the whole request list before anything runs.

A batch's answers depend on nothing but the weights, the numerics and the batch, so the batch is the
unit of work, of the journal, of resuming and of sharding. Rows are packed per task, request kind
and generation settings: another task in the suite never changes a task's batches. The plan is two
files: `plan.json` (layout, digests, costs, request ids) and `plan.tokens` (each batch's token ids,
compressed); a worker needs only these and the model.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit import canon
from evalkit.errors import EvalkitError, Exit
from evalkit.request import Kind, Settings
from evalkit.tokenise import Row, Tokenised, Tokens

SCHEMA = "evalkit/plan/1"
LEVEL = "C"  # no sharing between rows; reference: the levels of the engine


@dataclass(frozen=True, slots=True)
class Policy:
    """How rows are packed: an input of the plan, so part of its identity.

    `max_tokens` bounds rows x padded width of a batch, `max_rows` its rows, `max_scored` the
    positions whose logits exist at once, `max_slots` the rows of a generating batch, all of whose
    key-value caches live at once.
    """

    max_tokens: int = 16384
    max_rows: int = 64
    max_scored: int = 2048
    max_slots: int = 32

    def to_json(self) -> dict[str, int]:
        """The policy as plan and record hold it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class BatchTarget:
    """A row's target without its text: `id` is the part id, the task's name in front."""

    row: int
    start: int
    last: int
    id: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What the engine executes: rows of token ids padded to `width`, and their targets."""

    id: str
    task: str
    kind: Kind
    settings: Settings | None
    width: int
    rows: tuple[Tokens, ...]
    targets: tuple[BatchTarget, ...]

    @property
    def cost(self) -> int:
        """Tokens that it computes at most, padding included."""
        new_tokens = self.settings.max_gen_toks if self.settings else 0
        return len(self.rows) * (self.width + new_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens of its rows, without padding."""
        return sum(map(len, self.rows))


def make_batches(tokenised: Tokenised, policy: Policy) -> list[Batch]:
    """Pack rows, longest first (what runs out of memory does so at once), in a fixed order."""
    groups: dict[tuple[str, Kind, Settings | None], list[Row]] = {}
    for row in tokenised.rows:
        request = row.targets[0].request
        groups.setdefault((request.task, request.kind, request.settings), []).append(row)
    batches: list[Batch] = []
    for (task, kind, settings), rows in groups.items():
        rows.sort(key=lambda row: (-len(row.tokens), row.tokens.tobytes(), row.targets[0].local_id))
        limit = policy.max_slots if kind == "generate_until" else policy.max_rows
        for packed in _pack(rows, policy, limit):
            batches.append(_batch(task, kind, settings, packed))
    return batches


def _pack(rows: Sequence[Row], policy: Policy, max_rows: int) -> Iterable[Sequence[Row]]:
    """Runs of `rows` (longest first) that stay within the policy; a row too big for it is alone."""
    start, scored = 0, 0
    for index, row in enumerate(rows):
        count = index - start + 1
        padded = count * len(rows[start].tokens)
        scored += row.num_scored
        full = count > max_rows or padded > policy.max_tokens or scored > policy.max_scored
        if full and count > 1:
            yield rows[start:index]
            start, scored = index, row.num_scored
    if rows:
        yield rows[start:]


def _batch(task: str, kind: Kind, settings: Settings | None, rows: Sequence[Row]) -> Batch:
    targets = tuple(
        BatchTarget(index, target.start, target.last, f"{task}/{target.local_id}")
        for index, row in enumerate(rows)
        for target in row.targets
    )
    tokens = tuple(row.tokens for row in rows)
    width = len(tokens[0])
    return Batch(batch_id(kind, settings, tokens, targets), task, kind, settings, width, tokens,
                 targets)  # fmt: skip


def batch_id(
    kind: Kind,
    settings: Settings | None,
    rows: Sequence[Tokens],
    targets: Sequence[BatchTarget],
) -> str:
    """Digest of everything that the engine sees of a batch."""
    layout = {
        "kind": kind,
        "settings": settings.to_json() if settings else None,
        "tokens": canon.digest_bytes(_token_bytes(rows)),
        "targets": [[t.row, t.start, t.last, t.id] for t in targets],
    }
    return canon.digest(layout)


def _token_bytes(rows: Sequence[Tokens]) -> bytes:
    """Row count, row lengths, then all token ids: little-endian unsigned 32-bit integers."""
    head = np.asarray([len(rows), *map(len, rows)], dtype=np.uint32)
    return np.concatenate([head, *rows]).astype("<u4").tobytes()


def _rows_of(data: bytes) -> tuple[Tokens, ...]:
    values = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    count = int(values[0])
    ends = np.cumsum(values[1 : count + 1], dtype=np.int64) + count + 1
    lengths = values[1 : count + 1].tolist()
    return tuple(values[end - n : end] for end, n in zip(ends.tolist(), lengths, strict=True))


def plan_id(body: dict[str, Any]) -> str:
    """The plan's identity from plan.json's own fields."""
    return canon.digest(
        {
            "suite": body["ids"]["suite"],
            "tokenizer": body["tokenizer"],
            "level": body["level"],
            "policy": body["policy"],
            "max_length": body["max_length"],
            "batches": [batch["id"] for batch in body["batches"]],
        }
    )


def build(
    tokenised: Tokenised, policy: Policy, *, suite_id: str, tokenizer: dict[str, str],
    max_length: int,
) -> tuple[dict[str, Any], list[bytes]]:  # fmt: skip
    """plan.json's content and plan.tokens' blocks. `tokenizer`: its files' sha256 by name."""
    batches = make_batches(tokenised, policy)
    settings: list[Settings] = []
    entries: list[dict[str, Any]] = []
    blocks: list[bytes] = []
    offset = 0
    for batch in batches:
        if batch.settings is not None and batch.settings not in settings:
            settings.append(batch.settings)
        blocks.append(zlib.compress(_token_bytes(batch.rows), 6))
        entries.append(_entry(batch, settings, offset, len(blocks[-1])))
        offset += len(blocks[-1])
    body = {
        "schema": SCHEMA,
        "ids": {"suite": suite_id},
        "level": LEVEL,
        "policy": policy.to_json(),
        "tokenizer": tokenizer,
        "max_length": max_length,
        "settings": [item.to_json() for item in settings],
        "batches": entries,
        "truncated": dict(tokenised.truncated),
        "missing_bos": tokenised.missing_bos,
        "double_bos": tokenised.double_bos,
        "tokens": {"size": offset, "sha256": canon.digest_bytes(b"".join(blocks))[7:]},
    }
    body["ids"] = {"suite": suite_id, "plan": plan_id(body)}
    return body, blocks


def _entry(batch: Batch, settings: list[Settings], offset: int, size: int) -> dict[str, Any]:
    prefix = len(batch.task) + 1
    return {
        "id": batch.id,
        "task": batch.task,
        "kind": batch.kind,
        "settings": settings.index(batch.settings) if batch.settings else None,
        "rows": len(batch.rows),
        "width": batch.width,
        "cost": batch.cost,
        "tokens": batch.num_tokens,
        "offset": offset,
        "size": size,
        "targets": [[t.row, t.start, t.last, t.id[prefix:]] for t in batch.targets],
    }


class Plan:
    """A plan on disk. Reads one batch at a time; each is checked against its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.body: dict[str, Any] = canon.read_json(folder / "plan.json")
        named = self.body.get("schema") if isinstance(self.body, dict) else None
        if named != SCHEMA or not {"batches", "settings"} <= self.body.keys():
            raise EvalkitError(
                f"plan.json is {named}, this evalkit reads a whole {SCHEMA}", where=str(folder)
            )
        self.entries: dict[str, dict[str, Any]] = {e["id"]: e for e in self.body["batches"]}
        self._settings = [
            Settings(**item | {"until": tuple(item["until"])}) for item in self.body["settings"]
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def batch(self, batch: str) -> Batch:
        """Read one batch; EvalkitError when plan.tokens is not what the plan says."""
        entry = self.entries[batch]
        path = self.folder / "plan.tokens"
        try:
            with path.open("rb") as handle:
                handle.seek(entry["offset"])
                rows = _rows_of(zlib.decompress(handle.read(entry["size"])))
        except (OSError, zlib.error, ValueError, IndexError) as error:
            raise self._torn(str(error)) from None
        task = entry["task"]
        targets = tuple(
            BatchTarget(row, start, last, f"{task}/{local}")
            for row, start, last, local in entry["targets"]
        )
        index = entry["settings"]
        settings = None if index is None else self._settings[index]
        if batch_id(entry["kind"], settings, rows, targets) != batch:
            raise self._torn(f"batch {batch[:19]} has another digest")
        return Batch(batch, task, entry["kind"], settings, entry["width"], rows, targets)

    def _torn(self, reason: str) -> EvalkitError:
        return EvalkitError(
            f"plan.tokens is damaged: {reason}",
            where=str(self.folder),
            fix="move the run's folder away and start again",
            code=Exit.FAILED,
        )
