"""What is computed once: where trunks stand in a trie, and which subtrees hang on each.

A trunk is a forward pass of its own, so it has to save more tokens than that costs. How a level
shares is in two questions: does this subtree get a trunk, and if not, which smaller ones is it cut
into, down to those that become a row or a part of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from evalkit.plan.batch import Policy, Trunk, make_trunk
from evalkit.plan.trie import Range, Trie

PASS = 128  # tokens that cost about what reading the weights does: a forward pass more
MIN_CLONES = 8  # rows that a trunk is copied to at least, at level prefix
DOUBLED = 64  # of a tree, the share that may be computed beside it once more: 1/64


@dataclass(frozen=True, slots=True)
class Stem:
    """A trunk, or none, and the subtrees that hang on it."""

    trunk: Trunk | None
    subtrees: list[Range]


class Sharing(Protocol):
    """How a level shares."""

    def pays(self, part: Range, depth: int, whole: Range) -> bool:
        """Whether `part` of what hangs on a trunk (`whole`) gets one of its own, to `depth`."""

    def pieces(self, part: Range) -> list[Range]:
        """What a subtree without a trunk of its own is cut into; itself where it stays whole."""


def stems(trie: Trie, sharing: Sharing) -> Iterator[Stem]:
    """Every trunk with what hangs on it and on none of its children: depth first."""
    pending: list[tuple[Range, Trunk | None]] = [(trie.whole, None)]
    while pending:
        whole, trunk = pending.pop()
        loose: list[Range] = []
        nested: list[tuple[Range, Trunk | None]] = []
        todo = [whole]
        while todo:
            part = todo.pop()
            depth = trie.computable(part)
            if sharing.pays(part, depth, whole):
                tokens = trie.sequences[part.lo][part.depth : depth]
                nested.append((Range(part.lo, part.hi, depth), make_trunk(trunk, tokens)))
            elif (pieces := sharing.pieces(part)) == [part]:
                loose.append(part)
            else:
                todo.extend(reversed(pieces))
        if loose:
            yield Stem(trunk, loose)
        pending.extend(reversed(nested))


@dataclass(frozen=True, slots=True)
class Trees:
    """Level tree, scoring: a subtree is a row or a part of one, so siblings share without a trunk.

    Every token of a row meets every other in attention, so a tree is kept small: only so large that
    the prefix which its siblings compute again is at most 1/64 of it, and at most `max_tree`. Where
    little hangs on a long prefix (one document's choices behind shots of its own), the prefix stays
    in the tree, which is hardly more than a chain: a trunk of its own would be a forward pass for a
    handful of tokens.
    """

    trie: Trie
    policy: Policy

    def pays(self, part: Range, depth: int, whole: Range) -> bool:
        """Where the rest is too big for a tree, and the rows that it makes, but for the first, save
        more than a forward pass; two, where `part` would have shared batches with others."""
        prefix = depth - part.depth
        rest = self.trie.unique(part) - prefix
        if prefix < self.policy.min_trunk or len(part) == 1 or rest <= self.policy.max_tree:
            return False
        if not self.policy.holds(depth):
            return False
        longest = int(self.trie.lengths[part.lo : part.hi].max()) - depth
        rows = rest / max(self.policy.row_tokens, longest)
        return prefix * (rows - 1) > PASS * (1 if len(part) == len(whole) else 2)

    def pieces(self, part: Range) -> list[Range]:
        """One tree where it is small enough; else its children, small neighbours together."""
        return trees(self.trie, self.policy, part, len(part))


def trees(trie: Trie, policy: Policy, part: Range, most: int) -> list[Range]:
    """A subtree whole where it makes a tree, of `most` sequences at most; else its children, small
    neighbours together."""
    size, shared = trie.unique(part), trie.common(part) - part.depth
    limit = max(policy.row_tokens, min(policy.max_tree, DOUBLED * shared))
    prefix = trie.computable(part) - part.depth
    long = prefix >= policy.min_trunk and size - prefix <= limit
    if len(part) == 1 or (len(part) <= most and (size <= limit or long)):
        return [part]
    runs: list[Range] = []
    for child in trie.children(part):
        joined = Range(runs[-1].lo, child.hi, part.depth) if runs else part
        if runs and len(joined) <= most and trie.unique(joined) <= limit:
            runs[-1] = joined
        else:
            runs.append(child)
    return runs


@dataclass(frozen=True, slots=True)
class Clones:
    """Level prefix, scoring: each row is one sequence and gets its own copy of a trunk.

    A child trunk is computed from its root on, since a recurrent state can't be cut back to a
    parent's: it has to save more than that.
    """

    trie: Trie
    policy: Policy

    def pays(self, part: Range, depth: int, whole: Range) -> bool:
        """Where enough rows share enough tokens."""
        prefix = depth - part.depth
        if prefix < self.policy.min_trunk or len(part) < MIN_CLONES or not self.policy.holds(depth):
            return False
        passes = 1 if len(part) == len(whole) else 2
        return prefix * (len(part) - 1) > part.depth + PASS * passes

    def pieces(self, part: Range) -> list[Range]:
        """Down to single sequences."""
        return self.trie.children(part) if len(part) > 1 else [part]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Generation: at level tree prompts make trees as what is scored does; below, each is a row.

    Decoding reads the trunk for all at once, so a trunk for all the prompts there are always pays.
    One for a part of them makes another batch, so up to `max_gen_toks` steps more, and a step costs
    about as much as one with all slots in use, since it reads all the weights whatever its width.
    So width goes first, and no batch is left with a handful of prompts for a few tokens' sake: a
    part has to save more tokens than such steps compute.
    """

    trie: Trie
    policy: Policy
    max_gen_toks: int
    in_trees: bool

    def pays(self, part: Range, depth: int, whole: Range) -> bool:
        """Where enough prompts share enough tokens."""
        prefix = depth - part.depth
        least = 2 if self.in_trees else MIN_CLONES
        if prefix < self.policy.min_trunk or len(part) < least or not self.policy.holds(depth):
            return False
        steps = 0 if len(part) == len(whole) else self.max_gen_toks
        return prefix * (len(part) - 1) > self.policy.max_slots * steps

    def pieces(self, part: Range) -> list[Range]:
        """Trees, or down to single prompts."""
        if self.in_trees:
            return trees(self.trie, self.policy, part, self.policy.max_slots)
        return self.trie.children(part) if len(part) > 1 else [part]


@dataclass(frozen=True, slots=True)
class Nothing:
    """Level none: every row from its first token on."""

    def pays(self, part: Range, depth: int, whole: Range) -> bool:
        """Never."""
        return False

    def pieces(self, part: Range) -> list[Range]:
        """Single sequences, at once."""
        return [Range(index, index + 1, part.depth) for index in range(part.lo, part.hi)]
