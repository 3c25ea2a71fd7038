"""The plan on disk: a run's batches, fixed from the whole request list before anything runs.

The plan is two files: `plan.json` (layout, digests, costs, request ids) and `plan.tokens` (token
ids, compressed: every trunk's, then every batch's); a worker needs only these and the model.
"""

import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.types import FileEntry
from evalkit.plan.batch import (
    Batch,
    BatchTarget,
    Policy,
    Row,
    Trunk,
    batch_block,
    batch_id,
    batch_rows,
    make_batch,
    make_trunk,
    slots_of,
    trunk_block,
    trunk_id,
    trunk_tokens,
)
from evalkit.plan.grouping import LEVELS, group_batches, groups, make_batches
from evalkit.plan.requests.request import Settings
from evalkit.plan.tokenise import Tokenised
from evalkit.plan.types import BatchEntry, Block, PlanBody, PolicyEntry, TargetEntry, TrunkEntry

# Who reads a plan need not know which module a part of it comes from.
__all__ = [
    "LEVELS", "Batch", "BatchTarget", "Builder", "Figures", "Plan", "Policy", "Row", "Trunk",
    "build", "figures", "make_batch", "make_batches", "make_trunk", "plan_id",
]  # fmt: skip

SCHEMA = "evalkit/plan/2"
_KEPT_TRUNKS = 16  # a chain of nested ones is seldom longer


def plan_id(body: PlanBody) -> str:
    """Return the plan's identity, from plan.json's own fields. A batch's id covers its trunk."""
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
    max_length: int, level: str, rope_limit: int | None = None,
) -> tuple[PlanBody, list[bytes]]:  # fmt: skip
    """Return plan.json's content and plan.tokens' blocks. `tokenizer`: its files' sha256 by name;
    `level`: one of `LEVELS`; `rope_limit`: see `make_batches`."""
    builder = Builder(policy, level=level, rope_limit=rope_limit)
    builder.add(tokenised)
    body = builder.body(suite_id=suite_id, tokenizer=tokenizer, max_length=max_length)
    return body, builder.blocks


