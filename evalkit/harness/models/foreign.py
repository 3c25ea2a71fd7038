"""lm-eval's own model classes as engines: vllm, sglang, a served endpoint, hf.

A class is handed the plan's batches one at a time, in the plan's order, as token ids where it takes
them and else as a prompt that its tokenizer turns into the same ids. What else shares its batches,
its caches and its kernels is its own affair, so nothing here is promised to the bit; and what a
class does not tell (token ids, margins, why a text ended) is said to be unknown, never made up.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, first_line
from evalkit.base.machine import stamp
from evalkit.base.machine.stamp import Unknown
from evalkit.harness.models import classes
from evalkit.inputs.chat import texts
from evalkit.inputs.engine_name import Choice
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

Answers = dict[str, dict[str, Any]]
# Whatever a class that is not ours may raise for what it is given or for what answers it.
BROKEN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def load(
    choice: Choice, model: Model, tokenizer: Tokenizer, *, numerics: dict[str, Any], device: str,
    adapter: Path | None, max_length: int,
) -> "Foreign":  # fmt: skip
    """Make the class. `max_length`: the plan's. Raises EvalkitError in the class's own words."""
    found = classes.model_class(choice)
    given = _defaults(found, model, numerics, device, max_length)
    if adapter is not None:
        given[classes.adapter_parameter(choice)] = str(adapter)
    from lm_eval.utils import handle_arg_string

    given |= {key: handle_arg_string(value) for key, value in choice.args.items()}
    if given.get("tokenizer_backend", "huggingface") != "huggingface":
        given.pop("tokenizer")  # the class brings its own, and is checked against ours
    with _told(choice.name, "can't be made"):
        return Foreign(choice.name, found(**given), tokenizer)


def _defaults(
    found: Any, model: Model, numerics: dict[str, Any], device: str, max_length: int
) -> dict[str, Any]:
    """What a class must be told of the model, unless its arguments say otherwise."""
    folder = str(model.folder)
    if classes.is_served(found):
        served = {"model": model.reference, "tokenizer": folder, "max_length": max_length + 2}
        return served | {
            "tokenizer_backend": "huggingface",
            "trust_remote_code": model.trust_remote_code,
        }
    given: dict[str, Any] = {"pretrained": folder, "trust_remote_code": model.trust_remote_code}
    if isinstance(numerics["dtype"], str):
        given["dtype"] = numerics["dtype"]
    if classes.is_a(found, "HFLM"):
        given |= {"parallelize": True} if device == "auto" else {"device": device}
    return given


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    """Turn what a class raises into one line, and keep what it prints away from stdout."""
    from aiohttp import ClientError  # what a class with several requests under way raises

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
    """One of lm-eval's model classes with evalkit's engines' `execute`."""

    last_split = 0  # it does not tell how it cuts batches up

    def __init__(self, name: str, lm: Any, tokenizer: Tokenizer) -> None:
        self.name, self._lm, self._tokenizer = name, lm, tokenizer

    def execute(self, batch: Batch) -> Answers:
        """Answers of a batch of level none by part id; EvalkitError where the class fails."""
        assert batch.trunk is None, "a foreign engine's plan has level none"
        with _told(self.name, f"failed on a batch of {batch.task}"):
            if batch.settings is not None:
                return self._generate(batch, batch.settings)
            return self._score(batch)

    def _score(self, batch: Batch) -> Answers:
        asked = []
        for target in batch.targets:
            tokens = batch.rows[target.row].tokens[: target.end + 1].tolist()
            context = tokens[: target.start + 1]
            asked.append((None, context, [*tokens[target.start + 1 :], target.last]))
        found = self._lm._loglikelihood_tokens(asked, disable_tqdm=True)
        if len(found) != len(asked):
            raise RuntimeError(f"it answered {len(found)} of {len(asked)} requests")
        return {
            target.id: {
                "loglikelihood": float(value),
                **({} if batch.kind == "loglikelihood_rolling" else {"is_greedy": bool(is_greedy)}),
                "num_tokens": len(scored),
            }
            for target, (_, _, scored), (value, is_greedy) in zip(
                batch.targets, asked, found, strict=True
            )
        }

    def _generate(self, batch: Batch, settings: Settings) -> Answers:
        from lm_eval.api.instance import Instance

        prompts = [batch.rows[target.row].tokens.tolist() for target in batch.targets]
        texts = self._texts(prompts, [target.id for target in batch.targets])
        instances = [
            Instance("generate_until", {}, (text, _kwargs(settings)), index)
            for index, text in enumerate(texts)
        ]
        found = self._lm.generate_until(instances, disable_tqdm=True)
        if len(found) != len(texts):
            raise RuntimeError(f"it answered {len(found)} of {len(texts)} requests")
        untold = stamp.unknown(f"{self.name} gives the text only")
        rest = dict.fromkeys(("tokens", "logprobs", "margins", "stop"), untold)
        written = zip(batch.targets, texts, found, strict=True)
        return {
            target.id: {**_answered(prompt, str(text), settings, untold), **rest}
            for target, prompt, text in written
        }

    def _texts(self, prompts: list[list[int]], ids: Sequence[str]) -> list[str]:
        """Prompts that the class's own tokenizer turns into the planned ids: with the BOS in the
        text, or without it where the class puts it in front. A batch's all have one form, since a
        class may look at its first prompt only."""
        bos = self._tokenizer.bos_token_id
        bare = [prompt[1:] if prompt[:1] == [bos] else prompt for prompt in prompts]
        forms = [
            self._tokenizer.decode(tokens, skip_special_tokens=False) for tokens in (prompts, bare)
        ]
        if getattr(self._lm, "tokenizer", None) is None:
            return forms[1]  # a server of texts puts the BOS in front, and there is none to ask
        unlike = ""
        for form in forms:
            found = _read_back(self._lm, form)
            unlike = next((i for i, a, b in zip(ids, found, prompts, strict=True) if a != b), "")
            if not unlike:
                return form
        raise EvalkitError(
            f"request {unlike}: the tokenizer of {self.name} does not turn its prompt into the"
            " planned token ids",
            fix="see that both have the same tokenizer, and whether add_bos_token is set",
        )


