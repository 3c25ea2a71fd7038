"""Whether a text's bits are its own, whoever stands in the other slots.

Texts of several batches may share the slots because a row of a step is computed by the same
instructions whatever the other rows hold and wherever it stands. That is how matrix products of at
least `slots.ROWS` rows are made, not what anybody promises. So before batches share slots, it is
tried with the loaded model, in the very number of slots: texts alone and beside others, in other
slots, on other trunks, at other widths. Where a bit moves, each batch is answered by itself.

A mixture of experts is not tried: how many tokens an expert computes at once depends on what the
others hold, so one trial would say nothing of the next step.
"""

import copy
from collections import deque

import numpy as np

from evalkit.base import canon, kept
from evalkit.engine.core import Engine
from evalkit.engine.probe import narrow, probe, trials
from evalkit.plan.batch import Batch, Policy, make_trunk
from evalkit.plan.requests.request import Settings

SHARES = (1, 2, 3)  # of the slots, the parts that batches have that leave some free: 1/16, ...
NEW_TOKENS, TRUNK, PROMPT = 3, 9, 2
NAME = "apart"  # under which what was found is kept


def holds(engine: Engine, slots: int, key: str) -> bool:
    """Whether batches with so many slots may share them. What was found is kept by the `key` of the
    level's check, which covers all that it follows from."""
    if engine.level != "tree" or narrow.has_experts(engine.model.config):
        return False
    name = f"{key} {slots}"
    found = kept.read(NAME).get(name)
    if not isinstance(found, bool):
        found = is_so(engine, slots)
        kept.write(NAME, kept.read(NAME) | {name: found})
    return found


def is_so(engine: Engine, slots: int) -> bool:
    """Whether texts come out the same, to the last bit, alone and beside others."""
    trial = copy.copy(engine)
    trial.kept, trial.eos_ids, trial.generation = None, frozenset(), None
    batches = _batches(engine, slots)
    alone = {batch.id: canon.dumps(trial.execute(batch)) for batch in batches}
    return _beside(trial, batches[::-1]) == alone


def _beside(engine: Engine, batches: list[Batch]) -> dict[str, str]:
    """What batches are answered side by side."""
    found: dict[str, str] = {}
    rest = deque(batches[1:])
    engine.together(
        batches[0],
        lambda held: rest.popleft() if rest else None,
        lambda batch, answers: found.update({batch.id: canon.dumps(answers)}),
    )
    return found


def _batches(engine: Engine, slots: int) -> list[Batch]:
    """Batches of unlike sizes on trunks of their own, one without; together they fill the slots and
    a few more, so that some texts come to a slot that another has left."""
    source, tokens = np.random.default_rng(0), probe.allowed(engine.model)
    policy, settings = Policy(max_slots=slots), Settings((), NEW_TOKENS)
    sizes = [max(1, slots * share // 16) for share in SHARES]
    made = []
    for number, size in enumerate([*sizes, slots - sum(sizes[1:]) + 1]):
        trunk = make_trunk(None, source.choice(tokens, TRUNK + number)) if number else None
        drawn = source.choice(tokens, (max(size, 1), PROMPT)).tolist()
        prompts = [trials.tokens_of(trunk) + prompt for prompt in drawn]
        made.append(trials.writing("tree", trunk, prompts, policy, settings))
    return made
