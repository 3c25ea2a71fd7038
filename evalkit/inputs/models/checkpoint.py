"""What a model's files say of its weights, and of how it generates; no weight is read.

generation_config.json is read as transformers' `generate` obeys it. What only `generate` itself
could do (search, guidance) is refused by name where a task generates; the engine obeys the rest.
transformers is imported when a model's settings are read, not before.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from operator import index
from typing import Any, TypedDict

from evalkit.base.errors import EvalkitError, first_line
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model

GENERATION = "generation_config.json"
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
REFUSED: Mapping[str, object] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "guidance_scale": 1.0,
    "penalty_alpha": 0.0, "dola_layers": None, "constraints": None, "force_words_ids": None,
    "stop_strings": None, "max_time": None, "token_healing": False, "watermarking_config": None,
    "assistant_early_exit": None, "prompt_lookup_num_tokens": None,
}  # fmt: skip


def own_settings(model: Model) -> Mapping[str, Any]:
    """Return what the model's generation config sets of all that changes a text, by name, without
    values that do nothing. Raises EvalkitError where the file is broken."""
    config = _read_generation(model)
    for name in SAMPLING:
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, (int, float)):
            raise _broken(model, f"{name} is {value!r}, no number")
    return acting_settings(config, (*OBEYED, *SAMPLING, *REFUSED))


def acting_settings(config: Any, names: tuple[str, ...] = OBEYED) -> Mapping[str, Any]:
    """Return those of the named settings of a generation config that have an effect."""
    stated = {name: getattr(config, name, None) for name in names}
    neutral = {**type(config)._get_default_generation_params(), **REFUSED}
    neutral |= dict.fromkeys(SAMPLING)  # their defaults are `request.settings_from`'s to give
    return {
        name: value
        for name, value in stated.items()
        if value not in (None, [], {}) and value is not False and value != neutral.get(name)
    }


def _read_generation(model: Model) -> Any:
    """Return transformers' object, made as it makes it when it loads the model."""
    from transformers import GenerationConfig

    kind: Any = GenerationConfig  # untyped
    try:
        if (model.folder / GENERATION).is_file():
            return kind.from_pretrained(model.folder)
        return kind.from_pretrained(
            model.folder, config_file_name="config.json", _from_model_config=True
        )
    except architecture.loading_errors() as error:
        raise _broken(model, first_line(error) or type(error).__name__) from None


def _broken(model: Model, reason: str) -> EvalkitError:
    return EvalkitError(
        f"the {GENERATION} of '{model.reference}' can't be used: {reason}",
        where=os.fspath(model.folder),
        fix="mend it, or take it out of a copy of the model",
    )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise EvalkitError for a setting that evalkit can't obey, by its name."""
    for name in REFUSED:
        if name in settings:
            raise EvalkitError(
                f"the model's generation config sets {name} to {settings[name]}, which"
                " evalkit can't do",
                where=GENERATION,
                fix=f"take {name} out of it in a copy of the model",
            )


# Of safetensors' names for floating-point numbers, those of torch's dtypes.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WeightHeader(TypedDict):
    """What a safetensors header says of one weight."""

    dtype: str
    shape: list[int]


def num_parameters(model: Model) -> int | None:
    """Return the number of parameters; None where the weights are pickles. Raises EvalkitError for
    a file without a readable header, long before the weights are loaded."""
    if not model.has_safetensors:
        return None
    return sum(int(math.prod(entry["shape"])) for entry in _entries(model))


def dtype(model: Model) -> str | None:
    """Return what the weights are stored in, as transformers finds it where config.json does not
    say: the first floating-point weight's dtype. None where weights are pickles, or packed."""
    if not model.has_safetensors:
        return None
    found = (DTYPES.get(entry["dtype"]) for entry in _entries(model))
    return next((name for name in found if name), None)


def _entries(model: Model) -> Iterator[WeightHeader]:
    loading = architecture.loading_errors()
    broken: tuple[type[Exception], ...] = (*loading, struct.error, MemoryError)
    for path in model.weight_files():
        try:
            with path.open("rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(length))
            entries = {key: header[key] for key in header if key != "__metadata__"}
            _ = [(math.prod(map(index, e["shape"])), len(e["dtype"])) for e in entries.values()]
        except broken:
            raise EvalkitError(
                f"{path.name} of '{model.reference}' is not a whole safetensors file",
                where=str(model.folder),
                fix="fetch or save the model again",
            ) from None
        yield from entries.values()
