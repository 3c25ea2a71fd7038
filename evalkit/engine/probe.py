"""Whether the engine answers as the model does alone: held before a level is trusted.

Some twenty sequences of token ids (`trials`) go through the engine, and then each by itself through
a plain forward pass of transformers. When a run is planned, that is done on a shrunken random
instance and settles its level (`resolve`); when a worker starts, on the real weights (`check`),
which never changes the level, only refuses it.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evalkit import architecture, canon
from evalkit import model as models
from evalkit.batch import Trunk
from evalkit.engine import attention, narrow, precise, shrink, trials
from evalkit.engine.core import Engine
from evalkit.engine.numerics import DTYPES, Numerics
from evalkit.errors import EvalkitError, Exit
from evalkit.model import Model
from evalkit.tokenise import Tokens

LEVELS = ("A", "B", "C")  # best first
# Of a log-likelihood in float32: absolute, and relative to its size.
TOLERANCE, RELATIVE = 1e-4, 1e-6
# In a lower precision: how much further from float32 than plain forwards are, on average.
FACTOR, FLOOR = 1.5, 1e-3
# Of a quantised model, which has no float32: how much further apart than two paddings are.
FACTOR_QUANTISED, FLOOR_QUANTISED, PADDING = 3.0, 2e-2, 7
NEVER = 2**30  # no token's id


@dataclass(frozen=True, slots=True)
class Answered:
    """What is answered for the last tokens of a sequence: the sum of their log-probabilities and
    whether each is the most probable one, and, of generated ones, each log-probability."""

    tokens: list[int]
    count: int
    total: float
    greedy: bool
    each: list[float]

    def values(self) -> list[float]:
        """All log-probabilities."""
        return [self.total, *self.each]


@dataclass(frozen=True, slots=True)
class Alone:
    """What transformers gives for the same tokens, one sequence at a time: each log-probability,
    and by how much a token is ahead of (negative: behind) the best of the others. `steps` and
    `step_margins` are those of tokens that were generated."""

    each: list[float]
    margins: list[float]
    steps: list[float]
    step_margins: list[float]

    def values(self, answer: Answered) -> list[float]:
        """The log-probabilities that the answer has."""
        return [canon.total(self.each), *(self.steps if answer.each else ())]


def check(engine: Engine) -> None:
    """Hold a loaded model's answers at its level against its plain forwards.

    Raises EvalkitError that names the level to plan with; the level never changes by itself.
    """
    problem = problem_at(engine, engine.level)
    if not problem:
        return
    lower = LEVELS[LEVELS.index(engine.level) + 1 :]
    right = next((level for level in lower if not problem_at(engine, level)), None)
    raise EvalkitError(
        f"this model's answers at level {engine.level} are not its own: {problem}",
        fix=f"plan with --level {right}" if right else "use --engine lm-eval:hf",
        code=Exit.FAILED,
    )


def problem_at(engine: Engine, level: str) -> str:
    """What is wrong with the engine's answers at a level; empty where they are the model's own. An
    error of any kind is wrong, too."""
    trial = copy.copy(engine)
    stops: Any = trials.Stops()
    trial.level, trial.kept, trial.tokenizer = level, None, stops
    trial.eos_ids, trial.eos_text, trial.processors = frozenset(), "", []
    errors: tuple[type[Exception], ...] = (EvalkitError, AssertionError)
    try:
        with _attention_of(engine, level):
            found = list(_answers(trial, trials.Material(_allowed(engine.model))))
        with attention.plain(engine), torch.inference_mode():
            problem = _difference(trial, found, _alone)
            # transformers' steps may differ from its own whole forward: then they are what counts
            return problem and _difference(trial, found, _stepwise) and problem
    except (*errors, *architecture.loading_errors()) as error:
        return str(error).strip().split("\n")[0] or type(error).__name__


def _allowed(model: Any) -> Tokens:
    """The token ids that a prompt may have: none of them stands for an image, or ends a text."""
    special = narrow.special_tokens(model.config)
    size = model.config.get_text_config().vocab_size
    return np.asarray([token for token in range(size) if token not in special], dtype=np.uint32)


def _answers(engine: Engine, material: trials.Material) -> Iterator[Answered]:
    """What the engine answers to all trials of its level."""
    for trunk, documents in material.documents:
        made = _scored(engine, trunk, documents)
        yield from (replace(answer, each=[]) for answer in made)
    for trunk, prompts in material.uneven if engine.level == "A" else material.even:
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


def _difference(engine: Engine, found: list[Answered], alone: Callable[..., Alone]) -> str:
    """What of the answers is not what the model gives alone, which is off itself where the
    precision is low."""
    plain = [alone(engine, answer) for answer in found]
    if getattr(engine.model.config, "quantization_config", None) is not None:
        padded = [alone(engine, answer, padding=PADDING) for answer in found]
        return _further(found, plain, padded, FACTOR_QUANTISED, FLOOR_QUANTISED)
    if engine.numerics.profile == "native" and DTYPES[engine.numerics.dtype] != torch.float32:
        with _float32(engine.model):
            exact = [alone(engine, answer) for answer in found]
        return _further(found, exact, plain, FACTOR, FLOOR)
    return max(map(_unequal, found, plain), default=(0.0, ""))[1]


def _alone(engine: Engine, answer: Answered, padding: int = 0) -> Alone:
    """A plain forward pass over an answer's sequence."""
    tokens, count = answer.tokens, answer.count
    input_ids = torch.tensor([tokens[:-1] + tokens[:1] * padding], device=engine.device)
    logits = engine.model(input_ids=input_ids, use_cache=False).logits[0]
    each, margins = _chances(logits[: len(tokens) - 1][-count:], tokens[-count:])
    return Alone(each, margins, each, margins)


