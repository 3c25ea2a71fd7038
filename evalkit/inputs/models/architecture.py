"""What transformers makes of a model's config: whether it has such a causal language model, which
errors it raises where it can't load one, and the sizes that decide how much memory passes take.

Sizes are read from the attributes that transformers gives a config, whatever the file calls them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, first_line

RECURRENT = ("mamba", "linear_attention", "conv", "recurrent", "moe")  # layers without keys
# Models whose layers have keys in some places only, by the attribute that lists these.
PLACES = ("attn_layer_indices",)


def check(folder: Path, reference: str, trust_remote_code: bool) -> None:
    """Raise EvalkitError unless transformers has a causal language model of this architecture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = canon.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise EvalkitError("config.json is no mapping", where=os.fspath(folder))
    if trust_remote_code and "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        return
    causal = {
        name
        for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for name in (value if isinstance(value, tuple) else (value,))
    }
    stated, kind = config.get("architectures"), str(config.get("model_type", "nothing known"))
    named = list(map(str, stated)) if isinstance(stated, list) else []
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if causal & set(named) or (not named and known):
        return
    if "auto_map" in config and not known:
        raise EvalkitError(
            f"'{reference}' brings its own model code",
            fix="pass --trust-remote-code if you have read and trust it",
        )
    what = ", ".join(named) or kind
    raise EvalkitError(
        f"'{reference}' is no causal language model (its config says {what})",
        fix="evalkit measures models that transformers loads with AutoModelForCausalLM",
    )


def loading_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a config or weights raise which can't be loaded; ArithmeticError
    where impossible sizes make a sum overflow."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    builtin = (OSError, ValueError, RuntimeError, LookupError, ImportError, AttributeError)
    return (*builtin, TypeError, ArithmeticError, StrictDataclassError, SafetensorError)


class Loading:
    """A block that loads a model's files. `told` makes an EvalkitError of the reason why they can't
    be loaded; any other exception is a bug of ours."""

    def __init__(self, told: Callable[[str], EvalkitError]) -> None:
        self._told = told

    def __enter__(self) -> None:
        """Begin to load."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # tokenizers raises no class of its own, but `Exception`
        if type(error) is Exception or isinstance(error, loading_errors()):
            raise self._told(first_line(error) or type(error).__name__) from None


def text_config(folder: Path, reference: str, trust_remote_code: bool) -> Any:
    """Return the config of a model's text part as transformers has it: with its defaults, by the
    names that its classes give. Raises EvalkitError where transformers can't read it."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return config.get_text_config()
    except loading_errors() as error:
        first = first_line(error) or type(error).__name__
        what = f"transformers can't read the config of '{reference}': {first}"
        raise EvalkitError(what, where=os.fspath(folder)) from None


def rope_limit(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a forward pass may have before all of its rotary angles change
    (dynamic scaling, longrope); None where they never do. `config`: config.json."""
    inner = config.get("text_config") or config
    rope = inner.get("rope_parameters") or inner.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) not in ("dynamic", "longrope", "su"):
        return None
    name = "original_max_position_embeddings"
    places = (rope.get(name), inner.get(name), inner.get("max_position_embeddings"))
    return next((int(found) for found in places if found), None)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model: `key` and `value` are those of a head, `layers` the number that keep keys,
    `windows` how many tokens each of them sees back at most (None: all), `inner` the widest part
    of an MLP, all experts of a token together, `softcap` whether scores are capped."""

    hidden: int
    inner: int
    vocabulary: int
    heads: int
    key_heads: int
    key: int
    value: int
    windows: tuple[int | None, ...]
    softcap: bool = False

    @property
    def layers(self) -> int:
        """Layers that keep keys and values."""
        return len(self.windows)

    def cache_bytes(self, number_bytes: int) -> int:
        """Bytes that a token's keys and values take in all layers. Latent attention is kept as the
        heads' own keys and values, and sliding layers keep every token: so does the engine."""
        return self.layers * self.key_heads * (self.key + self.value) * number_bytes

    def pass_bytes(self, number_bytes: int, plain_keys: int = 0) -> int:
        """Bytes that a token takes while a layer computes, at most. `plain_keys`: keys that it
        meets where no kernel spares the scores their place in memory."""
        mlp = 3 * self.inner * number_bytes
        repeated = 2 * self.heads * (self.key + self.value)  # queries, outputs, repeated keys
        attention = repeated * number_bytes + 2 * 4 * self.heads * self.value  # merged in float32
        scores = self.heads * plain_keys * (4 + number_bytes)
        return 4 * self.hidden * number_bytes + max(mlp, attention + scores)


def shape_of(config: Any) -> Shape:
    """Return the shape of a text model, from its config as transformers has it. A size that the
    config has no word for is estimated upwards: what is reserved for it is only reserved."""
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads") or 1
    size = _first(config, "head_dim") or max(1, hidden // heads)
    latent = _first(config, "kv_lora_rank")
    rope, plain = _first(config, "qk_rope_head_dim"), _first(config, "qk_nope_head_dim")
    return Shape(
        hidden=hidden,
        inner=_inner(config, hidden),
        vocabulary=_first(config, "vocab_size"),
        heads=heads,
        key_heads=heads if latent else _key_heads(config, heads),
        key=rope + plain if latent else size,
        value=_first(config, "v_head_dim") if latent else size,
        windows=_windows(config),
        softcap=bool(getattr(config, "attn_logit_softcapping", None)),
    )


def _first(config: Any, *names: str) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value), 0)


def _key_heads(config: Any, heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        return 1
    return _first(config, "num_key_value_heads", "num_kv_heads") or heads


def _inner(config: Any, hidden: int) -> int:
    """The widest MLP: a dense one, or the experts that a token goes through and shared ones."""
    dense = _first(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
    chosen = _first(config, "num_experts_per_tok", "moe_topk", "top_k_experts")
    expert = _first(config, "moe_intermediate_size") or dense
    shared = _first(config, "shared_expert_intermediate_size", "shared_intermediate_size")
    return max(dense, chosen * expert + shared, _first(config, "intermediate_size_mlp"))


def _windows(config: Any) -> tuple[int | None, ...]:
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    places = next((p for name in PLACES if (p := getattr(config, name, None))), None)
    window = _first(config, "sliding_window", "attention_chunk_size") or None
    return tuple(
        window if "sliding" in kind or "chunked" in kind else None
        for index, kind in enumerate(types)
        if kind not in RECURRENT and (places is None or index in places)
    )
