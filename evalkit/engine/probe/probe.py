"""Whether the engine answers as the model does alone: held before a level is trusted.

Some twenty sequences of token ids (`trials`) go through the engine, and then each by itself through
a plain forward pass of transformers. When a run is planned, that is done on a shrunken random
instance and settles its level (`resolve`); when a worker starts, on the real weights (`check`),
which never changes the level, only refuses it.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from evalkit.base import kept
from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.core import Engine
from evalkit.engine.numerics import numerics
from evalkit.engine.numerics.numerics import DTYPES, Numerics
from evalkit.engine.probe import narrow, reference, repeat, shrink, trials
from evalkit.engine.probe.reference import Alone, Answered
from evalkit.engine.text.decoding import Endings
from evalkit.engine.tree import attention
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model
from evalkit.plan.batch import Trunk
from evalkit.plan.grouping import LEVELS
from evalkit.plan.tokenise import Tokens

# Of a log-likelihood in float32: absolute, and relative to its size.
TOLERANCE, RELATIVE = 1e-4, 1e-6
# In a lower precision: how much further from float32 than plain forwards are, on average.
FACTOR, FLOOR = 1.5, 1e-3
AGAIN = range(1, 5)  # more seeds where a few dozen values could be further off by chance
# Of a quantised model, which has no float32: how much further apart than two paddings are.
FACTOR_QUANTISED, FLOOR_QUANTISED, PADDING = 3.0, 2e-2, 7


def check(engine: Engine) -> None:
    """Hold a loaded model's answers at its level against its plain forwards, and those of the same
    batches twice against each other.

    Raises EvalkitError that names the level to plan with, which never changes by itself, or says
    that this device does not give the same bits twice.
    """
    problem = problem_at(engine, engine.level)
    if not problem:
        check_repeats(engine)
        return
    lower = LEVELS[LEVELS.index(engine.level) + 1 :]
    right = next((level for level in lower if not problem_at(engine, level)), None)
    raise EvalkitError(
        f"this model's answers at level {engine.level} are not its own: {problem}",
        fix=f"plan with --level {right}" if right else "use --engine lm-eval:hf",
        code=Exit.FAILED,
    )


def check_repeats(engine: Engine) -> None:
    """Raise EvalkitError where the same batch twice does not give the same bits on this device."""
    with _attention_of(engine, engine.level):
        repeat.check(_trial(engine, engine.level), allowed(engine.model))


def _trial(engine: Engine, level: str) -> Engine:
    """An engine on the same weights for trials at a level."""
    trial = copy.copy(engine)
    stops: Any = trials.Stops()
    trial.level, trial.kept, trial.tokenizer, trial.endings = level, None, stops, Endings(stops)
    trial.eos_ids, trial.eos_text, trial.generation = frozenset(), "", None
    return trial


def problem_at(engine: Engine, level: str) -> str:
    """What is wrong with the engine's answers at a level; empty where they are the model's own. An
    error of any kind is wrong, too."""
    trial = _trial(engine, level)
    errors: tuple[type[Exception], ...] = (EvalkitError, AssertionError)
    found: list[Answered] = []
    problem = ""
    try:
        for seeds in ((0,), AGAIN):
            with _attention_of(engine, level):
                for seed in seeds:
                    found += _answers(trial, trials.Material(allowed(engine.model), seed))
            with attention.plain(engine), torch.inference_mode():
                problem = _problem(trial, found)
            if not problem or _is_exact(engine):
                break
        return problem
    except (*errors, *architecture.loading_errors()) as error:
        if isinstance(error, EvalkitError) and error.code == Exit.MISSING:
            raise  # too little memory says nothing of the answers
        return str(error).strip().split("\n")[0] or type(error).__name__


def _is_exact(engine: Engine) -> bool:
    """Whether answers are held to be equal; otherwise rounding is what they are compared with."""
    if getattr(engine.model.config, "quantization_config", None) is not None:
        return False
    return engine.numerics.profile == "precise" or DTYPES[engine.numerics.dtype] == torch.float32


def allowed(model: Any) -> Tokens:
    """The token ids that a prompt may have: none of them stands for an image, or ends a text."""
    special = narrow.special_tokens(model.config)
    size = model.config.get_text_config().vocab_size
    return np.asarray([token for token in range(size) if token not in special], dtype=np.uint32)


def _answers(engine: Engine, material: trials.Material) -> Iterator[Answered]:
    """What the engine answers to all trials of its level."""
    for trunk, documents in material.documents:
        yield from _scored(engine, trunk, documents)
    for trunk, prompts in material.uneven if engine.level == "tree" else material.even:
        batch = trials.writing(engine.level, trunk, prompts)
        texts = list(engine.execute(batch).values())
        written = [
            [trials.Question(prompt + text["tokens"][:-1], len(text["tokens"]), text["tokens"][-1])]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        scored = _scored(engine, trunk, written)  # its own texts: all greedy
        for answer, text in zip(scored, texts, strict=True):
            yield replace(answer, each=text["logprobs"])


def _scored(
    engine: Engine, trunk: Trunk | None, documents: list[trials.Document]
) -> list[Answered]:
    batch = trials.scoring(engine.level, trunk, documents)
    made = engine.execute(batch)
    questions = [question for document in documents for question in document]
    return [
        Answered([*asked.sequence, asked.last], asked.count, made[target.id]["loglikelihood"],
                 made[target.id]["is_greedy"], [])
        for asked, target in zip(questions, batch.targets, strict=True)
    ]  # fmt: skip


# Comparing


def _problem(engine: Engine, found: list[Answered]) -> str:
    """What of the answers is not the model's own: not what its forward passes give, nor, where
    those differ from its own generating steps, what these give."""
    problem = _difference(engine, found, reference.forward)
    return problem and _difference(engine, found, reference.stepwise) and problem


def _difference(engine: Engine, found: list[Answered], truth: Callable[..., list[Alone]]) -> str:
    """What of the answers is not what the model gives alone, which is off itself where the
    precision is low."""
    plain = truth(engine, found)
    if _is_exact(engine):
        return max(map(_unequal, found, plain), default=(0.0, ""))[1]
    if getattr(engine.model.config, "quantization_config", None) is not None:
        padded = truth(engine, found, padding=PADDING)
        return _further(found, plain, padded, FACTOR_QUANTISED, FLOOR_QUANTISED)
    with reference.float32(engine.model):
        exact = truth(engine, found)
    return _further(found, exact, plain, FACTOR, FLOOR)


def _unequal(answer: Answered, truth: Alone) -> tuple[float, str]:
    """How far an answer in float32 is from what it should be, in words where that is too far."""
    worst = (0.0, "")
    for ours, theirs in zip(answer.values(), truth.values(answer), strict=True):
        if (gap := distance(ours, theirs)) > TOLERANCE + RELATIVE * abs(theirs):
            worst = max(worst, (gap, f"a log-likelihood is {ours:.6f}, and alone {theirs:.6f}"))
    first = min(truth.margins)
    wrong = abs(first) if answer.greedy != (first > 0) else 0.0
    if answer.each:  # what is generated is the most probable
        wrong = max(wrong, -min(truth.step_margins))
    if wrong > TOLERANCE:
        worst = max(worst, (wrong, f"the most probable token is another one, by {wrong:.6f}"))
    return worst


def _further(
    found: list[Answered], exact: list[Alone], others: list[Alone], factor: float, floor: float
) -> str:
    """Whether answers are further from exact ones, on average, than others that are right."""
    ours: list[float] = []
    theirs: list[float] = []
    for answer, right, other in zip(found, exact, others, strict=True):
        values = right.values(answer)
        ours += map(distance, answer.values(), values)
        theirs += map(distance, other.values(answer), values)
    off, allowed = sum(ours) / len(ours), factor * sum(theirs) / len(theirs) + floor
    if off <= allowed:
        return ""
    return f"log-likelihoods are off by {off:.2g} on average, where rounding explains {allowed:.2g}"


def distance(one: float, other: float) -> float:
    """How far apart two values are; a broken model's NaN is as good as another, as nothing else."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    return math.inf if math.isnan(one - other) else abs(one - other)


