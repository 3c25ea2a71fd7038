"""Changes logits before a token is chosen: transformers' own processors and warpers, in its order.

A model's generation config and a task's settings say which ones. Each text has a list of its own,
since some processors count from the end of the prompt, and its row is processed alone, so that
other rows of the batch change nothing.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch

from evalkit.inputs.models import checkpoint
from evalkit.plan.requests.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

_MOST_PROBABLE = {"do_sample": False, "num_beams": 1, "guidance_scale": None}
_GIVEN = ("temperature", "top_p", "top_k", "min_p")  # set by the task, or by the plan


class Penalties:
    """The presence and frequency penalties of vllm and OpenAI's servers. They are subtracted from
    the logits of tokens that are in the text: once, or as often as the token is in it."""

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        self._presence, self._frequency, self._prompt = presence, frequency, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[1, tokens], [1, vocabulary] -> [1, vocabulary]."""
        counts = torch.bincount(input_ids[0, self._prompt :], minlength=scores.shape[1])[None]
        return scores - self._presence * (counts > 0) - self._frequency * counts


class Chooser:
    """The processors of one text and, if it is sampled, its warpers, which run on the CPU."""

    def __init__(self, prompt: list[int], processors: Any, warpers: Any) -> None:
        self._prompt, self._processors, self.warpers = prompt, processors, warpers
        self.has_processors = bool(processors)
        self._ids: torch.Tensor | None = None  # prompt and text, longer than needed
        self._known = 0

    def processed(self, tokens: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Return the processed logits [vocabulary] of the token after `tokens`, the text so far."""
        if not self.has_processors:
            return logits
        result: torch.Tensor = self._processors(self._before(tokens, logits.device), logits[None])
        return result[0]

    def warped(self, logits: torch.Tensor) -> torch.Tensor:
        """Return processed logits [vocabulary], on the CPU, as tokens are drawn from them."""
        result: torch.Tensor = self.warpers(torch.empty(1, 0, dtype=torch.long), logits[None])
        return result[0]

    def _before(self, tokens: list[int], device: torch.device) -> torch.Tensor:
        """Return all token ids so far, [1, tokens]. Only new ones are copied to the device."""
        length = len(self._prompt) + len(tokens)
        if self._ids is None or length > len(self._ids):
            ids = [*self._prompt, *tokens, *[0] * (64 + len(tokens))]
            self._ids, self._known = torch.tensor(ids, device=device), length
        if length > self._known:
            new = tokens[self._known - len(self._prompt) :]  # a prompt is known from the start
            self._ids[self._known : length] = torch.tensor(new, device=device)
            self._known = length
        return self._ids[None, :length]


def own(config: Any) -> Any:
    """Return a loaded model's generation config if it changes the most probable text, else None."""
    return config if config is not None and checkpoint.acting_settings(config) else None


def chooser(engine: "Engine", settings: Settings, prompt: list[int]) -> Chooser:
    """Return the processors and warpers of the text after a prompt."""
    warpers = None
    if settings.do_sample:  # warpers keep no state of a text
        if settings not in engine.warpers:
            engine.warpers[settings] = _warpers(engine, settings)
        warpers = engine.warpers[settings]
    return Chooser(prompt, _processors(engine, settings, prompt), warpers)


def _processors(engine: "Engine", settings: Settings, prompt: list[int]) -> Any:
    """Return the processors; None where neither the model nor the task sets any."""
    counted = settings.presence_penalty, settings.frequency_penalty
    if engine.generation is None and not settings.repetition_penalty and not any(counted):
        return None
    config = _config(engine)
    config.update(**_MOST_PROBABLE, max_length=len(prompt) + settings.max_gen_toks)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + len(prompt)
    if settings.repetition_penalty:
        config.repetition_penalty = settings.repetition_penalty
    listed = _listed(engine, config, prompt, torch.tensor([prompt], device=engine.device))
    if any(counted):
        listed.append(Penalties(*counted, len(prompt)))
    return listed


def _warpers(engine: "Engine", settings: Settings) -> Any:
    """Return what transformers applies only to sampled texts."""
    from transformers import GenerationConfig

    kind: Any = GenerationConfig  # untyped
    stated, plain = getattr(engine.model, "generation_config", None), kind()
    for name in checkpoint.SAMPLING:
        setattr(plain, name, getattr(stated, name, None))
    plain.update(do_sample=True, **{name: getattr(settings, name) for name in _GIVEN})
    plain.min_p = settings.min_p or None
    plain.update(**plain._get_default_generation_params(), defaults_only=True)
    return _listed(engine, plain, [0], None)


def _config(engine: "Engine") -> Any:
    """Return a copy of the model's generation config, with transformers' defaults."""
    from transformers import GenerationConfig

    kind: Any = GenerationConfig  # untyped
    config = copy.deepcopy(engine.generation) or kind()
    config.update(**config._get_default_generation_params(), defaults_only=True)
    return config


def _listed(engine: "Engine", config: Any, prompt: list[int], ids: torch.Tensor | None) -> Any:
    """Return transformers' list for a generation config. `ids` are the prompt's, for those that
    read them."""
    from transformers import GenerationMixin

    device = engine.device if ids is not None else torch.device("cpu")
    mixin: Any = GenerationMixin  # also for models with their own code and without `generate`
    mixin._prepare_special_tokens(engine.model, config, True, device=device)
    return mixin._get_logits_processor(
        engine.model,
        generation_config=config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=ids,
        device=device,
    )
