"""A run's batches, fixed from the whole request list before anything runs, and on the disk.

The plan is two files: `plan.json` (layout, digests, costs, request ids) and `plan.tokens` (token
ids, compressed: every trunk's, then every batch's); a worker needs only these and the model.
"""

import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
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

# Who reads a plan need not know which module a part of it comes from.
__all__ = [
    "LEVELS", "Batch", "BatchTarget", "Builder", "Figures", "Plan", "Policy", "Row", "Trunk",
    "build", "figures", "make_batch", "make_batches", "make_trunk", "plan_id",
]  # fmt: skip

SCHEMA = "evalkit/plan/2"
_KEPT_TRUNKS = 16  # a chain of nested ones is seldom longer


def plan_id(body: dict[str, Any]) -> str:
    """The plan's identity from plan.json's own fields; a batch's id covers its trunk."""
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
) -> tuple[dict[str, Any], list[bytes]]:  # fmt: skip
    """plan.json's content and plan.tokens' blocks. `tokenizer`: its files' sha256 by name; `level`
    is one of `LEVELS`; `rope_limit`: see `make_batches`."""
    made = Builder(policy, level=level, rope_limit=rope_limit)
    made.add(tokenised)
    return made.body(suite_id=suite_id, tokenizer=tokenizer, max_length=max_length), made.blocks


