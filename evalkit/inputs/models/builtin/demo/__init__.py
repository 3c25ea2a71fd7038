"""The demo: a tiny random model and four small tasks, so that a whole run takes seconds.

The tasks have the shapes of mmlu, hellaswag, arc_challenge and bbh and texts of our own, so
nothing has to be downloaded and everything may be published. The model knows nothing, hence a
check that needs no reference: on each task it must score at chance.
"""

import math

CHANCE: dict[str, float] = {
    "demo_letters": 1 / 4,
    "demo_endings": 1 / 4,
    "demo_qa": (1 / 3 + 1 / 4 + 1 / 5) / 3,  # as many questions with 3 as with 4 and 5 choices
    "demo_cot": 0.0,  # a random text has no "the answer is" for the filter to find
}


def at_chance(score: float, stderr: float, chance: float) -> bool:
    """Whether `score` lies within 3 of its standard errors of `chance`. False for a score or an
    error that is not a number. The allowance of 1e-9 is for the rounding of a mean: at a score of
    exactly chance the standard error may be 0."""
    if not (math.isfinite(score) and math.isfinite(stderr)):
        return False
    return abs(score - chance) <= 3 * stderr + 1e-9
