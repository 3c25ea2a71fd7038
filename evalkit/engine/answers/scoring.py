"""Log-likelihoods of a batch, with the LM head on scored positions only.

Log-probabilities are taken in float32 whatever the weights' dtype and summed in order.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from evalkit.base import canon
from evalkit.engine import prefix as cloned
from evalkit.engine.tree import trunk
from evalkit.engine.tree.tail import Place
from evalkit.engine.tree.tree import Tree, depths, path_end
from evalkit.plan.batch import Batch, BatchTarget, Row

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

LOGITS_CHUNK = 512  # positions in float32 at once: 512 x 128k x 4 B = 262 MB
CPU_CHUNK = 8  # likewise: what is gone over several times stays in its cache, three times faster
CPU_TOKENS = 4096  # of a forward pass on a CPU, about: its activations stay in the cache
Scored = tuple[Place, int]  # where a token is scored, and which


def score(engine: "Engine", batch: Batch) -> dict[str, dict[str, Any]]:
    """The answer of each target: the summed log-probability of its tokens, whether each was the
    most probable one, and how many there are."""
    before = batch.trunk.length if batch.trunk else 0
    positions = [depths(row) + before for row in batch.rows]
    paths = [scored_of(batch.rows[t.row], t, positions[t.row]) for t in batch.targets]
    found = _values(engine, batch, sorted({scored for path in paths for scored in path}))
    answers: dict[str, dict[str, Any]] = {}
    for target, path in zip(batch.targets, paths, strict=True):
        answers[target.id] = {
            "loglikelihood": canon.total([found[scored][0] for scored in path]),
            "is_greedy": all(found[scored][1] for scored in path),
            "num_tokens": len(path),
        }
        if batch.kind == "loglikelihood_rolling":
            del answers[target.id]["is_greedy"]
    return answers


def scored_of(row: Row, target: BatchTarget, positions: npt.NDArray[np.int64]) -> list[Scored]:
    """Where a target is scored, in order, each with the token scored there. `positions`: of the
    row's tokens, the trunk counted."""
    path = path_end(row, target.end, int(positions[target.end]) - target.start + 1)
    labels = [*(int(row.tokens[index]) for index in path[1:]), target.last]
    return [((target.row, index), label) for index, label in zip(path, labels, strict=True)]


def _values(
    engine: "Engine", batch: Batch, wanted: list[Scored]
) -> dict[Scored, tuple[float, bool]]:
    """Of each token to score: its log-probability, and whether it is the most probable one there.
    Each forward pass's logits are gone before the next one's come."""
    rows = rows_at_once(engine, batch)
    found: dict[Scored, tuple[float, bool]] = {}
    for first in range(0, len(batch.rows), rows):
        inside = [scored for scored in wanted if first <= scored[0][0] < first + rows]
        places = sorted({place for place, _ in inside})
        number = {place: index for index, place in enumerate(places)}
        moved = [(row - first, at) for row, at in places]
        logits = forward(engine, batch, batch.rows[first : first + rows], moved)
        values = _logprobs(logits, [(number[place], label) for place, label in inside])
        found |= dict(zip(inside, values, strict=True))
    return found


def rows_at_once(engine: "Engine", batch: Batch) -> int:
    """How many of a batch's rows go through the model at once: all, or about equal parts."""
    if engine.device.type != "cpu":
        return len(batch.rows)
    most = max(1, CPU_TOKENS // batch.width)
    return -(-len(batch.rows) // -(-len(batch.rows) // most))


def forward(
    engine: "Engine", batch: Batch, rows: tuple[Row, ...], places: list[Place]
) -> torch.Tensor:
    """Logits [places, vocabulary] of one forward pass over some of a batch's rows. `places`: (row,
    token) pairs of those rows."""
    if engine.level == "tree":
        prefix = trunk.prefix(engine, batch.trunk, batch.chunk)
        return Tree(rows, batch.width, prefix, engine).logits(places)
    state = cloned.start(engine, batch, len(rows)) if batch.trunk else None
    output = cloned.run(engine, places, cloned.padded(engine, rows, batch.width), state)
    logits: torch.Tensor = output.logits
    return logits[0]


def _logprobs(logits: torch.Tensor, pairs: list[tuple[int, int]]) -> list[tuple[float, bool]]:
    """Log-probability of each (place, label) pair, and whether the label is the most probable token
    there, the first of several that are."""
    chunk = CPU_CHUNK if logits.device.type == "cpu" else LOGITS_CHUNK
    totals, best = [], []
    for start in range(0, len(logits), chunk):
        part = logits[start : start + chunk].float()  # [chunk, vocabulary]
        best.append(part.amax(dim=-1))
        sums = (part - best[-1].unsqueeze(-1)).exp_().sum(dim=-1)
        totals.append(sums.log_() + best[-1])
    where, labels = torch.tensor(pairs, device=logits.device).unbind(dim=1)
    chosen = logits[where, labels].float()
    greedy = chosen == torch.cat(best)[where]
    greedy[greedy.clone()] = logits[where[greedy]].argmax(dim=-1) == labels[greedy]  # of equals
    return list(zip((chosen - torch.cat(totals)[where]).tolist(), greedy.tolist(), strict=True))
