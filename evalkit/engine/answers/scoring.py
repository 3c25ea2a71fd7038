"""Log-likelihoods of a batch, with the LM head on scored positions only.

Log-probabilities are computed in float32, whatever the weights' dtype, and summed in order.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from evalkit.base import canon
from evalkit.engine import passes
from evalkit.engine.tree import tree
from evalkit.engine.tree.tail import Place
from evalkit.engine.tree.tree import Tree, depths, path_end
from evalkit.inputs.types import Answer
from evalkit.plan.batch import Batch, BatchTarget, Row

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

LOGITS_CHUNK = 512  # positions in float32 at once: 512 x 128k x 4 B = 262 MB
CPU_CHUNK = 8  # likewise: what is read several times stays in the cache, three times faster
CPU_TOKENS = 4096  # about, of a forward pass on a CPU: its activations stay in the cache
Scored = tuple[Place, int]  # where a token is scored, and its id


def score(engine: "Engine", batch: Batch) -> dict[str, Answer]:
    """Return the answer to each target: the sum of its tokens' log-probabilities, whether each
    token was the most probable one, and their number."""
    before = batch.trunk.length if batch.trunk else 0
    positions = [depths(row) + before for row in batch.rows]
    paths = [scored_of(batch.rows[t.row], t, positions[t.row]) for t in batch.targets]
    values = _values(engine, batch, sorted({scored for path in paths for scored in path}))
    answers: dict[str, Answer] = {}
    for target, path in zip(batch.targets, paths, strict=True):
        total = canon.total([values[scored][0] for scored in path])
        if batch.kind == "loglikelihood_rolling":
            answers[target.id] = {"loglikelihood": total, "num_tokens": len(path)}
        else:
            is_greedy = all(values[scored][1] for scored in path)
            answers[target.id] = {
                "loglikelihood": total, "is_greedy": is_greedy, "num_tokens": len(path),
            }  # fmt: skip
    return answers


def scored_of(row: Row, target: BatchTarget, positions: npt.NDArray[np.int64]) -> list[Scored]:
    """Return the places where a target's tokens are scored, in order, each with its token.
    `positions` are those of the row's tokens, the trunk included."""
    path = path_end(row, target.end, int(positions[target.end]) - target.start + 1)
    labels = [*(int(row.tokens[index]) for index in path[1:]), target.last]
    return [((target.row, index), label) for index, label in zip(path, labels, strict=True)]


def _values(
    engine: "Engine", batch: Batch, wanted: list[Scored]
) -> dict[Scored, tuple[float, bool]]:
    """Return the log-probability of each token, and whether it is the most probable one there. The
    logits of a forward pass are freed before the next pass."""
    rows = rows_at_once(engine, batch)
    values: dict[Scored, tuple[float, bool]] = {}
    for first in range(0, len(batch.rows), rows):
        inside = [scored for scored in wanted if first <= scored[0][0] < first + rows]
        places = sorted({place for place, _ in inside})
        number = {place: index for index, place in enumerate(places)}
        moved = [(row - first, at) for row, at in places]
        logits = forward(engine, batch, batch.rows[first : first + rows], moved)
        scored = logprobs(logits, [(number[place], label) for place, label in inside])
        values |= dict(zip(inside, scored, strict=True))
    return values


def rows_at_once(engine: "Engine", batch: Batch) -> int:
    """Return how many rows of a batch one forward pass takes: all; on a CPU, about equal parts."""
    if engine.device.type != "cpu":
        return len(batch.rows)
    most = max(1, CPU_TOKENS // batch.width)
    return -(-len(batch.rows) // -(-len(batch.rows) // most))


def forward(
    engine: "Engine", batch: Batch, rows: tuple[Row, ...], places: list[Place]
) -> torch.Tensor:
    """Run one forward pass over some rows of a batch and return the logits [places, vocabulary].
    `places` are (row, token) pairs of these rows."""
    if engine.level == "tree":
        prefix = tree.prefix(engine, batch.trunk, batch.chunk)
        return Tree(rows, batch.width, prefix, engine).logits(places)
    state = passes.start(engine, batch, len(rows)) if batch.trunk else None
    output = passes.run(engine, places, passes.padded(engine, rows, batch.width), state)
    logits: torch.Tensor = output.logits
    return logits[0]


def logprobs(logits: torch.Tensor, pairs: list[tuple[int, int]]) -> list[tuple[float, bool]]:
    """Return the log-probability of each (place, label) pair, and whether the label is the most
    probable token there; of equally probable ones the first is."""
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
    # of equally probable tokens the first is greedy
    greedy[greedy.clone()] = logits[where[greedy]].argmax(dim=-1) == labels[greedy]
    return list(zip((chosen - torch.cat(totals)[where]).tolist(), greedy.tolist(), strict=True))