def _stepwise(engine: Engine, answer: Answered, padding: int = 0) -> Alone:
    """The same, and for what was generated, transformers' own `generate`, made to choose the same
    tokens."""
    whole = _alone(engine, answer, padding)
    if not answer.each:
        return whole
    prompt, chosen = answer.tokens[: -answer.count], answer.tokens[-answer.count :]

    def choose(before: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.full_like(scores, float("-inf"))
        scores[:, chosen[before.shape[1] - len(prompt)]] = 0.0
        return scores

    made = engine.model.generate(
        torch.tensor([prompt], device=engine.device),
        logits_processor=[choose], max_new_tokens=len(chosen), do_sample=False,
        eos_token_id=[NEVER], pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    steps, margins = _chances(torch.cat(made.logits), chosen)
    return replace(whole, steps=steps, step_margins=margins)


def _chances(logits: torch.Tensor, labels: list[int]) -> tuple[list[float], list[float]]:
    """Of each label, its log-probability in logits [labels, vocabulary] and its margin."""
    table = torch.log_softmax(logits.float(), dim=-1)
    index = torch.tensor(labels, device=table.device)[:, None]
    each = table.gather(1, index)[:, 0]
    margins = each - table.scatter(1, index, float("-inf")).max(dim=-1).values
    return each.tolist(), margins.tolist()


def _unequal(answer: Answered, alone: Alone) -> tuple[float, str]:
    """How far an answer in float32 is from what it should be, in words where that is too far."""
    worst = (0.0, "")
    for ours, theirs in zip(answer.values(), alone.values(answer), strict=True):
        gap = abs(ours - theirs)
        if not gap <= TOLERANCE + RELATIVE * abs(theirs):  # a NaN is too far, too
            gap = gap if math.isfinite(gap) else math.inf
            worst = max(worst, (gap, f"a log-likelihood is {ours:.6f}, and alone {theirs:.6f}"))
    first = min(alone.margins)
    wrong = abs(first) if answer.greedy != (first > 0) else 0.0
    if answer.each:  # what is generated is the most probable
        wrong = max(wrong, -min(alone.step_margins))
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
        ours += [abs(a - b) for a, b in zip(answer.values(), values, strict=True)]
        theirs += [abs(a - b) for a, b in zip(other.values(answer), values, strict=True)]
    off, allowed = sum(ours) / len(ours), factor * sum(theirs) / len(theirs) + floor
    if off <= allowed:
        return ""
    return f"log-likelihoods are off by {off:.2g} on average, where rounding explains {allowed:.2g}"


@contextmanager
def _float32(model: Any) -> Iterator[None]:
    """Let a model compute in float32 from its stored weights until the end of the block."""
    before = [(module, module.__class__) for module in model.modules()]
    precise.upcast(model)
    try:
        yield
    finally:
        for module, own in before:
            module.__class__ = own


@contextmanager
def _attention_of(engine: Engine, level: str) -> Iterator[None]:
    """Let an engine's model compute as a level has it until the end of the block."""
    before = engine.model.config._attn_implementation
    attention.switch(engine.model, attention.NAME if level == "A" else engine.numerics.attention)
    try:
        yield
    finally:
        attention.switch(engine.model, before)


# At plan time


def resolve(model: Model) -> str:
    """The best level at which a shrunken random instance of a model answers as it does alone;
    remembered by config, code and versions.

    An architecture of which no instance can be made gets level C, where nothing is shared, and the
    start-up probe holds that on its real weights. Raises EvalkitError where not even level C is
    right.
    """
    cache = models.cache_folder() / "levels.json"
    known: dict[str, str] = {}
    with suppress(EvalkitError, TypeError, ValueError):  # none yet, or torn: it costs time only
        known = dict(canon.read_json(cache))
    key = _key(model)
    if known.get(key) not in LEVELS:
        known[key] = _tried(model)
        with suppress(EvalkitError):
            canon.make_folder(cache.parent)
            canon.write_json(cache, known)
    return known[key]


def _key(model: Model) -> str:
    """Digest of all that a level follows from: the model's config and code, the engine's, and the
    versions of what it stands on."""
    import transformers

    ours = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        ours.update(path.read_bytes())
    theirs = {name: sha for name, sha in model.sha256().items() if name.endswith(".py")}
    versions = [torch.__version__, transformers.__version__]
    return canon.digest([model.config, theirs, ours.hexdigest(), versions])


def _tried(model: Model) -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = shrink.instance(model)
            if made is None:
                return "C"
            stops: Any = trials.Stops()
            fixed = Numerics("float32", attention=made.config._attn_implementation)
            engine = Engine(made, stops, "cpu", "C", fixed)
            problems = {}
            for level in LEVELS:
                problems[level] = problem_at(engine, level)
                if not problems[level]:
                    return level
    finally:
        torch.set_num_threads(threads)
    raise EvalkitError(
        f"evalkit can't run '{model.reference}' as transformers does: {problems['C']}",
        where=str(model.folder),
        fix="use --engine lm-eval:hf",
        code=Exit.FAILED,
    )
