"""Whether an engine is right on this machine: against plain forwards, and the laws.

Only facts are gathered here; what they must be is said where they are printed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bench import baseline
from bench.baseline import Scored
from bench.lengths import UNTIL
from evalkit.engine.tree.tree import depths, path_end
from evalkit.plan.batch import Batch, BatchTarget

Answers = dict[str, dict[str, Any]]


def sequence(batch: Batch, target: BatchTarget) -> list[int]:
    """All token ids of a target's path, its trunk's first."""
    found: list[int] = []
    link = batch.trunk
    while link is not None:
        found, link = [*link.tokens.tolist(), *found], link.parent
    row = batch.rows[target.row]
    path = path_end(row, target.end, int(depths(row)[target.end]) + 1)
    return [*found, *row.tokens[path].tolist()]


def scored(batches: Sequence[Batch]) -> dict[str, Scored]:
    """What the scoring batches ask, by part id."""
    found = {}
    for batch in batches:
        for target in batch.targets if not batch.settings else ():
            tokens = sequence(batch, target)
            cut = target.start + 1
            found[target.id] = Scored(tokens[:cut], [*tokens[cut:], target.last])
    return found


def prompts(batches: Sequence[Batch]) -> dict[str, list[int]]:
    """The prompts of the generating batches, by part id."""
    generating = [batch for batch in batches if batch.settings]
    return {t.id: sequence(batch, t) for batch in generating for t in batch.targets}


def answers(engine: Any, batches: Sequence[Batch], *, drop: bool = False) -> Answers:
    """Every answer, in the batches' order; with `drop`, no trunk is kept between two."""
    found: Answers = {}
    engine.kept = None
    for batch in batches:
        if drop:
            engine.kept = None
        found |= engine.execute(batch)
    return found


def laws(engine: Any, batches: Sequence[Batch], first: Answers) -> dict[str, bool]:
    """Which laws hold, bit by bit, against the answers in the plan's order."""
    middle = len(batches) // 2
    halves = [answers(engine, part) for part in (batches[middle:], batches[:middle])]
    return {
        "order reversed": answers(engine, batches[::-1]) == first,
        "split in two": halves[0] | halves[1] == first,
        "trunks computed again": answers(engine, batches, drop=True) == first,
    }


def errors(engine: Any, batches: Sequence[Batch], exact: Any, tokenizer: Any) -> dict[str, Any]:
    """How far an engine's answers are from a float32 model's plain forwards, its laws, and how far
    lm-eval's way with the engine's own weights is (a log-likelihood's mean and largest error)."""
    found = answers(engine, batches)
    asked = scored(batches)
    truth = baseline.score(exact, list(asked.values()), 1)
    ours = [(found[name]["loglikelihood"], found[name]["is_greedy"]) for name in asked]
    with plain(engine):
        theirs = baseline.score(engine.model, list(asked.values()), 4)
    texts = prompts(batches)
    settings = next((batch.settings for batch in batches if batch.settings), None)
    equal = 0
    for name, prompt in texts.items():
        assert settings is not None, "a prompt has settings"
        new = settings.max_gen_toks
        (made,) = baseline.generate(exact, tokenizer, [prompt], UNTIL, new, 1)
        equal += made == found[name]["tokens"]
    return {
        "loglikelihoods": len(asked),
        "evalkit": _distance(ours, truth),
        "lm-eval": _distance(theirs, truth),
        "texts": len(texts),
        "texts_equal": equal,
        "laws": laws(engine, batches, found),
    }


def _distance(
    found: Sequence[tuple[float, bool]], truth: Sequence[tuple[float, bool]]
) -> dict[str, float]:
    apart = [abs(one - other) for (one, _), (other, _) in zip(found, truth, strict=True)]
    flags = sum(one != other for (_, one), (_, other) in zip(found, truth, strict=True))
    return {"mean": sum(apart) / len(apart), "max": max(apart), "greedy": flags}


@contextmanager
def plain(engine: Any) -> Iterator[None]:
    """Within the block, the engine's model computes attention as transformers does."""
    before = engine.model.config._attn_implementation
    engine.model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        engine.model.set_attn_implementation(before)


def exact_copy(model: Any) -> Any:
    """The model's weights in float32, for plain forwards."""
    import copy

    with torch.inference_mode(False):
        made: Any = copy.deepcopy(model).float()
    made.set_attn_implementation("sdpa")
    return made