class Builder:
    """Makes a plan a leaf task at a time, so that the rows of one are gone before the next one's
    come; `unique_tokens` counts those of all prompts, each shared one once."""

    def __init__(self, policy: Policy, *, level: str, rope_limit: int | None = None) -> None:
        self.unique_tokens = 0
        self._policy, self._level, self._rope_limit = policy, level, rope_limit
        self._settings: list[Settings] = []
        self._trunks: list[dict[str, Any]] = []
        self._batches: list[dict[str, Any]] = []
        self._index: dict[str, int] = {}  # of each trunk's id
        self._trunk_blocks: list[bytes] = []
        self._batch_blocks: list[bytes] = []
        self._truncated: Counter[str] = Counter()
        self._missing_bos = self._double_bos = self._appended_eos = 0
        self._leaking: Counter[str] = Counter()
        self._empty: dict[str, list[str]] = {}
        self._last = ""  # leaf task

    def add(self, tokenised: Tokenised) -> None:
        """Plan the rows of leaf tasks that come behind all those so far by name, which is the
        order of a plan's batches."""
        for group in groups(tokenised, self._rope_limit):
            assert group.task >= self._last, f"{group.task} comes after {self._last}"
            self._last = group.task
            trie = group.trie()
            self.unique_tokens += trie.unique(trie.whole)
            for batch in group_batches(group, trie, self._policy, self._level):
                self._write(batch)
        self._truncated += tokenised.truncated
        self._missing_bos += tokenised.missing_bos
        self._double_bos += tokenised.double_bos
        self._appended_eos += tokenised.appended_eos
        self._leaking += tokenised.leaking
        self._empty |= tokenised.empty

    @property
    def blocks(self) -> list[bytes]:
        """plan.tokens' blocks: trunks first."""
        return self._trunk_blocks + self._batch_blocks

    def body(
        self, *, suite_id: str, tokenizer: dict[str, str], max_length: int,
        dropped_system_turns: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """plan.json's content."""
        body = {
            "schema": SCHEMA,
            "ids": {"suite": suite_id},
            "level": self._level,
            "policy": self._policy.to_json(),
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
        body["ids"] = {"suite": suite_id, "plan": plan_id(body)}
        return body

    def _write(self, batch: Batch) -> None:
        if batch.settings is not None and batch.settings not in self._settings:
            self._settings.append(batch.settings)
        self._batch_blocks.append(zlib.compress(batch_block(batch.rows), 6))
        prefix = len(batch.task) + 1
        entry = {
            "id": batch.id,
            "task": batch.task,
            "kind": batch.kind,
            "settings": self._settings.index(batch.settings) if batch.settings else None,
            "trunk": self._trunk(batch.trunk),
            "rows": len(batch.rows),
            "width": batch.width,
            "cost": batch.cost,
            "tokens": batch.num_tokens,
            "targets": [[t.row, t.end, t.start, t.last, t.id[prefix:]] for t in batch.targets],
        }
        self._batches.append(entry)

    def _trunk(self, trunk: Trunk | None) -> int | None:
        """The index of a trunk, written with those above it where they are new."""
        index = None
        for link in trunk.chain() if trunk else []:
            if link.id not in self._index:
                self._index[link.id] = len(self._trunks)
                self._trunk_blocks.append(zlib.compress(trunk_block(link.tokens), 6))
                self._trunks.append({"id": link.id, "parent": index, "length": len(link.tokens)})
            index = self._index[link.id]
        return index

    def _place(self) -> dict[str, Any]:
        """Say in each entry where its block stands; the size and the digest of all of them."""
        offset, whole = 0, hashlib.sha256()
        for entry, block in zip(self._trunks + self._batches, self.blocks, strict=True):
            entry |= {"offset": offset, "size": len(block)}
            offset += len(block)
            whole.update(block)
        return {"size": offset, "sha256": whole.hexdigest()}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a plan makes one uninterrupted worker compute of the prompts, in tokens: each trunk
    once, `tokens` of rows and their padding. `longest` is the greatest cost of a batch, with all
    that it may generate."""

    batches: int
    trunks: int
    trunk_tokens: int
    tokens: int
    padding: int
    longest: int

    @property
    def computed(self) -> int:
        """All of it."""
        return self.trunk_tokens + self.tokens + self.padding


def figures(body: dict[str, Any]) -> Figures:
    """A plan's figures from plan.json."""
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
    """A plan on disk. Reads one batch at a time; each is checked against its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.body: dict[str, Any] = canon.read_json(folder / "plan.json")
        named = self.body.get("schema") if isinstance(self.body, dict) else None
        needed = {"batches", "settings", "trunks", "policy"}
        if named != SCHEMA or not needed <= self.body.keys():
            raise EvalkitError(
                f"plan.json is {named}, this evalkit reads a whole {SCHEMA}", where=str(folder)
            )
        self.entries: dict[str, dict[str, Any]] = {e["id"]: e for e in self.body["batches"]}
        self._settings = [
            Settings(**item | {"until": tuple(item["until"])}) for item in self.body["settings"]
        ]
        self._policy = Policy(**self.body["policy"])
        self._trunks: dict[int, Trunk] = {}  # the last ones read

    def __len__(self) -> int:
        return len(self.entries)

    def batch(self, batch: str) -> Batch:
        """Read one batch; EvalkitError when plan.tokens is not what the plan says. Consecutive
        batches of one trunk share the object."""
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
        found = batch_id(kind, settings, above, block, targets, slots, policy)
        if found != batch:
            raise self._torn(f"batch {batch[:19]} has another digest")
        rows = batch_rows(block)
        if width != max(len(row.tokens) for row in rows):
            raise self._torn(f"batch {batch[:19]} is not {width} tokens wide")
        return Batch(
            batch, task, kind, settings, trunk, width, rows, targets, slots, policy.chunk,
            policy.prefill,
        )  # fmt: skip

    def _trunk(self, index: int | None) -> Trunk | None:
        """A trunk, made of those above it as far as they are not at hand any more."""
        missing: list[int] = []
        while index is not None and index not in self._trunks:
            missing.append(index)
            index = self.body["trunks"][index]["parent"]
        found = None if index is None else self._trunks[index]
        for number in reversed(missing):
            entry = self.body["trunks"][number]
            block = self._block(entry)
            if trunk_id(found.id if found else None, block) != entry["id"]:
                raise self._torn(f"trunk {entry['id'][:19]} has another digest")
            found = self._trunks[number] = make_trunk(found, trunk_tokens(block))
            if len(self._trunks) > _KEPT_TRUNKS:
                del self._trunks[next(iter(self._trunks))]
        return found

    def _block(self, entry: dict[str, Any]) -> bytes:
        """The unpacked token ids of a trunk or a batch."""
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
