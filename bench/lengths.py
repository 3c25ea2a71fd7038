"""Prompts as long as the real ones where no benchmark can be loaded: on a bare GPU machine.

    python -m bench.lengths        # makes bench/figures/lengths.json from the real documents

The file holds token lengths only: for each of `core`'s leaf tasks its documents' number, the prefix
that all its prompts share, and the lengths of some documents drawn with a seed. `tokenised` makes
`core` of random tokens from it, its documents repeating the drawn lengths in turn. What only some
documents of a task share is not in it, so real prompts have a little more to share.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.tables import FIGURES
from evalkit.base import canon
from evalkit.plan.requests.request import Request, Settings
from evalkit.plan.tokenise import Row, Target, Tokenised, Tokens

DRAWN = 24  # documents of each leaf
CORE = ("mmlu", "hellaswag", "arc_challenge", "bbh")
UNTIL = (
    "\ue000",
    "\ue001",
    "\ue002",
)  # as many as bbh's, and never shown: all answers are of one length
FIRST_TOKEN = 1000  # below it a vocabulary has its special tokens


@dataclass(frozen=True)
class Leaf:
    """A leaf task's lengths. `drawn`: of each document, the tokens of its prompt behind the prefix
    and of each continuation (none where it generates)."""

    name: str
    documents: int
    prefix: int
    drawn: list[list[int]]


def read() -> list[Leaf]:
    """The committed lengths."""
    found: list[dict[str, Any]] = canon.read_json(FIGURES / "lengths.json")["leaves"]
    return [Leaf(**leaf) for leaf in found]


def tokenised(
    leaves: Sequence[Leaf], vocabulary: int, new_tokens: int, documents: int | None = None
) -> Tokenised:
    """Rows of random tokens with the leaves' lengths, as `tokenise` makes them; of each leaf at
    most so many documents."""
    rows: list[Row] = []
    for leaf in leaves:
        source = np.random.default_rng(np.frombuffer(leaf.name.encode(), dtype=np.uint8))
        prefix = _random(source, leaf.prefix, vocabulary)
        for document in range(min(leaf.documents, documents or leaf.documents)):
            prompt, *continuations = leaf.drawn[document % len(leaf.drawn)]
            tokens = np.concatenate([prefix, _random(source, prompt, vocabulary)])
            if continuations:
                rows += _choices(leaf, document, tokens, continuations, source, vocabulary)
            else:
                settings = Settings(UNTIL, new_tokens)
                request = Request(leaf.name, document, 0, 0, "generate_until", "", "", settings)
                rows.append(Row(tokens, (Target(request, len(tokens), -1),)))
    return Tokenised(rows)


def _random(source: np.random.Generator, length: int, vocabulary: int) -> Tokens:
    return source.integers(min(FIRST_TOKEN, vocabulary // 2), vocabulary, length, dtype=np.uint32)


def _choices(
    leaf: Leaf, document: int, tokens: Tokens, continuations: list[int],
    source: np.random.Generator, vocabulary: int,
) -> list[Row]:  # fmt: skip
    """A row for each continuation; one for all where they are of one token."""
    targets = []
    for index, length in enumerate(continuations):
        request = Request(leaf.name, document, index, 0, "loglikelihood", "")
        scored = _random(source, length, vocabulary)
        row = np.concatenate([tokens, scored[:-1]])
        targets.append((row, Target(request, len(tokens) - 1, int(scored[-1]))))
    if max(continuations) == 1:
        return [Row(tokens, tuple(target for _, target in targets))]
    return [Row(row, (target,)) for row, target in targets]


def measured(made: Tokenised) -> list[Leaf]:
    """The lengths of real rows."""
    by_leaf: dict[str, list[Row]] = defaultdict(list)
    for row in made.rows:
        by_leaf[row.targets[0].request.task].append(row)
    return [_leaf(name, rows) for name, rows in by_leaf.items()]


def _leaf(name: str, rows: Sequence[Row]) -> Leaf:
    from evalkit.plan.trie import Trie, order_key

    ordered = sorted((row.tokens for row in rows), key=order_key)
    trie = Trie(ordered, [len(tokens) for tokens in ordered])
    prefix = trie.common(trie.whole)
    documents: dict[int, list[int]] = {}
    for row in rows:
        for target in row.targets:
            generates = target.request.kind == "generate_until"
            context = len(row.tokens) if generates else target.start + 1
            found = documents.setdefault(target.request.doc_id, [context - prefix])
            found += [] if generates else [len(row.tokens) - target.start]
    chosen = random.Random(name).sample(sorted(documents), min(DRAWN, len(documents)))
    return Leaf(name, len(documents), prefix, [documents[index] for index in chosen])


def main() -> None:
    """Write the file."""
    from bench import data, model
    from evalkit.inputs.models import model as models
    from evalkit.inputs.models.tokenizer import Tokenizer
    from evalkit.inputs.suite import SuiteTask
    from evalkit.plan.tokenise import tokenise

    with data.served():
        folder = model.folder()
        requests = data.requests(data.load(data.suite([SuiteTask(name) for name in CORE])))
    leaves = measured(tokenise(requests, Tokenizer(models.resolve(str(folder)))))
    body = {"tokenizer": model.described()["tokenizer"], "leaves": [vars(leaf) for leaf in leaves]}
    canon.make_folder(FIGURES)
    canon.write_json(FIGURES / "lengths.json", body)


if __name__ == "__main__":
    main()
