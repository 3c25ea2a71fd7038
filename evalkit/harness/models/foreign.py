"""lm-eval's own model classes as engines: vllm, sglang, a served endpoint, hf.

A class gets the plan's batches in the plan's order, as token ids or as prompts that its tokenizer
turns into the same ids. How it computes is not known, so no bit of an answer is promised, and what
it does not return (token ids, margins, why a text ended) is recorded as unknown.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, first_line
from evalkit.base.machine import stamp
from evalkit.base.machine.types import Unknown
from evalkit.harness.models import classes
from evalkit.inputs.chat import texts
from evalkit.inputs.engine_name import Choice
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import Answer, Generation, NumericsEntry, Setting
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

Answers = dict[str, Answer]  # by part id
# The errors that a foreign class may raise for its input or for the answers of its server.
BROKEN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def load(
    choice: Choice, model: Model, tokenizer: Tokenizer, *, numerics: NumericsEntry, device: str,
    adapter: Path | None, max_length: int,
) -> "Foreign":  # fmt: skip
    """Return the class, made for a model; EvalkitError with the class's own message."""
    kind = classes.model_class(choice)
    given = _defaults(kind, model, numerics, device, max_length)
    if adapter is not None:
        given[classes.adapter_parameter(choice)] = str(adapter)
    from lm_eval.utils import handle_arg_string

    given |= {key: handle_arg_string(value) for key, value in choice.args.items()}
    if given.get("tokenizer_backend", "huggingface") != "huggingface":
        given.pop("tokenizer")  # the class has its own, which is compared with ours
    with _one_line(choice.name, "can't be made"):
        return Foreign(choice.name, kind(**given), tokenizer)


def _defaults(
    kind: Any, model: Model, numerics: NumericsEntry, device: str, max_length: int
) -> dict[str, Setting]:
    """Return the arguments that a class needs for the model; the user's own replace them."""
    folder = str(model.folder)
    if classes.is_served(kind):
        return {
            "model": model.reference,
            "tokenizer": folder,
            "max_length": max_length + 2,
            "tokenizer_backend": "huggingface",
            "trust_remote_code": model.trust_remote_code,
        }
    given: dict[str, Setting] = {"pretrained": folder, "trust_remote_code": model.trust_remote_code}
    if isinstance(numerics["dtype"], str):
        given["dtype"] = numerics["dtype"]
    if classes.is_a(kind, "HFLM") and device == "auto":
        given["parallelize"] = True
    elif classes.is_a(kind, "HFLM"):
        given["device"] = device
    return given


@contextmanager
def _one_line(name: str, what: str) -> Iterator[None]:
    """Turn an error of a class into an EvalkitError, and send what it prints to stderr."""
    from aiohttp import ClientError  # raised by classes that send several requests at once

    try:
        with redirect_stdout(sys.stderr):
            yield
    except (*BROKEN, ClientError) as error:
        if isinstance(error, ImportError) and error.name:
            raise classes.missing(name, error.name) from None
        reason = first_line(error) or type(error).__name__
        raise EvalkitError(
            f"{name} {what}: {reason}",
            fix="what is done is kept; the same command continues",
            code=Exit.MISSING if isinstance(error, (OSError, ImportError)) else Exit.FAILED,
        ) from None


