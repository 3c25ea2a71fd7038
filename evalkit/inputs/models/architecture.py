"""What transformers makes of a model's config: whether it has such a causal language model, and
the errors that it and its parts raise where they can't load one."""

import os
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError


def check(folder: Path, reference: str, trust_remote_code: bool) -> None:
    """EvalkitError unless transformers has a causal language model of this architecture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = canon.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise EvalkitError("config.json is no mapping", where=os.fspath(folder))
    if trust_remote_code and "AutoModelForCausalLM" in config.get("auto_map", {}):
        return
    causal = {
        name
        for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for name in (value if isinstance(value, tuple) else (value,))
    }
    named = config.get("architectures") or []
    known = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if causal & set(named) or (not named and known):
        return
    if "auto_map" in config and not known:
        raise EvalkitError(
            f"'{reference}' brings its own model code",
            fix="pass --trust-remote-code if you have read and trust it",
        )
    what = ", ".join(named) or config.get("model_type", "nothing known")
    raise EvalkitError(
        f"'{reference}' is no causal language model (its config says {what})",
        fix="evalkit measures models that transformers loads with AutoModelForCausalLM",
    )


def loading_errors() -> tuple[type[Exception], ...]:
    """What is raised for a config or weights that can't be loaded; a sum that overflows for sizes
    that are no sizes."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    builtin = (OSError, ValueError, RuntimeError, LookupError, ImportError, AttributeError)
    return (*builtin, TypeError, ArithmeticError, StrictDataclassError, SafetensorError)


def text_config(folder: Path, reference: str, trust_remote_code: bool) -> Any:
    """The config of a model's text part, as transformers has it: with its defaults, by the names
    that its classes give. Raises EvalkitError where transformers can't read it."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return config.get_text_config()
    except loading_errors() as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"transformers can't read the config of '{reference}': {first}"
        raise EvalkitError(what, where=os.fspath(folder)) from None


def rope_limit(config: dict[str, Any]) -> int | None:
    """How many positions a forward pass may have before all of its rotary angles change (dynamic
    scaling, longrope); None where they never do. `config`: config.json."""
    inner = config.get("text_config") or config
    rope = inner.get("rope_parameters") or inner.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) not in ("dynamic", "longrope", "su"):
        return None
    name = "original_max_position_embeddings"
    places = (rope.get(name), inner.get(name), inner.get("max_position_embeddings"))
    return next((int(found) for found in places if found), None)
