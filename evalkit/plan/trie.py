"""Token sequences in lexicographic order, where every subtree of their trie is a range.

The trie is never built: the sorted order and how much each sequence shares with the one before it
say all that is asked of it, in memory linear in the number of sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from evalkit.plan.batch import Row
from evalkit.plan.tokenise import Tokens

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Range:
    """Sequences `lo` to `hi` (not included) of a trie, behind the first `depth` tokens, which they
    share."""

    lo: int
    hi: int
    depth: int

    def __len__(self) -> int:
        return self.hi - self.lo


class Trie:
    """Sequences in the order of `order_key`. `starts`: the first position of each whose output is
    needed; it lies inside the sequence, or at its end where only its last output is."""

    def __init__(self, sequences: Sequence[Tokens], starts: Sequence[int]) -> None:
        self.sequences = sequences
        self.lengths: Numbers = np.asarray([len(tokens) for tokens in sequences], dtype=np.int64)
        self.starts: Numbers = np.asarray(starts, dtype=np.int64)
        # tokens that each shares with the one before it
        self.shared: Numbers = np.zeros(len(sequences), dtype=np.int64)
        for index in range(1, len(sequences)):
            self.shared[index] = _common(sequences[index - 1], sequences[index])
        own = self.lengths - self.shared
        self._own_before: Numbers = np.concatenate([[0], np.cumsum(own)])

    @property
    def whole(self) -> Range:
        """Everything."""
        return Range(0, len(self.sequences), 0)

    def unique(self, of: Range) -> int:
        """Tokens of a subtree, each shared one counted once."""
        first = int(self.lengths[of.lo]) - of.depth
        return first + int(self._own_before[of.hi] - self._own_before[of.lo + 1])

    def common(self, of: Range) -> int:
        """The depth of a subtree's branch point: how many tokens all of its sequences share."""
        inner = self.shared[of.lo + 1 : of.hi]
        return int(inner.min()) if len(inner) else int(self.lengths[of.lo])

    def computable(self, of: Range) -> int:
        """How many tokens can be computed apart, for all of a subtree at once: those that its
        sequences share, short of the first whose output is needed, and not all of any sequence."""
        part = slice(of.lo, of.hi)
        least = min(int(self.starts[part].min()), int(self.lengths[part].min()) - 1)
        return min(self.common(of), least)

    def children(self, of: Range) -> list[Range]:
        """The subtrees that part at a subtree's branch point, in order."""
        cuts = np.flatnonzero(self.shared[of.lo + 1 : of.hi] == self.common(of)) + of.lo + 1
        edges = [of.lo, *cuts.tolist(), of.hi]
        return [Range(lo, hi, of.depth) for lo, hi in pairwise(edges)]

    def scored(self, of: Range) -> int:
        """Positions of a subtree whose outputs are needed, each shared one counted once."""
        count = 0
        path: list[tuple[int, int]] = []  # what is counted of the last sequence: [from, to)
        for index in range(of.lo, of.hi):
            start, length = int(self.starts[index]), int(self.lengths[index])
            start = min(start, length - 1)
            shared = int(self.shared[index]) if index > of.lo else 0
            path = [(lo, min(hi, shared)) for lo, hi in path if lo < shared]
            count += length - start - sum(max(0, hi - max(lo, start)) for lo, hi in path)
            path = [(lo, min(hi, start)) for lo, hi in path if lo < start] + [(start, length)]
        return count


def order_key(tokens: Tokens) -> bytes:
    """Bytes that sort as the token ids do."""
    return tokens.astype(">u4").tobytes()


def _common(one: Tokens, two: Tokens) -> int:
    length = min(len(one), len(two))
    unlike = one[:length] != two[:length]
    first = int(unlike.argmax()) if length else 0
    return first if length and unlike[first] else length


@dataclass(frozen=True, slots=True)
class Forest:
    """A row that holds some subtrees. `ends`: (sequence, index of its last token) of each."""

    row: Row
    ends: list[tuple[int, int]]


def forest(trie: Trie, subtrees: Sequence[Range]) -> Forest:
    """Lay subtrees one behind another: a branch for what each sequence adds to those before it."""
    parts: list[Tokens] = []
    starts: list[int] = []
    parents: list[int] = []
    ends: list[tuple[int, int]] = []
    size = 0
    for subtree in subtrees:
        path: list[tuple[int, int]] = []  # of the last sequence's branches: depth, first index
        for index in range(subtree.lo, subtree.hi):
            depth = int(trie.shared[index]) if index > subtree.lo else subtree.depth
            while path and path[-1][0] >= depth:
                path.pop()
            parent = path[-1][1] + depth - 1 - path[-1][0] if path else -1
            if depth == len(trie.sequences[index]):  # the same as the one before it
                ends.append((index, parent))
                continue
            starts.append(size)
            parents.append(parent)
            path.append((depth, size))
            parts.append(trie.sequences[index][depth:])
            size += len(parts[-1])
            ends.append((index, size - 1))
    return Forest(Row(np.concatenate(parts), tuple(starts), tuple(parents)), ends)
