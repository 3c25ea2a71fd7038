"""Log-likelihoods of a batch of right-padded rows, with the LM head on scored positions only.

Right padding needs no mask: a causal model's output at a position does not see what stands behind
it. Log-probabilities are taken in float32 whatever the weights' dtype and summed in order.
"""

from collections.abc import Iterator
from typing import Any

import torch

from evalkit import canon
from evalkit.plan import Batch

LOGITS_CHUNK = 512  # positions in float32 at once: 512 x 128k x 4 B = 262 MB


def score(model: Any, batch: Batch, device: torch.device) -> dict[str, dict[str, Any]]:
    """The answer of each target: the summed log-probability of its tokens, whether each was the
    most probable one, and how many there are."""
    positions, labels = _positions(batch)
    logits = _logits_at(model, batch, positions, device)
    logprobs, greedy = _logprobs(logits, labels, positions)
    answers = {}
    for target in batch.targets:
        found = [
            (logprobs[key], greedy[key])
            for key in _keys(target.row, target.start, target.last, batch)
        ]
        answers[target.id] = {
            "loglikelihood": canon.total(value for value, _ in found),
            "is_greedy": all(flag for _, flag in found),
            "num_tokens": len(found),
        }
        if batch.kind == "loglikelihood_rolling":
            del answers[target.id]["is_greedy"]
    return answers


Key = tuple[int, int, int]  # row, position, the label scored there


def _keys(row: int, start: int, last: int, batch: Batch) -> Iterator[Key]:
    tokens = batch.rows[row]
    for position in range(start, len(tokens)):
        follows = int(tokens[position + 1]) if position + 1 < len(tokens) else last
        yield row, position, follows


def _positions(batch: Batch) -> tuple[list[tuple[int, int]], dict[tuple[int, int], list[int]]]:
    """Distinct (row, position) pairs to score, in order, and the labels wanted at each."""
    labels: dict[tuple[int, int], list[int]] = {}
    for target in batch.targets:
        for row, position, label in _keys(target.row, target.start, target.last, batch):
            wanted = labels.setdefault((row, position), [])
            if label not in wanted:
                wanted.append(label)
    return sorted(labels), labels


def _logits_at(
    model: Any, batch: Batch, positions: list[tuple[int, int]], device: torch.device
) -> torch.Tensor:
    """Logits [positions, vocabulary] in the model's dtype.

    The hook hands the LM head the scored positions only; what a model does behind its head
    (soft-capping, scaling) still happens to them.
    """
    input_ids = torch.zeros(len(batch.rows), batch.width, dtype=torch.long)  # [rows, tokens]
    for row, tokens in enumerate(batch.rows):
        input_ids[row, : len(tokens)] = torch.from_numpy(tokens.astype("int64"))
    index = torch.tensor(positions, device=device)  # [positions, 2]

    def select(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][index[:, 0], index[:, 1]].unsqueeze(0),)  # [1, positions, hidden]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = model(input_ids=input_ids.to(device), use_cache=False).logits
    finally:
        handle.remove()
    return logits[0]


def _logprobs(
    logits: torch.Tensor,
    labels: dict[tuple[int, int], list[int]],
    positions: list[tuple[int, int]],
) -> tuple[dict[Key, float], dict[Key, bool]]:
    """Log-probability of each wanted label, and whether it is the most probable token."""
    logprobs: dict[Key, float] = {}
    greedy: dict[Key, bool] = {}
    for start in range(0, len(positions), LOGITS_CHUNK):
        chunk = positions[start : start + LOGITS_CHUNK]
        part = logits[start : start + LOGITS_CHUNK].float()  # [chunk, vocabulary]
        total = torch.logsumexp(part, dim=-1)
        best = part.argmax(dim=-1).tolist()
        rows = [i for i, key in enumerate(chunk) for _ in labels[key]]
        wanted = [label for key in chunk for label in labels[key]]
        values = (part[rows, wanted] - total[rows]).tolist()
        for row, label, value in zip(rows, wanted, values, strict=True):
            key = (*chunk[row], label)
            logprobs[key], greedy[key] = value, best[row] == label
    return logprobs, greedy
