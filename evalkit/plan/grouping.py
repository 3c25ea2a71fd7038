"""Which rows share a batch: fixed from the whole request list, before anything runs.

Rows are planned per task, request kind and generation settings, sorted by their tokens: another
task in the suite never changes a task's batches, nor does the order of the requests. What is
computed once is decided in `sharing`, what fits into a batch in `pack`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evalkit.base import canon
from evalkit.plan import packing, sharing, tokenise
from evalkit.plan.batch import Batch, BatchTarget, Policy, make_batch
from evalkit.plan.packing import Item, Rows
from evalkit.plan.requests.request import Kind, Settings
from evalkit.plan.sharing import Stem
from evalkit.plan.tokenise import Target, Tokenised
from evalkit.plan.trie import Forest, Trie, forest, order_key

LEVELS = ("tree", "prefix", "none")  # named for what rows share, the most first


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
            return packing.alone(items, policy)
        if level == "tree":
            return packing.waves(items, policy, longest - length + group.settings.max_gen_toks)
        return packing.in_step(items, policy, longest + group.settings.max_gen_toks)
    items = [Item(n, trie.unique(part), trie.scored(part)) for n, part in enumerate(stem.subtrees)]
    if group.over_limit:
        return packing.even(items, policy)
    if level == "tree":
        return packing.forests(items, policy)
    return packing.by_length(items, policy, length)


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
