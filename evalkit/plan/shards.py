"""Who works on which part of a plan: shards of equal cost, cut between trunks where that allows it.

Pure functions of the plan, so that shards that never speak to each other agree. Whatever is cut,
the answers are the same; only how often a trunk is computed again depends on it. Batches are meant
by their index in the plan.
"""

import heapq
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evalkit.base.errors import EvalkitError
from evalkit.plan.types import PlanBody

PARTS = 4  # of a shard, at least, so that shards of whole pieces come out about equal
START_S = 60.0  # until a shard answers its first batch: the node, the image, the weights
WORTH = 0.8  # of a shard's time that must go into batches
MOST = 1024  # shards of a run
WAVES = 2  # times as many prompts as generate at once, which a worker should know of
Piece = list[int]  # batches that are worked through in this order


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, from 1 on."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse(text: str) -> Shard:
    """The shard that `K/N` means; EvalkitError where it means none."""
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return Shard(int(first), int(second))
    raise EvalkitError(f"'{text}' is no shard", fix="use K/N with K from 1 to N, e.g. --shard 1/4")


def of_array(environment: Mapping[str, str]) -> Shard | None:
    """The shard of a Slurm job array's task; None outside of one, or in one of a single task.

    Raises EvalkitError where the array's task numbers do not run evenly.
    """
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    given = {name: environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names}
    if not given["ID"].isdecimal() or given["COUNT"] in ("", "1"):
        return None
    try:
        number, count, least, most = (int(given[name]) for name in names[:4])
        step = int(given["STEP"] or 1)
        index, rest = divmod(number - least, step)
        if not rest and least + step * (count - 1) == most:
            return Shard(index + 1, count)
    except (ValueError, ZeroDivisionError):
        pass
    raise EvalkitError(
        f"task {given['ID']} of this job array is no shard: its numbers do not run evenly",
        fix="pass --shard K/N",
    )


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Costs:
    """What batches cost, in tokens, trunks included. `body`: plan.json's content."""

    def __init__(self, body: PlanBody) -> None:
        self._batches, self._trunks = body["batches"], body["trunks"]

    def chain(self, batch: int) -> list[int]:
        """The trunks that a batch hangs on, the root first."""
        found = []
        index = self._batches[batch]["trunk"]
        while index is not None:
            found.append(index)
            index = self._trunks[index]["parent"]
        return found[::-1]

    def tokens(self, trunks: Iterable[int]) -> int:
        """The own tokens of some trunks."""
        return sum(self._trunks[index]["length"] for index in trunks)

    def shared(self, one: int, two: int) -> int:
        """Tokens of the trunks that two batches share: what it costs to compute them apart."""
        return self.tokens(set(self.chain(one)) & set(self.chain(two)))

    def each(self, piece: Sequence[int]) -> list[int]:
        """What each batch of a piece costs where they are computed in this order."""
        found, before = [], set[int]()
        for batch in piece:
            chain = set(self.chain(batch))
            found.append(self._batches[batch]["cost"] + self.tokens(chain - before))
            before = chain
        return found

    def of(self, piece: Sequence[int]) -> int:
        """What a piece costs."""
        return sum(self.each(piece))

    def halved(self, piece: Piece) -> tuple[Piece, Piece]:
        """Return two parts of a piece of several batches, cut where the more expensive part costs
        least. The second part pays for the trunks that it computes again."""
        each = self.each(piece)
        total, first = sum(each), 0
        best, at = total + 1, 1
        for index in range(1, len(piece)):
            first += each[index - 1]
            most = max(first, total - first + self.shared(piece[index - 1], piece[index]))
            if most < best:
                best, at = most, index
        return piece[:at], piece[at:]

    def cut(self, piece: Piece, limit: float) -> Iterator[Piece]:
        """Parts of a piece of at most `limit` each, unless a single batch costs more."""
        if len(piece) == 1 or self.of(piece) <= limit:
            yield piece
            return
        for half in self.halved(piece):
            yield from self.cut(half, limit)

    def pieces(self, batches: Sequence[int]) -> list[Piece]:
        """Return the batches by the outermost trunk that they share with the one before, the most
        expensive piece first."""
        found: list[Piece] = []
        last: int | None = None
        for batch in sorted(batches):
            root = next(iter(self.chain(batch)), None)
            if root is None or root != last:
                found.append([])
            found[-1].append(batch)
            last = root
        return sorted(found, key=lambda piece: (-self.of(piece), piece))


class Prompts:
    """How many texts batches generate, where batches may share slots. `body`: plan.json's
    content."""

    def __init__(self, body: PlanBody) -> None:
        self._slots = body["policy"]["max_slots"]
        is_shared = body["level"] == "tree"
        self._of = [
            len(entry["targets"]) if is_shared and entry["kind"] == "generate_until" else 0
            for entry in body["batches"]
        ]

    def are_few(self, sent: Collection[int], left: Collection[int], workers: int) -> bool:
        """Whether a worker that knows of the batches `sent` needs more to fill its slots, and to
        fill those again that short texts leave: of the batches that are `left`, those of other
        workers included, no more than its share."""
        known = [self._of[batch] for batch in sent]
        share = -(-sum(self._of[batch] for batch in left) // workers)
        return all(known) and sum(known) < min(share, WAVES * self._slots)


def deal(body: PlanBody, count: int) -> list[Piece]:
    """The batches of each of `count` shards, all of the plan's together.

    Generations are dealt first and evenly: they may end long before they have cost what the plan
    says, and then every shard is spared the same.
    """
    costs = Costs(body)
    loads = [(0, index) for index in range(count)]
    shards: list[Piece] = [[] for _ in range(count)]
    writing = [entry["kind"] == "generate_until" for entry in body["batches"]]
    for kind in (True, False):
        pieces = costs.pieces([index for index, is_kind in enumerate(writing) if is_kind == kind])
        limit = sum(map(costs.of, pieces)) / (PARTS * count)
        parts = [part for piece in pieces for part in costs.cut(piece, limit)]
        for part in sorted(parts, key=lambda part: (-costs.of(part), part)):
            load, index = heapq.heappop(loads)
            shards[index].extend(part)
            heapq.heappush(loads, (load + costs.of(part), index))
    return [sorted(shard) for shard in shards]


def default_count(body: PlanBody, tokens_per_second: float) -> int:
    """The most shards that still spend `WORTH` of their time on batches: each pays for its start,
    and all wait for the most expensive one (bench/scale.py shows what that comes to)."""
    best, count = 1, 2
    while count <= min(MOST, len(body["batches"])):
        costs = Costs(body)
        loads = [costs.of(shard) for shard in deal(body, count)]
        busy = sum(loads) / tokens_per_second / count
        if busy < WORTH * (START_S + max(loads) / tokens_per_second):
            break
        best, count = count, count * 2
    return best