class Builder:
    """Builds a plan one leaf task at a time, so that only one task's rows are in memory;
    `unique_tokens` counts the tokens of all prompts, each shared one once."""

    def __init__(self, policy: Policy, *, level: str, rope_limit: int | None = None) -> None:
        self.unique_tokens = 0
        self._policy, self._level, self._rope_limit = policy, level, rope_limit
        self._settings: list[Settings] = []
        self._trunks: list[TrunkEntry] = []
        self._batches: list[BatchEntry] = []
        self._index: dict[str, int] = {}  # of each trunk, by its id
        self._trunk_blocks: list[bytes] = []
        self._batch_blocks: list[bytes] = []
        self._truncated: Counter[str] = Counter()
        self._missing_bos = self._double_bos = self._appended_eos = 0
        self._leaking: Counter[str] = Counter()
        self._empty: dict[str, list[str]] = {}
        self._last_task = ""

    def add(self, tokenised: Tokenised) -> None:
        """Add the batches of leaf tasks. Tasks must come in the order of their names, which is the
        order of a plan's batches."""
        for group in groups(tokenised, self._rope_limit):
            assert group.task >= self._last_task, f"{group.task} comes after {self._last_task}"
            self._last_task = group.task
            trie = group.trie()
            self.unique_tokens += trie.unique(trie.whole)
            for batch in group_batches(group, trie, self._policy, self._level):
                self.write(batch)
        self._truncated += tokenised.truncated
        self._missing_bos += tokenised.missing_bos
        self._double_bos += tokenised.double_bos
        self._appended_eos += tokenised.appended_eos
        self._leaking += tokenised.leaking
        self._empty |= tokenised.empty

    @property
    def blocks(self) -> list[bytes]:
        """The blocks of plan.tokens: those of trunks first."""
        return self._trunk_blocks + self._batch_blocks

    def body(
        self, *, suite_id: str, tokenizer: dict[str, str], max_length: int,
        dropped_system_turns: int = 0,
    ) -> PlanBody:  # fmt: skip
        """Return plan.json's content."""
        body: PlanBody = {
            "schema": SCHEMA,
            "ids": {"suite": suite_id, "plan": ""},
            "level": self._level,
            "policy": cast(PolicyEntry, self._policy.to_json()),
            "tokenizer": tokenizer,
            "max_length": max_length,
            "settings": [item.to_json() for item in self._settings],
            "trunks": self._trunks,
            "batches": self._batches,
            "truncated": dict(self._truncated),
            "missing_bos": self._missing_bos,
            "double_bos": self._double_bos,
            "appended_eos": self._appended_eos,
            "dropped_system_turns": dropped_system_turns,
            "leaking": dict(self._leaking),
            "empty_texts": self._empty,
            "tokens": self._place(),
        }
        body["ids"]["plan"] = plan_id(body)
        return body

    def write(self, batch: Batch) -> None:
        """Add one batch and the trunks that it stands on."""
        if batch.settings is not None and batch.settings not in self._settings:
            self._settings.append(batch.settings)
        self._batch_blocks.append(block := zlib.compress(batch_block(batch.rows), 6))
        prefix = len(batch.task) + 1
        targets = [[t.row, t.end, t.start, t.last, t.id[prefix:]] for t in batch.targets]
        entry: BatchEntry = {
            "id": batch.id,
            "task": batch.task,
            "kind": batch.kind,
            "settings": self._settings.index(batch.settings) if batch.settings else None,
            "trunk": self._trunk(batch.trunk),
            "rows": len(batch.rows),
            "width": batch.width,
            "cost": batch.cost,
            "tokens": batch.num_tokens,
            "targets": cast(list[TargetEntry], targets),
            "offset": 0,  # until all trunks are known
            "size": len(block),
        }
        self._batches.append(entry)

    def _trunk(self, trunk: Trunk | None) -> int | None:
        """Return a trunk's index; add the trunk and those before it where they are new."""
        index = None
        for link in trunk.chain() if trunk else []:
            if link.id not in self._index:
                self._index[link.id] = len(self._trunks)
                block = zlib.compress(trunk_block(link.tokens), 6)
                self._trunk_blocks.append(block)
                entry = TrunkEntry(
                    id=link.id, parent=index, length=len(link.tokens), offset=0, size=len(block)
                )
                self._trunks.append(entry)
            index = self._index[link.id]
        return index

    def _place(self) -> FileEntry:
        """Set each entry's offset in plan.tokens; return that file's size and digest."""
        offset, whole = 0, hashlib.sha256()
        entries: list[Block] = [*self._trunks, *self._batches]
        for entry, block in zip(entries, self.blocks, strict=True):
            entry["offset"] = offset
            offset += len(block)
            whole.update(block)
        return {"size": offset, "sha256": whole.hexdigest()}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one uninterrupted worker computes of a plan's prompts, in tokens: each trunk once, the
    `tokens` of rows, and their padding. `longest` is the highest cost of a batch, including all
    that it may generate."""

    batches: int
    trunks: int
    trunk_tokens: int
    tokens: int
    padding: int
    longest: int

    @property
    def computed(self) -> int:
        """All tokens that are computed."""
        return self.trunk_tokens + self.tokens + self.padding


def figures(body: PlanBody) -> Figures:
    """Return a plan's figures, from plan.json's content."""
    trunks, batches = body["trunks"], body["batches"]
    return Figures(
        len(batches),
        len(trunks),
        sum(entry["length"] for entry in trunks),
        sum(entry["tokens"] for entry in batches),
        sum(entry["rows"] * entry["width"] - entry["tokens"] for entry in batches),
        max((entry["cost"] for entry in batches), default=0),
    )


class Plan:
    """A plan on disk. It reads one batch at a time and checks each against its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.body: PlanBody = canon.read_json(folder / "plan.json")
        schema = self.body.get("schema") if isinstance(self.body, dict) else None
        needed = {"batches", "settings", "trunks", "policy"}
        if schema != SCHEMA or not needed <= self.body.keys():
            raise EvalkitError(
                f"plan.json is {schema}, this evalkit reads a whole {SCHEMA}", where=str(folder)
            )
        self.entries: dict[str, BatchEntry] = {e["id"]: e for e in self.body["batches"]}
        self._settings = [Settings.from_json(entry) for entry in self.body["settings"]]
        self._policy = Policy(**self.body["policy"])
        self._trunks: dict[int, Trunk] = {}  # the last ones read

    def __len__(self) -> int:
        return len(self.entries)

    def batch(self, batch: str) -> Batch:
        """Read one batch; EvalkitError where plan.tokens is not what the plan says. Consecutive
        batches of one trunk share the trunk's object."""
        entry = self.entries[batch]
        kind, task, policy = entry["kind"], entry["task"], self._policy
        index, width = entry["settings"], entry["width"]
        settings = None if index is None else self._settings[index]
        targets = tuple(
            BatchTarget(row, end, start, last, f"{task}/{local}")
            for row, end, start, last, local in entry["targets"]
        )
        trunk = self._trunk(entry["trunk"])
        above, length = (trunk.id, trunk.length) if trunk else (None, 0)
        slots = slots_of(self._policy, settings, length, targets)
        block = self._block(entry)
        if batch_id(kind, settings, above, block, targets, slots, policy) != batch:
            raise self._torn(f"batch {batch[:19]} has another digest")
        rows = batch_rows(block)
        if width != max(len(row.tokens) for row in rows):
            raise self._torn(f"batch {batch[:19]} is not {width} tokens wide")
        return Batch(
            batch, task, kind, settings, trunk, width, rows, targets, slots, policy.chunk,
            policy.prefill,
        )  # fmt: skip

    def _trunk(self, index: int | None) -> Trunk | None:
        """Return a trunk; read it and those before it unless they are still in memory."""
        missing: list[int] = []
        while index is not None and index not in self._trunks:
            missing.append(index)
            index = self.body["trunks"][index]["parent"]
        trunk = None if index is None else self._trunks[index]
        for number in reversed(missing):
            entry = self.body["trunks"][number]
            block = self._block(entry)
            if trunk_id(trunk.id if trunk else None, block) != entry["id"]:
                raise self._torn(f"trunk {entry['id'][:19]} has another digest")
            trunk = self._trunks[number] = make_trunk(trunk, trunk_tokens(block))
            if len(self._trunks) > _KEPT_TRUNKS:
                del self._trunks[next(iter(self._trunks))]
        return trunk

    def _block(self, entry: Block) -> bytes:
        """Return the decompressed token ids of a trunk or a batch."""
        try:
            with (self.folder / "plan.tokens").open("rb") as handle:
                handle.seek(entry["offset"])
                return zlib.decompress(handle.read(entry["size"]))
        except (OSError, zlib.error) as error:
            raise self._torn(str(error)) from None

    def _torn(self, reason: str) -> EvalkitError:
        return EvalkitError(
            f"plan.tokens is damaged: {reason}",
            where=str(self.folder),
            fix="move the run's folder away and start again",
            code=Exit.FAILED,
        )
