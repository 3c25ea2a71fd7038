"""Which rows share a batch: fixed from the whole request list, before anything runs.

Rows are planned per task, request kind and generation settings, sorted by their tokens: another
task in the suite never changes a task's batches, nor does the order of the requests. `sharing`
decides what is computed once. How much goes into a batch follows here from sizes and the policy
alone; of equal sizes, the order they came in counts.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from evalkit.base import canon
from evalkit.plan import sharing, tokenise
from evalkit.plan.batch import Batch, BatchTarget, Policy, make_batch
from evalkit.plan.requests.request import Settings
from evalkit.plan.sharing import PASS, Stem
from evalkit.plan.tokenise import Target, Tokenised
from evalkit.plan.trie import Forest, Trie, forest, order_key
from evalkit.plan.types import Kind

LEVELS = ("tree", "prefix", "none")  # named for what rows share, the most first
MATMULS = 12288  # tokens that a row may have until attention costs what the rest does (a 1B's)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that may share batches, in the order of their tokens. `over_limit`: they are longer than
    what the model's RoPE is the same for."""

    task: str
    kind: Kind
    settings: Settings | None
    over_limit: bool
    rows: list[tokenise.Row]

    def trie(self) -> Trie:
        """The rows' trie."""
        starts = [min(target.start for target in row.targets) for row in self.rows]
        return Trie([row.tokens for row in self.rows], starts)


@dataclass(frozen=True, slots=True)
class Item:
    """Something to pack: `index` says what, `size` is its tokens, `scored` the positions whose
    logits it needs."""

    index: int
    size: int
    scored: int


Row = list[Item]
Rows = list[Row]  # a batch


def make_batches(
    tokenised: Tokenised, policy: Policy, *, level: str, rope_limit: int | None = None
) -> Iterator[Batch]:
    """Every batch in a fixed order: a trunk's one after another, depth first.

    `rope_limit`: where a model computes positions otherwise as soon as one lies behind the limit
    (dynamic RoPE, longrope), rows that reach there share no batch and no prefix with others, and
    are batched with rows of the same length at most.
    """
    for group in groups(tokenised, rope_limit):
        yield from group_batches(group, group.trie(), policy, level)


def group_batches(group: Group, trie: Trie, policy: Policy, level: str) -> Iterator[Batch]:
    """The batches of a group, whose trie is given."""
    assert level in LEVELS, f"no level {level}"
    for stem in sharing.stems(trie, _sharing(group, trie, policy, level)):
        for rows in _packed(group, trie, stem, policy, level):
            yield _batch(group, trie, stem, rows, policy)


def groups(tokenised: Tokenised, rope_limit: int | None = None) -> list[Group]:
    """The rows by what may share a batch, sorted."""
    found: dict[tuple[str, str, str, bool], Group] = {}
    for row in tokenised.rows:
        request = row.targets[0].request
        settings = request.settings
        tokens = len(row.tokens) + (settings.max_gen_toks if settings else 0)
        over = rope_limit is not None and tokens > rope_limit
        text = canon.dumps(settings.to_json()) if settings else ""
        group = Group(request.task, request.kind, settings, over, [])
        found.setdefault((request.task, request.kind, text, over), group).rows.append(row)
    for group in found.values():
        group.rows.sort(key=lambda row: (order_key(row.tokens), _target_key(row.targets[0])))
    return [found[key] for key in sorted(found)]


def _target_key(target: Target) -> tuple[int, int, int, int]:
    request = target.request
    return request.doc_id, request.index, request.repeat, target.part or 0


def _sharing(group: Group, trie: Trie, policy: Policy, level: str) -> sharing.Sharing:
    if level == "none" or group.over_limit:
        return sharing.Nothing()
    if group.settings:
        return sharing.Prompts(trie, policy, group.settings.max_gen_toks, level == "tree")
    return sharing.Trees(trie, policy) if level == "tree" else sharing.Clones(trie, policy)


def _packed(group: Group, trie: Trie, stem: Stem, policy: Policy, level: str) -> Iterable[Rows]:
    """The batches of what hangs on a stem: items, numbered as its subtrees are."""
    length = stem.trunk.length if stem.trunk else 0
    if group.settings:
        items = [Item(n, trie.unique(part), len(part)) for n, part in enumerate(stem.subtrees)]
        longest = max(int(trie.lengths[part.lo : part.hi].max()) for part in stem.subtrees)
        if group.over_limit:
            return _pack_alone(items, policy)
        if level == "tree":
            return _pack_waves(items, policy, longest - length + group.settings.max_gen_toks)
        return _pack_in_step(items, policy, longest + group.settings.max_gen_toks)
    items = [Item(n, trie.unique(part), trie.scored(part)) for n, part in enumerate(stem.subtrees)]
    if group.over_limit:
        return _pack_even(items, policy)
    if level == "tree":
        return _pack_forests(items, policy)
    return _pack_by_length(items, policy, length)


def _batch(group: Group, trie: Trie, stem: Stem, rows: Rows, policy: Policy) -> Batch:
    made = [forest(trie, [stem.subtrees[item.index] for item in row]) for row in rows]
    targets = list(_targets(group, made))
    return make_batch(
        group.task, group.kind, group.settings, stem.trunk, [found.row for found in made], targets,
        policy,
    )  # fmt: skip


def _targets(group: Group, forests: Sequence[Forest]) -> Iterator[BatchTarget]:
    for row, found in enumerate(forests):
        for sequence, end in found.ends:
            for target in sorted(group.rows[sequence].targets, key=_target_key):
                name = f"{group.task}/{target.local_id}"
                yield BatchTarget(row, end, target.start, target.last, name)


def _pack_forests(items: Sequence[Item], policy: Policy) -> Iterator[Rows]:
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


def _pack_by_length(items: Sequence[Item], policy: Policy, trunk: int) -> Iterator[Rows]:
    """Levels prefix and none, scoring: an item a row, each with a copy of a trunk of `trunk`
    tokens."""
    rows = [[item] for item in items]
    if not trunk:
        return _cut(rows, policy, policy.max_rows)
    longest = trunk + max(item.size for item in items)
    return _cut(rows, policy, max(1, min(policy.max_rows, policy.max_cache // longest)))


def _pack_waves(items: Sequence[Item], policy: Policy, tokens: int) -> Iterator[Rows]:
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


def _pack_in_step(items: Sequence[Item], policy: Policy, tokens: int) -> Iterator[Rows]:
    """Levels prefix and none, generation: rows of one length, because padding would pass through a
    recurrent state, and all of them at once. A row grows to `tokens` at most, its copy of the trunk
    included."""
    return _even([[item] for item in items], policy, policy.slots(tokens))


def _pack_even(items: Sequence[Item], policy: Policy) -> Iterator[Rows]:
    """Rows of one length, where a row's answers depend on the longest of its batch."""
    return _even([[item] for item in items], policy, policy.max_rows)


def _pack_alone(items: Sequence[Item], policy: Policy) -> Iterator[Rows]:
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
