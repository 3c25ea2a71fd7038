"""A model's config made small: few layers, tokens, experts and heads, short windows.

transformers' configs have some hundred names for a dozen sizes. The sizes are known here by those
names, and changed together where they are tied; a config that is none the less at odds with itself
does not make a model that runs, which `shrink` sees.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Config = dict[str, Any]
Change = Callable[[Config, Any], None]  # of a text model's values; its config for the real names
VOCABULARY, WINDOW, BLOCK, WIDTH = 512, 20, 16, 256
HEAD_SIZE, MAX_GROUP, EXPERTS, CHOSEN = 32, 8, 8, 3
_WINDOWS = re.compile(
    r"(sliding_window(_size)?|(attention_|local_|attn_)?window(_size)?|attention_chunk_size"
    r"|floor_scale|index_topk)$"
)
_TOKENS = re.compile("token_(id|index)s?$")
_BLOCKS = re.compile(r"(mamba_)?chunk_size$")
_WIDTHS = re.compile(r".*intermediate_size(_mlp)?$|.*ffn_(dim|hidden_size)$|n_inner$|d_ff$")
_EXPERTS = re.compile(r"(n_|num_|moe_num_)(local_|routed_)?experts$|zero_expert_num$")
_CHOSEN = re.compile(r"num_experts_per_tok(en)?$|moe_top_?k$|top_k_experts$")
_GROUPS = ("n_group", "num_expert_group")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_STATES = {  # heads of a recurrent state, and their size
    "mamba_n_heads": "mamba_d_head", "mamba_num_heads": "mamba_head_dim",
    "n_mamba_heads": "mamba_headdim", "num_heads": "head_dim",
}  # fmt: skip
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers")


def smaller(config: Any, layers: Sequence[int], change: Change) -> Any:
    """The config with these layers of the text model's, a small vocabulary and short windows,
    narrowed by `change`; other models in it (for images, sound) keep one layer."""
    values = config.to_dict()
    text = config.get_text_config()
    inner = next(
        (v for k, v in values.items() if isinstance(v, dict) and getattr(config, k, None) is text),
        values,
    )
    for part in _parts(values):
        part.pop("quantization_config", None)
        for name in ("dtype", "torch_dtype"):
            if name in part:
                part[name] = "float32"
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False  # so that each can be made as large as it needs
        if part is not inner and part is not values:
            _fewer_layers(part, [0])
    _fewer_layers(inner, layers)
    _fewer_tokens(values)
    hidden = _real(text, "hidden_size")
    before = inner[hidden]
    change(inner, text)
    for part in _parts(values):  # what must be as wide as the text's states
        for name, value in part.items():
            if value == before and not re.search("position|vocab|token", name):
                part[name] = inner[hidden]
    made = type(config).from_dict(values)
    made.name_or_path = config.name_or_path  # where the model's own code lies
    return made


def special_tokens(config: Any) -> set[int]:
    """Token ids that a config gives a meaning of their own."""
    found: set[int] = set()
    for part in _parts(config.to_dict()):
        for name, value in part.items():
            if _TOKENS.search(name):
                found.update(n for n in (value if isinstance(value, list) else [value]) if n)
    return found


def has_experts(config: Any) -> bool:
    """Whether a config says that each token goes to some of several experts."""
    return any(
        type(value) is int and value > 1 and _EXPERTS.match(name)
        for part in _parts(config.get_text_config().to_dict())
        for name, value in part.items()
    )


def _parts(values: Config) -> Iterator[Config]:
    """A configuration and all that are nested in it."""
    yield values
    for value in list(values.values()):
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            yield from _parts(value)


def _real(config: Any, name: str) -> str:
    """What this architecture calls a setting."""
    return str(type(config).attribute_map.get(name, name))


def _fewer_layers(values: Config, layers: Sequence[int]) -> None:
    """Keep only these layers, in whatever lists they are told apart."""
    named = next((name for name in _DEPTHS if isinstance(values.get(name), int)), None)
    count = values[named] if named else len(values.get("layers_block_type", ()))
    kept = [index for index in layers if index < count]
    if len(kept) == count:
        return
    if named:
        values[named] = len(kept)
    if shared := values.get("num_kv_shared_layers"):  # the last ones
        values["num_kv_shared_layers"] = sum(index >= count - shared for index in kept)
    if own := values.get("per_layer_config"):
        own = {int(index): value for index, value in own.items()}
        values["per_layer_config"] = {n: own[i] for n, i in enumerate(kept) if i in own}
    for name, value in values.items():
        if isinstance(value, (list, tuple)) and value:
            if len(value) == count or (len(value) > count and "layer" in name):
                values[name] = [value[index] for index in kept]
            elif re.search("layer|ind(ices|ex)|idx", name) and all(type(n) is int for n in value):
                values[name] = [n for n, index in enumerate(kept) if index in value]
        elif isinstance(value, str) and len(value) == count and "pattern" in name:
            values[name] = "".join(value[index] for index in kept)
    if "attention_types" in values:  # gpt-neo's list, run-length encoded
        values["attention_types"] = [[values["attention_layers"], 1]]


def _fewer_tokens(values: Config) -> None:
    """A small vocabulary, special tokens in it; short windows and blocks."""
    for part in _parts(values):
        for name, value in part.items():
            if _TOKENS.search(name):
                many = isinstance(value, list)
                part[name] = [_in_vocabulary(n) for n in value] if many else _in_vocabulary(value)
            elif type(value) is not int:
                continue
            elif "vocab_size" in name:
                part[name] = min(value, VOCABULARY)
            elif _WINDOWS.match(name):
                part[name] = min(value, WINDOW)
            elif _BLOCKS.match(name):
                part[name] = min(value, BLOCK)


def _in_vocabulary(token: Any) -> Any:
    return min(token, VOCABULARY - 1) if type(token) is int else token


def experts(values: Config, config: Any) -> None:
    """Few experts, of which fewer are chosen."""
    chosen = False
    for name, value in values.items():
        if type(value) is int and _CHOSEN.match(name):
            values[name], chosen = min(value, CHOSEN), True
        elif type(value) is int and value > EXPERTS and _EXPERTS.match(name):
            values[name] = EXPERTS
    for name in _GROUPS:
        if chosen and (values.get(name) or 1) > 1:
            values[name], values["topk_group"] = 2, 1


def heads_and_widths(values: Config, config: Any) -> None:
    """Few experts, narrow blocks, few heads of a small size."""
    _narrowed(values, config, HEAD_SIZE)


def number_of_heads(values: Config, config: Any) -> None:
    """Few experts, narrow blocks, few heads of the size that the model has."""
    _narrowed(values, config, None)


def _narrowed(values: Config, config: Any, head_size: int | None) -> None:
    experts(values, config)
    for name, value in values.items():
        if _WIDTHS.match(name) and value:
            many = isinstance(value, (list, tuple))
            values[name] = [min(n, WIDTH) for n in value] if many else min(value, WIDTH)
    hidden, heads = _real(config, "hidden_size"), _real(config, "num_attention_heads")
    before = values[hidden]
    values[hidden] = _fewer_heads(values, heads, before, head_size)
    for count, size in _STATES.items():
        if values.get(count) and values.get(size) and count != heads:
            _fewer_states(values, count, size, before, values[hidden])
    if values.get("linear_num_key_heads"):
        group = values["linear_num_value_heads"] // values["linear_num_key_heads"]
        values["linear_num_key_heads"], values["linear_num_value_heads"] = 2, 2 * group


def _fewer_states(values: Config, count: str, size: str, before: int, hidden: int) -> None:
    """Change a recurrent state's heads with the states' width, if they follow from it."""
    inner = values[count] * values[size]
    if inner % before == 0:
        inner = inner // before * hidden
        values[count] = max(inner // values[size], 2)
        values[size] = inner // values[count]
    else:
        values[count] = min(values[count], EXPERTS)
    if values.get("mamba_d_ssm"):
        values["mamba_d_ssm"] = values[count] * values[size]
    for name in ("n_groups", "mamba_n_groups", "mamba_ngroups"):
        if values.get(name):
            values[name] = min(values[name], 2)


def _fewer_heads(values: Config, name: str, hidden: int, wanted: int | None) -> int:
    """Change the attention's heads, as many to a key head as before; what states are wide then."""
    heads = values.get(name)
    if not heads:
        return 2 * WIDTH
    size = values.get("head_dim") or hidden // heads
    if wanted and size % wanted == 0 and not _tied_to_size(values):
        size = wanted
    key_heads = next((values[key] for key in _KEY_HEADS if values.get(key)), heads)
    few = 1 if key_heads == 1 else 4 if key_heads == heads else 2
    if key_heads == heads and heads & (heads - 1):
        few = 6  # ALiBi's slopes are others where the heads are no power of two
    values[name] = few * (min(heads // key_heads, MAX_GROUP) if key_heads > 1 else min(heads, 4))
    for key in _KEY_HEADS:
        if values.get(key):
            values[key] = few
    if values.get("head_dim") and not values.get("kv_lora_rank"):
        values["head_dim"] = size
    return int(values[name] * size)


def _tied_to_size(values: Config) -> bool:
    """Whether the config says things that are only right for heads of the size that they have."""
    return any(
        name in ("rotary_dim", "kv_lora_rank")
        or (part is not values and name == "head_dim")
        or (isinstance(value, list) and re.search("factor|section", name))
        for part in _parts(values)
        for name, value in part.items()
        if value
    )
