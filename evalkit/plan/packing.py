"""How much goes into a batch: items of known size into rows of about one width.

Everything is decided by sizes and by the policy; of equal sizes, the order they came in counts.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from evalkit.plan.batch import Policy

MATMULS = 12288  # tokens that a row may have until attention costs what the rest does (a 1B's)
PASS = 128  # tokens that cost about what reading the weights does: a forward pass more


@dataclass(frozen=True, slots=True)
class Item:
    """Something to pack: `index` says what, `size` is its tokens, `scored` the positions whose
    logits it needs."""

    index: int
    size: int
    scored: int


Row = list[Item]
Rows = list[Row]  # a batch


def forests(items: Sequence[Item], policy: Policy) -> Iterator[Rows]:
    """Level tree, scoring: several items a row."""
    return _cut(_filled(items, policy.row_tokens, policy.max_scored), policy, len(items))


def _filled(items: Sequence[Item], width: int, max_scored: int) -> Rows:
    """Rows of at least `width` tokens, or as wide as their largest item, each filled up with the
    largest of the others that still fit."""
    left = sorted(items, key=lambda item: (item.size, -item.index))
    rows: Rows = []
    while left:
        row = [left.pop()]
        room = max(width, row[0].size) - row[0].size
        scored = max_scored - row[0].scored
        while at := bisect_right(left, room, key=lambda item: item.size):
            if left[at - 1].scored > scored:
                break
            row.append(left.pop(at - 1))
            room, scored = room - row[-1].size, scored - row[-1].scored
        rows.append(row)
    return rows


def by_length(items: Sequence[Item], policy: Policy, trunk: int) -> Iterator[Rows]:
    """Levels prefix and none, scoring: an item a row, each with a copy of a trunk of `trunk`
    tokens."""
    rows = [[item] for item in items]
    if not trunk:
        return _cut(rows, policy, policy.max_rows)
    longest = trunk + max(item.size for item in items)
    return _cut(rows, policy, max(1, min(policy.max_rows, policy.max_cache // longest)))


def waves(items: Sequence[Item], policy: Policy, tokens: int) -> Iterator[Rows]:
    """Level tree, generation: as few batches as the policy allows, equally full, so that none is
    left with a few prompts that keep few slots busy. An item's `scored` are its prompts, each of
    which grows to `tokens` at most."""
    most = policy.waves * policy.slots(tokens)
    number = -(-sum(item.scored for item in items) // most)
    while any(sum(item.scored for item in part) > most for part in _dealt(items, number)):
        number += 1
    for part in _dealt(items, number):
        yield _level(part, policy)


def _level(items: Row, policy: Policy) -> Rows:
    """Items in rows of about one width, once or twice the largest's, with the least padding."""
    width, total = max(policy.row_tokens, *(item.size for item in items)), _size(items)
    found = [_filled(items, width, total)]
    for number in range(-(-total // (2 * width)), -(-total // width) + 2):
        found.append(_dealt(items, number, by_size=True))

    def cost(rows: Rows) -> int:
        widest = max(map(_size, rows))
        return len(rows) * widest * (MATMULS + widest)

    return _widest_first(min(found, key=cost))


def _dealt(items: Sequence[Item], number: int, *, by_size: bool = False) -> list[Row]:
    """Each item, the largest first, to the one of `number` lists that has the least so far: by
    prompts, or by size."""
    found: list[Row] = [[] for _ in range(number)]
    least = [(0, index) for index in range(number)]
    for item in sorted(items, key=lambda i: (-i.size if by_size else -i.scored, -i.size, i.index)):
        load, index = least[0]
        found[index].append(item)
        heapq.heapreplace(least, (load + (item.size if by_size else item.scored), index))
    return [part for part in found if part]


def in_step(items: Sequence[Item], policy: Policy, tokens: int) -> Iterator[Rows]:
    """Levels prefix and none, generation: rows of one length, because padding would pass through a
    recurrent state, and all of them at once. A row grows to `tokens` at most, its copy of the trunk
    included."""
    return _even([[item] for item in items], policy, policy.slots(tokens))


def even(items: Sequence[Item], policy: Policy) -> Iterator[Rows]:
    """Rows of one length, where a row's answers depend on the longest of its batch."""
    return _even([[item] for item in items], policy, policy.max_rows)


def alone(items: Sequence[Item], policy: Policy) -> Iterator[Rows]:
    """Each item in a batch of its own."""
    return _cut([[item] for item in items], policy, 1)


def _cut(rows: Rows, policy: Policy, max_rows: int) -> Iterator[Rows]:
    """Rows, the widest first (what runs out of memory does so at once), cut where padding and
    `PASS` tokens a batch are least in sum. A row too big for the policy is alone."""
    rows = _widest_first(rows)
    sizes = [_size(row) for row in rows]
    scored = [0, *accumulate(sum(item.scored for item in row) for row in rows)]
    least, start = [0], [0]  # of the rows up to each: their tokens at least, their last batch
    for end in range(1, len(rows) + 1):
        best = (least[end - 1] + sizes[end - 1], end - 1)
        for first in range(end - 2, max(-1, end - max_rows - 1), -1):
            padded = (end - first) * sizes[first]
            if padded > policy.max_tokens or scored[end] - scored[first] > policy.max_scored:
                break
            best = min(best, (least[first] + padded, first))
        least.append(best[0] + PASS)
        start.append(best[1])
    batches: list[Rows] = []
    end = len(rows)
    while end:
        batches.append(rows[start[end] : end])
        end = start[end]
    return reversed(batches)


def _even(rows: Rows, policy: Policy, max_rows: int) -> Iterator[Rows]:
    """Rows, the widest first, cut where their length changes."""
    for _, run in groupby(_widest_first(rows), _size):
        yield from _cut(list(run), policy, max_rows)


def _widest_first(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: (-_size(row), row[0].index))


def _size(row: Row) -> int:
    return sum(item.size for item in row)