@contextmanager
def _attention_of(engine: Engine, level: str) -> Iterator[None]:
    """Let an engine's model compute as a level has it until the end of the block."""
    before = engine.model.config._attn_implementation
    attention.switch(engine.model, attention.NAME if level == "tree" else engine.numerics.attention)
    try:
        yield
    finally:
        attention.switch(engine.model, before)


# At plan time


def resolve(model: Model) -> str:
    """The best level at which a shrunken random instance of a model answers as it does alone;
    remembered by config, code and versions.

    An architecture of which no instance can be made gets level none, where nothing is shared, and
    the start-up probe holds that on its real weights. Raises EvalkitError where not even level none
    is right.
    """
    key = numerics.origin(model)
    found = kept.read("levels").get(key)
    if found not in LEVELS:
        found = _tried(model)
        kept.write("levels", kept.read("levels") | {key: found})
    return str(found)


def _tried(model: Model) -> str:
    numerics.silence()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = shrink.instance(model)
            if made is None:
                return "none"
            stops: Any = trials.Stops()
            fixed = Numerics("float32", attention=made.config._attn_implementation)
            engine = Engine(made, stops, "cpu", "none", fixed)
            problems = {}
            for level in LEVELS:
                problems[level] = problem_at(engine, level)
                if not problems[level]:
                    return level
    finally:
        torch.set_num_threads(threads)
    raise EvalkitError(
        f"evalkit can't run '{model.reference}' as transformers does: {problems['none']}",
        where=str(model.folder),
        fix="use --engine lm-eval:hf",
        code=Exit.FAILED,
    )
