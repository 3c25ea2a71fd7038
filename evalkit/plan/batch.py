"""What the engine executes: rows of token ids on a trunk, and what they must answer.

A batch's answers depend on nothing but the weights, the numerics and the batch, so the batch is the
unit of work, of the journal, of resuming and of sharding, and its id covers all that the engine
sees of it. This module says what a batch is and how its token ids are written; which rows share one
is decided in `batching`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from evalkit.base import canon
from evalkit.plan.requests.request import Settings
from evalkit.plan.tokenise import Tokens
from evalkit.plan.types import Kind

PREFILL = 2048  # tokens of prompts, on a CPU
FOR_GPUS = ("prefill", "max_trunk", "memory")  # a policy's, if it is for GPUs


@dataclass(frozen=True, slots=True)
class Policy:
    """How rows are packed: an input of the plan, so part of its identity.

    Tokens, unless said otherwise. `max_tokens` bounds rows x padded width of a batch, `row_tokens`
    is the width that rows are packed to where no tree is wider, a subtree of more than `max_tree`
    gets a trunk where its shared prefix has at least `min_trunk`, and a trunk is prefilled `chunk`
    at a time. `max_rows` bounds the rows of a batch at levels prefix and none, `max_scored` the
    positions whose logits exist at once, `max_slots` the prompts that generate at once, and
    `max_cache` the tokens of their own key-value caches, as long as they may grow; a generating
    batch has at most `waves` times as many as generate at once. `prefill` bounds the prompts that
    are prefilled at once, padding included. For GPUs `memory` is the class that it is for, in GB
    (0: a CPU), and `max_trunk` the tokens of a trunk, its parents' included.
    """

    max_tokens: int = 16384
    row_tokens: int = 256
    max_tree: int = 1024
    min_trunk: int = 8
    chunk: int = 512
    max_rows: int = 64
    max_scored: int = 2048
    max_slots: int = 64
    max_cache: int = 131072
    waves: int = 4
    prefill: int = PREFILL
    max_trunk: int = 0
    memory: int = 0

    def to_json(self) -> dict[str, int]:
        """The policy as plan and record hold it; a CPU's says nothing of what is for GPUs."""
        mine = self.__slots__ if self.memory else self.__slots__[: -len(FOR_GPUS)]
        return {name: getattr(self, name) for name in mine}

    def holds(self, trunk: int) -> bool:
        """Whether a trunk may have so many tokens."""
        return not self.max_trunk or trunk <= self.max_trunk

    def slots(self, tokens: int) -> int:
        """How many prompts generate at once that may grow to `tokens` each."""
        return max(1, min(self.max_slots, self.max_cache // tokens))


@dataclass(frozen=True, slots=True)
class Trunk:
    """A prefix that rows share, prefilled once and alone. `tokens` are its own, behind its
    parent's; the id covers the whole chain, so equal ids are equal trunks."""

    id: str
    parent: "Trunk | None" = field(compare=False, repr=False)
    tokens: Tokens = field(compare=False, repr=False)
    length: int = field(compare=False)  # tokens, its parents' included

    def chain(self) -> "list[Trunk]":
        """This trunk and all above it, the root first."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found[::-1]

    def chunks(self, size: int) -> Iterator[Tokens]:
        """Its own tokens in about equal pieces of at most `size`."""
        number = -(-len(self.tokens) // size)
        yield from np.array_split(self.tokens, number)


def make_trunk(parent: Trunk | None, tokens: Tokens) -> Trunk:
    """A trunk of `tokens` behind `parent`."""
    before = parent.length if parent else 0
    name = trunk_id(parent.id if parent else None, trunk_block(tokens))
    return Trunk(name, parent, tokens, before + len(tokens))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A sequence of the batch: one or more branches of token ids, one after another.

    `starts` is where each branch begins in `tokens`; `parents` the index in `tokens` of the token
    that stands before each branch's first, -1 for the trunk's last (or nothing, without a trunk).
    """

    tokens: Tokens  # [tokens]
    starts: tuple[int, ...]
    parents: tuple[int, ...]


def chain(tokens: Tokens) -> Row:
    """A row of one branch."""
    return Row(tokens, (0,), (-1,))


@dataclass(frozen=True, slots=True)
class BatchTarget:
    """What a path of a row must answer for one part of a request.

    The path ends at index `end` of the row's tokens. Its outputs from the absolute position `start`
    on (trunk included) are scored with the path's own next tokens and, after its end, with `last`.
    A generation has start = the prompt's length and last = -1. `id` is the part id, the task's name
    in front.
    """

    row: int
    end: int
    start: int
    last: int
    id: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What the engine executes.

    `width` is the widest row's tokens; `slots` the prompts that generate at once (0 when scoring);
    `chunk` the tokens of a trunk that are prefilled at once, `prefill` those of prompts.
    """

    id: str
    task: str
    kind: Kind
    settings: Settings | None
    trunk: Trunk | None
    width: int
    rows: tuple[Row, ...] = field(compare=False)
    targets: tuple[BatchTarget, ...]
    slots: int
    chunk: int
    prefill: int = PREFILL

    @property
    def cost(self) -> int:
        """Tokens that it computes at most, padding included, its trunk's aside."""
        new_tokens = len(self.targets) * self.settings.max_gen_toks if self.settings else 0
        return len(self.rows) * self.width + new_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of its rows, without padding."""
        return sum(len(row.tokens) for row in self.rows)

    def tokens_of(self, target: BatchTarget) -> list[int]:
        """The token ids before what a target scores last, or goes on from: the trunk's, then its
        path's."""
        row, end = self.rows[target.row], target.end
        own: list[int] = []
        while end >= 0:
            branch = bisect_right(row.starts, end) - 1
            own += row.tokens[row.starts[branch] : end + 1].tolist()[::-1]
            end = row.parents[branch]
        above = self.trunk.chain() if self.trunk else []
        return [*(token for link in above for token in link.tokens.tolist()), *own[::-1]]


def make_batch(
    task: str, kind: Kind, settings: Settings | None, trunk: Trunk | None, rows: Sequence[Row],
    targets: Sequence[BatchTarget], policy: Policy,
) -> Batch:  # fmt: skip
    """A batch with the id of its content."""
    width = max(len(row.tokens) for row in rows)
    slots = slots_of(policy, settings, trunk.length if trunk else 0, targets)
    name = batch_id(
        kind, settings, trunk.id if trunk else None, batch_block(rows), targets, slots,
        policy,
    )  # fmt: skip
    return Batch(name, task, kind, settings, trunk, width, tuple(rows), tuple(targets), slots,
                 policy.chunk, policy.prefill)  # fmt: skip


def slots_of(
    policy: Policy, settings: Settings | None, trunk: int, targets: Iterable[BatchTarget]
) -> int:
    """How many prompts of a batch generate at once (0 when scoring), so that their own caches fit
    the policy, however long they get. `trunk`: its tokens."""
    if settings is None:
        return 0
    return policy.slots(max(t.start for t in targets) - trunk + settings.max_gen_toks)


def trunk_id(parent: str | None, block: bytes) -> str:
    """Digest of a trunk's own token ids (its block) and of its parent's id."""
    return canon.digest({"parent": parent, "tokens": canon.digest_bytes(block)})


def batch_id(
    kind: Kind, settings: Settings | None, trunk: str | None, block: bytes,
    targets: Iterable[BatchTarget], slots: int, policy: Policy,
) -> str:  # fmt: skip
    """Digest of everything that the engine sees of a batch. `trunk`: its id; `block`: the rows."""
    prefill = {"prefill": policy.prefill} if policy.memory and settings else {}
    return canon.digest(
        {
            "kind": kind,
            "settings": settings.to_json() if settings else None,
            "trunk": trunk,
            "tokens": canon.digest_bytes(block),
            "targets": [[t.row, t.end, t.start, t.last, t.id] for t in targets],
            "slots": slots,
            "chunk": policy.chunk,
            **prefill,
        }
    )


def trunk_block(tokens: Tokens) -> bytes:
    """A trunk's own token ids as little-endian unsigned 32-bit integers."""
    return tokens.astype("<u4").tobytes()


def trunk_tokens(block: bytes) -> Tokens:
    """What `trunk_block` wrote."""
    return np.frombuffer(block, dtype="<u4").astype(np.uint32)


def batch_block(rows: Sequence[Row]) -> bytes:
    """Rows as little-endian unsigned 32-bit integers: their number, the tokens of each, the
    branches of each, all starts, all parents + 1, all token ids."""
    head = [len(rows), *(len(row.tokens) for row in rows), *(len(row.starts) for row in rows)]
    head.extend(start for row in rows for start in row.starts)
    head.extend(parent + 1 for row in rows for parent in row.parents)
    parts = [np.asarray(head, dtype=np.uint32), *(row.tokens for row in rows)]
    return np.concatenate(parts).astype("<u4").tobytes()


def batch_rows(block: bytes) -> tuple[Row, ...]:
    """What `batch_block` wrote; the caller has checked its digest."""
    values = np.frombuffer(block, dtype="<u4").astype(np.uint32)
    count = int(values[0])
    lengths = values[1 : count + 1].tolist()
    branches = values[count + 1 : 2 * count + 1].tolist()
    first = 2 * count + 1
    middle, last = first + sum(branches), first + 2 * sum(branches)
    starts, parents = values[first:middle].tolist(), values[middle:last].tolist()
    tokens = values[last:]
    rows, token, branch = [], 0, 0
    for length, number in zip(lengths, branches, strict=True):
        part = slice(branch, branch + number)
        above = tuple(parent - 1 for parent in parents[part])
        rows.append(Row(tokens[token : token + length], tuple(starts[part]), above))
        token, branch = token + length, branch + number
    return tuple(rows)