def _read_back(lm: Any, texts: list[str]) -> list[list[int]]:
    """The token ids that a class will generate from, by the method that it will use."""
    if hasattr(lm, "tok_batch_encode"):
        ids, mask = lm.tok_batch_encode(texts)
        return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    if classes.is_served(type(lm)):
        encoded = lm.tok_encode(texts, add_special_tokens=lm.add_bos_token)
    else:
        encoded = [lm.tok_encode(text) for text in texts]
    return [list(map(int, ids)) for ids in encoded]


def _answered(prompt: str, raw: str, settings: Settings, untold: Unknown) -> dict[str, Any]:
    """A text as the journal holds it: a class that is not told of thoughts gives all of it."""
    if not settings.think_end:
        return {"text": raw}
    ended = settings.think_end in raw
    thinks = texts.is_open(prompt, settings.think_start, settings.think_end)
    thinks = thinks or settings.think_start in raw
    answer = texts.scored_part(raw, settings.to_json(), thinks=thinks)
    spent: Any = untold if ended or thinks else 0
    thought = {"tokens": spent, "ended": ended}
    return {"text": answer, "thought": thought, **({"raw": raw} if raw != answer else {})}


def _kwargs(settings: Settings) -> dict[str, Any]:
    """The settings in lm-eval's words; a dictionary for each request, since classes change it. Stop
    strings are for answers alone, so that a text that thinks is written to its end."""
    kwargs: dict[str, Any] = {
        "until": [] if settings.think_end else list(settings.until),
        "max_gen_toks": settings.max_gen_toks,
        "do_sample": settings.do_sample,
    }
    if settings.do_sample:
        kwargs |= {"temperature": settings.temperature, "top_p": settings.top_p}
        kwargs |= {"top_k": settings.top_k} if settings.top_k else {}
        kwargs |= {"min_p": settings.min_p} if settings.min_p else {}
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if value := getattr(settings, name):
            kwargs[name] = value
    return kwargs
