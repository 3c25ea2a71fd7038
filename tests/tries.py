"""Random rows that share prefixes as benchmarks' prompts do, and what a batch's paths say."""

from dataclasses import replace
from typing import Any

import numpy as np

from evalkit.plan.requests.request import Request, Settings
from evalkit.plan.store import Batch, BatchTarget, Policy
from evalkit.plan.tokenise import Row, Target, Tokenised, Tokens

LEVELS = ("tree", "prefix", "none")
SMALL = Policy(
    max_tokens=512, row_tokens=32, max_tree=96, min_trunk=4, chunk=8, max_rows=16, max_scored=96,
    max_slots=4, max_cache=512, waves=3,
)  # fmt: skip
GREEDY = Settings(("\n",), 8)


def some_rows(seed: int, task: str = "task", settings: Settings | None = None) -> list[Row]:
    """Rows of one task that branch off from one another anywhere, from one of a few preambles; a
    prefix of another one and, to generate from, the same one twice are among them."""
    source = np.random.default_rng([seed, len(task), settings is not None])
    preambles = [_random(source, source.integers(0, 90)) for _ in range(source.integers(1, 3))]
    known: dict[bytes, Tokens] = {}
    made: list[Tokens] = []
    for _ in range(int(source.integers(1, 100))):
        base = preambles[source.integers(len(preambles))]
        if made and source.random() < 0.4:
            base = made[source.integers(len(made))]
            base = base[: source.integers(0, len(base) + 1)]
        tokens = np.concatenate([base, _random(source, source.integers(1, 20))])
        if made and source.random() < 0.1:
            tokens = made[source.integers(len(made))]
        if settings is None and tokens.tobytes() in known:
            continue
        known[tokens.tobytes()] = tokens
        made.append(tokens)
    return [_row(source, task, number, tokens, settings) for number, tokens in enumerate(made)]


def _random(source: Any, length: int) -> Tokens:
    found: Tokens = source.integers(2, 5, length).astype(np.uint32)
    return found


def _row(
    source: Any, task: str, number: int, tokens: Tokens, settings: Settings | None
) -> Row:  # fmt: skip
    if settings:
        request = Request(task, number, 0, 0, "generate_until", "", settings=settings)
        return Row(tokens, (Target(request, len(tokens), -1),))
    targets = [
        Target(
            Request(task, number, index, 0, "loglikelihood", ""),
            int(source.integers(max(0, len(tokens) - 6), len(tokens))),
            int(source.integers(100, 200)),
        )
        for index in range(int(source.integers(1, 4)))
    ]
    return Row(tokens, tuple(targets))


def tokenised(seed: int, *tasks: str) -> Tokenised:
    """Rows to score and to generate from, of one task or several."""
    rows: list[Row] = []
    for task in tasks or ("task",):
        rows += some_rows(seed, task)
        rows += some_rows(seed, task, GREEDY) + some_rows(seed, task, replace(GREEDY, until=()))
    return Tokenised(rows)


def trunk_tokens(batch: Batch) -> list[int]:
    """All tokens before the batch's rows."""
    return [token for link in (batch.trunk.chain() if batch.trunk else []) for token in link.tokens]


def path(batch: Batch, target: BatchTarget) -> list[int]:
    """The whole sequence that ends where a target says, walked back token by token."""
    row = batch.rows[target.row]
    before = dict(zip(row.starts, row.parents, strict=True))
    found: list[int] = []
    at = target.end
    while at >= 0:
        found.append(int(row.tokens[at]))
        at = before.get(at, at - 1)
    return trunk_tokens(batch) + found[::-1]
