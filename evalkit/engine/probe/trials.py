"""What a level is tried on before it is trusted: small batches in every shape that plans have.

Nested trunks that are not whole chunks long, rows of several trees whose branches branch again,
padding, prompts from one token to more than a slot's first buffer, slots that are refilled and
closed up. All sequences are random token ids: what they mean does not matter, who sees whom does.
They are as few and as short as the planted faults of `tests/test_probe.py` allow, because a worker
computes nothing else before they have passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from evalkit.plan.batch import Batch, BatchTarget, Policy, Row, Trunk, make_batch, make_trunk
from evalkit.plan.requests.request import Settings
from evalkit.plan.tokenise import Tokens

NAME = "probe"
POLICY = Policy(chunk=8, max_slots=5)
SETTINGS = Settings((".",), 6)
ROOT, NESTED = 21, 5  # tokens of the trunks; the root alone reaches out of a short window
# Lengths of what stands on a trunk: of documents' contexts and of their endings. A document's first
# ending is also the beginning of its last: a branch on a branch.
ON_ROOT = ((5, (2, 3, 4)), (3, (1, 4, 2)))
ON_NESTED = ((4, (2, 4, 3)),)
ALONE = ((24, (4,)), (1, (1,)), (7, (2, 3, 2)))
# Of prompts: of any lengths at level tree, of one length in a batch below.
UNEVEN, LONG, EVEN, LONG_EVEN = (6, 3, 1, 5, 2, 4, 2), (8, 63), (4,) * 5, (63,) * 2


@dataclass(frozen=True, slots=True)
class Question:
    """A sequence (its trunk included) of which the last `count` outputs are scored, with its own
    next tokens and, at the end, with `last`."""

    sequence: list[int]
    count: int
    last: int


Document = list[Question]


class Stops:
    """In a tokenizer's place: texts stop where a call says, not where a model would, so that some
    slots are free before others whatever the weights are."""

    def __init__(self) -> None:
        self.hf = SimpleNamespace(eos_token=None, eos_token_id=None)
        self._calls = 0

    def decode(self, tokens: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """A stop string for every fourth text, for others with each call."""
        if skip_special_tokens:  # a whole answer
            return [""] * len(tokens)
        self._calls += 1
        return ["" if (text + self._calls) % 4 else "." for text in range(len(tokens))]


class Material:
    """Trunks and what hangs on them, drawn by a seed from the `allowed` token ids."""

    def __init__(self, allowed: Tokens, seed: int = 0) -> None:
        self._allowed, self._source = allowed, np.random.default_rng(seed)
        root = make_trunk(None, self._draw(ROOT))
        nested = make_trunk(root, self._draw(NESTED))
        self.documents: list[tuple[Trunk | None, list[Document]]] = [
            (trunk, [self._document(trunk, *lengths) for lengths in shapes])
            for trunk, shapes in ((root, ON_ROOT), (nested, ON_NESTED), (None, ALONE))
        ]
        self.uneven = [(nested, self._prompts(nested, UNEVEN)), (None, self._prompts(None, LONG))]
        self.even = [(nested, self._prompts(nested, EVEN)), (None, self._prompts(None, LONG_EVEN))]

    def _draw(self, count: int) -> Tokens:
        return self._source.choice(self._allowed, count).astype(np.uint32)

    def _prompts(self, trunk: Trunk | None, lengths: Sequence[int]) -> list[list[int]]:
        shared = tokens_of(trunk) + self._draw(max(lengths) // 2).tolist()
        before = len(tokens_of(trunk))
        drawn = [shared + self._draw(max(lengths)).tolist() for _ in lengths]
        return [tokens[: before + n] for tokens, n in zip(drawn, lengths, strict=True)]

    def _document(self, trunk: Trunk | None, context: int, lengths: Sequence[int]) -> Document:
        begin = tokens_of(trunk) + self._draw(context).tolist()
        endings = [self._draw(length).tolist() for length in lengths]
        if len(endings) > 2:
            endings[-1] = endings[0] + endings[-1]
        lasts = self._draw(len(endings)).tolist()
        counts = (1, 1 + context // 2, 1 + len(endings[-1]))
        return [
            Question(begin + ending, count, last)
            for ending, count, last in zip(endings, counts, lasts, strict=False)
        ]


def tokens_of(trunk: Trunk | None) -> list[int]:
    """All tokens of a trunk, its parents' first."""
    return [] if trunk is None else tokens_of(trunk.parent) + trunk.tokens.tolist()


def scoring(level: str, trunk: Trunk | None, documents: Sequence[Document]) -> Batch:
    """A batch that scores documents, its targets in their questions' order: two documents share a
    row at level tree, no two questions below, and nothing is shared at level none."""
    trunk = None if level == "none" else trunk
    before = trunk.length if trunk else 0
    groups = [[question] for document in documents for question in document]
    if level == "tree":
        pairs = (documents[n : n + 2] for n in range(0, len(documents), 2))
        groups = [[question for document in pair for question in document] for pair in pairs]
    rows: list[Row] = []
    targets: list[BatchTarget] = []
    for group in groups:
        row, ends = forest([question.sequence[before:] for question in group])
        for question, end in zip(group, ends, strict=True):
            start, part = len(question.sequence) - question.count, f"{NAME}/{len(targets)}/0/0"
            targets.append(BatchTarget(len(rows), end, start, question.last, part))
        rows.append(row)
    return make_batch(NAME, "loglikelihood", None, trunk, rows, targets, POLICY)


def forest(sequences: Sequence[list[int]]) -> tuple[Row, list[int]]:
    """A row of sequences, what one shares with those before it only once, and where each ends."""
    tokens: list[int] = []
    starts: list[int] = []
    parents: list[int] = []
    paths: list[tuple[list[int], list[int]]] = []  # a sequence, and where its tokens stand
    for sequence in sequences:
        shared, path = max(
            ((_common(other, sequence), path) for other, path in paths),
            key=lambda pair: pair[0],
            default=(0, []),
        )
        if shared < len(sequence):
            starts.append(len(tokens))
            parents.append(path[shared - 1] if shared else -1)
        new = range(len(tokens), len(tokens) + len(sequence) - shared)
        paths.append((sequence, path[:shared] + list(new)))
        tokens += sequence[shared:]
    row = Row(np.asarray(tokens, dtype=np.uint32), tuple(starts), tuple(parents))
    return row, [path[-1] for _, path in paths]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def writing(
    level: str, trunk: Trunk | None, prompts: Sequence[list[int]], policy: Policy = POLICY,
    settings: Settings = SETTINGS,
) -> Batch:  # fmt: skip
    """A batch of prompts to go on from, its targets in their order: up to three share a row at
    level tree."""
    trunk = None if level == "none" else trunk
    before, packed = (trunk.length if trunk else 0), 3 if level == "tree" else 1
    rows: list[Row] = []
    targets: list[BatchTarget] = []
    for first in range(0, len(prompts), packed):
        group = prompts[first : first + packed]
        row, ends = forest([prompt[before:] for prompt in group])
        for prompt, end in zip(group, ends, strict=True):
            part = f"{NAME}/{len(targets)}/0/0"
            targets.append(BatchTarget(len(rows), end, len(prompt), -1, part))
        rows.append(row)
    return make_batch(NAME, "generate_until", settings, trunk, rows, targets, policy)
