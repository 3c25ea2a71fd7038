"""A model's own generation settings: generation_config.json as transformers' `generate` obeys it.

Read before anything is planned and without weights. What only `generate` itself could do (search,
guidance) is refused by name where a task generates; the rest is obeyed by the engine, with
transformers' own processors (`engine.text.processors`), and stands in the record. transformers is
imported when a model's settings are read, not before.
"""

import os
from collections.abc import Mapping
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model

FILE = "generation_config.json"
# What changes the most probable text, and what changes only one that is drawn.
OBEYED = (
    "sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
    "max_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "renormalize_logits",
)  # fmt: skip
SAMPLING = (
    "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
# What evalkit's engine can't do, with the value at which it does nothing.
REFUSED: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "guidance_scale": 1.0,
    "penalty_alpha": 0.0, "dola_layers": None, "constraints": None, "force_words_ids": None,
    "stop_strings": None, "max_time": None, "token_healing": False, "watermarking_config": None,
    "assistant_early_exit": None, "prompt_lookup_num_tokens": None,
}  # fmt: skip


def own(model: Model) -> dict[str, Any]:
    """What the model's generation config sets of all that changes a text, by name; values that do
    nothing are left out. Raises EvalkitError where the file is broken."""
    config = _read(model)
    for name in SAMPLING:
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, (int, float)):
            raise _broken(model, f"{name} is {value!r}, no number")
    return acting(config, (*OBEYED, *SAMPLING, *REFUSED))


def acting(config: Any, names: tuple[str, ...] = OBEYED) -> dict[str, Any]:
    """The settings of a generation config that do something, of those that are named."""
    stated = {name: getattr(config, name, None) for name in names}
    neutral = {**type(config)._get_default_generation_params(), **REFUSED}
    neutral |= dict.fromkeys(SAMPLING)  # their defaults are `request.settings_from`'s to give
    return {
        name: value
        for name, value in stated.items()
        if value not in (None, [], {}) and value is not False and value != neutral.get(name)
    }


def _read(model: Model) -> Any:
    """transformers' object, made as loading the model makes it."""
    from transformers import GenerationConfig

    kind: Any = GenerationConfig  # untyped
    try:
        if (model.folder / FILE).is_file():
            return kind.from_pretrained(model.folder)
        return kind.from_pretrained(
            model.folder, config_file_name="config.json", _from_model_config=True
        )
    except architecture.loading_errors() as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _broken(model, lines[0]) from None


def _broken(model: Model, reason: str) -> EvalkitError:
    return EvalkitError(
        f"the {FILE} of '{model.reference}' can't be used: {reason}",
        where=os.fspath(model.folder),
        fix="mend it, or take it out of a copy of the model",
    )


def check(settings: Mapping[str, Any]) -> None:
    """Raise EvalkitError for a setting that evalkit can't obey, by its name."""
    for name in REFUSED:
        if name in settings:
            raise EvalkitError(
                f"the model's generation config sets {name} to {settings[name]}, which"
                " evalkit can't do",
                where=FILE,
                fix=f"take {name} out of it in a copy of the model",
            )