class Foreign:
    """One of lm-eval's model classes, with the `execute` of an engine."""

    last_split = 0  # a class does not say how it cuts batches

    def __init__(self, name: str, lm: Any, tokenizer: Tokenizer) -> None:
        self.name, self._lm, self._tokenizer = name, lm, tokenizer

    def execute(self, batch: Batch) -> Answers:
        """Return the answers of a batch by part id; EvalkitError where the class fails."""
        assert batch.trunk is None, "a foreign engine's plan has level none"
        with _one_line(self.name, f"failed on a batch of {batch.task}"):
            if batch.settings is not None:
                return self._generate(batch, batch.settings)
            return self._score(batch)

    def _score(self, batch: Batch) -> Answers:
        requests = []
        for target in batch.targets:
            tokens = batch.rows[target.row].tokens[: target.end + 1].tolist()
            context = tokens[: target.start + 1]
            requests.append((None, context, [*tokens[target.start + 1 :], target.last]))
        results = self._lm._loglikelihood_tokens(requests, disable_tqdm=True)
        _check_number(results, requests)
        answers: Answers = {}
        for target, (_, _, scored), result in zip(batch.targets, requests, results, strict=True):
            value, number = float(result[0]), len(scored)
            if batch.kind == "loglikelihood_rolling":
                answers[target.id] = {"loglikelihood": value, "num_tokens": number}
            else:
                answers[target.id] = {
                    "loglikelihood": value, "is_greedy": bool(result[1]), "num_tokens": number,
                }  # fmt: skip
        return answers

    def _generate(self, batch: Batch, settings: Settings) -> Answers:
        from lm_eval.api.instance import Instance

        prompts = [batch.rows[target.row].tokens.tolist() for target in batch.targets]
        texts = self._texts(prompts, [target.id for target in batch.targets])
        instances = [
            Instance("generate_until", {}, (text, _kwargs(settings)), index)
            for index, text in enumerate(texts)
        ]
        results = self._lm.generate_until(instances, disable_tqdm=True)
        _check_number(results, texts)
        unknown = stamp.unknown(f"{self.name} gives the text only")
        written = zip(batch.targets, texts, results, strict=True)
        return {
            target.id: _answer(prompt, str(text), settings, unknown)
            for target, prompt, text in written
        }

    def _texts(self, prompts: list[list[int]], ids: Sequence[str]) -> list[str]:
        """Return prompts that the class's tokenizer turns into the planned ids: all with the BOS in
        the text, or all without it, since a class may look at its first prompt only."""
        bos = self._tokenizer.bos_token_id
        bare = [prompt[1:] if prompt[:1] == [bos] else prompt for prompt in prompts]
        forms = [
            self._tokenizer.decode(tokens, skip_special_tokens=False) for tokens in (prompts, bare)
        ]
        if getattr(self._lm, "tokenizer", None) is None:
            return forms[1]  # a server of texts adds the BOS, and has no tokenizer to check with
        unlike = ""
        for form in forms:
            encoded = _encoded(self._lm, form)
            unlike = next((i for i, a, b in zip(ids, encoded, prompts, strict=True) if a != b), "")
            if not unlike:
                return form
        raise EvalkitError(
            f"request {unlike}: the tokenizer of {self.name} does not turn its prompt into the"
            " planned token ids",
            fix="see that both have the same tokenizer, and whether add_bos_token is set",
        )


def _check_number(results: Sequence[object], requests: Sequence[object]) -> None:
    if len(results) != len(requests):
        raise RuntimeError(f"it answered {len(results)} of {len(requests)} requests")


def _encoded(lm: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids that a class will generate from, by the method that it will use."""
    if hasattr(lm, "tok_batch_encode"):
        ids, mask = lm.tok_batch_encode(texts)
        return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    if classes.is_served(type(lm)):
        encoded = lm.tok_encode(texts, add_special_tokens=lm.add_bos_token)
    else:
        encoded = [lm.tok_encode(text) for text in texts]
    return [list(map(int, ids)) for ids in encoded]


def _answer(prompt: str, raw: str, settings: Settings, unknown: Unknown) -> Generation:
    """Return a text as the journal holds it. A class does not know of thoughts."""
    answer: Generation = {
        "text": raw, "tokens": unknown, "logprobs": unknown, "margins": unknown, "stop": unknown,
    }  # fmt: skip
    if not settings.think_end:
        return answer
    ended = settings.think_end in raw
    thinks = texts.is_open(prompt, settings.think_start, settings.think_end)
    thinks = thinks or settings.think_start in raw
    answer["text"] = texts.scored_part(raw, settings.to_json(), thinks=thinks)
    answer["thought"] = {"tokens": unknown if ended or thinks else 0, "ended": ended}
    if raw != answer["text"]:
        answer["raw"] = raw
    return answer


def _kwargs(settings: Settings) -> dict[str, Setting]:
    """Return the settings by lm-eval's names, new for each request. A text that thinks has no stop
    strings: they apply to its answer only."""
    kwargs: dict[str, Setting] = {
        "until": [] if settings.think_end else list(settings.until),
        "max_gen_toks": settings.max_gen_toks,
        "do_sample": settings.do_sample,
    }
    if settings.do_sample:
        kwargs["temperature"], kwargs["top_p"] = settings.temperature, settings.top_p
        if settings.top_k:
            kwargs["top_k"] = settings.top_k
        if settings.min_p:
            kwargs["min_p"] = settings.min_p
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if value := getattr(settings, name):
            kwargs[name] = value
    return kwargs
