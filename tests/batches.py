"""Batches made by hand, for tests of the engine: small enough to see what is in them."""

from collections.abc import Sequence

import numpy as np

from evalkit.plan import store
from evalkit.plan.requests.request import Settings
from evalkit.plan.store import Batch, BatchTarget, Policy, Row, Trunk
from evalkit.plan.tokenise import Tokens
from evalkit.plan.types import Kind


def token_ids(seed: int, length: int, below: int = 1000) -> list[int]:
    """Random token ids, none of them special."""
    return [int(token) for token in np.random.default_rng(seed).integers(20, below, length)]


def array(tokens: Sequence[int]) -> Tokens:
    """Token ids as a plan holds them."""
    return np.asarray(tokens, dtype=np.uint32)


def trunk(*links: Sequence[int]) -> Trunk:
    """A trunk and its parents, root first."""
    found = None
    for link in links:
        found = store.make_trunk(found, array(link))
    assert found is not None, "a trunk has tokens"
    return found


def chain(tokens: Sequence[int]) -> Row:
    """A row of one branch."""
    return Row(array(tokens), (0,), (-1,))


def forest(sequences: Sequence[Sequence[int]]) -> tuple[Row, list[int]]:
    """A row that holds all the sequences, what they share once, and where each one ends."""
    tokens: list[int] = []
    starts, parents, ends = [], [], []
    placed: dict[tuple[int, ...], int] = {}  # a prefix -> the index of its last token
    for sequence in sequences:
        at = -1
        for depth in range(1, len(sequence) + 1):
            known = placed.get(tuple(sequence[:depth]))
            if known is None:
                if at != len(tokens) - 1 or not tokens:
                    starts.append(len(tokens))
                    parents.append(at)
                known = placed[tuple(sequence[:depth])] = len(tokens)
                tokens.append(sequence[depth - 1])
            at = known
        ends.append(at)
    return Row(array(tokens), tuple(starts), tuple(parents)), ends


def scored(
    rows: Sequence[Row],
    targets: Sequence[tuple[int, int, int, int]],
    *,
    on: Trunk | None = None,
    kind: Kind = "loglikelihood",
    chunk: int = 16,
) -> Batch:
    """A batch to score. `targets`: (row, end, start, last), named in order."""
    named = tuple(BatchTarget(*target, f"task/{i}/0/0") for i, target in enumerate(targets))
    return store.make_batch("task", kind, None, on, tuple(rows), named, Policy(chunk=chunk))


def prompts(
    given: Sequence[Sequence[int]],
    settings: Settings,
    *,
    on: Trunk | None = None,
    slots: int = 64,
    chunk: int = 16,
) -> Batch:
    """A batch of prompts to go on from; each is what stands behind the trunk."""
    before = on.length if on else 0
    targets = tuple(
        BatchTarget(row, len(tokens) - 1, before + len(tokens), -1, f"task/{row}/0/0")
        for row, tokens in enumerate(given)
    )
    policy = Policy(chunk=chunk, max_slots=slots)
    rows = tuple(chain(tokens) for tokens in given)
    return store.make_batch("task", "generate_until", settings, on, rows, targets, policy)
