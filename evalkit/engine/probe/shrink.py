"""A random instance of a model's architecture that is small enough to try things on.

Only config.json (and, where it is trusted, the model's own code) is read, never a weight. The
instance has a layer of every kind that the model has and little of everything else: `narrow` says
what a config that is changed so looks like. Sizes that turn out to be tied to each other are left
as they are, as far as memory allows.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from evalkit.engine.numerics import numerics
from evalkit.engine.probe import narrow
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model

MAX_PARAMETERS = 400_000_000  # of the instance: 1.6 GB
STD = 1.0  # of a weight, times the root of the number of a layer's inputs; of logits
EFFECT = 0.02  # of a token's on the logits of one five behind it, as a share of their spread


def instance(model: Model) -> Any | None:
    """A random model in float32 on the CPU of the architecture of `model`, drawn from torch's
    global generator; None where none can be made that is small enough and runs.

    Raises EvalkitError where transformers can't make a model of the config at all.
    """
    from transformers import AutoConfig

    trust = model.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=trust)
        with torch.device("meta"):
            kinds = layer_kinds(_make(config, trust), config)
    except architecture.loading_errors() as error:
        raise numerics.cannot_load(model, error) from None
    for layers, change in _attempts(kinds):
        try:
            small = narrow.smaller(config, layers, change)
            if (made := _tried(small, trust, set(kinds))) is not None:
                return made
        except architecture.loading_errors():
            continue  # sizes that don't go together: the next change leaves more of them alone
    return None


def _attempts(kinds: Sequence[Any]) -> Iterator[tuple[Sequence[int], narrow.Change]]:
    """Which layers to keep and what to make narrow, the smallest first.

    One layer of each kind, where the config lists them; otherwise the first ones, for what a layer
    is follows from its number.
    """
    few = sorted({kinds.index(kind) for kind in kinds} | set(range(min(2, len(kinds)))))
    first = range(few[-1] + 1)
    more = range(min(3 * len(first), len(kinds)))  # one of a kind may need another
    for change in (narrow.heads_and_widths, narrow.number_of_heads):
        yield few, change
        yield first, change
    yield more, narrow.heads_and_widths
    yield few, narrow.experts
    yield first, narrow.experts


def _make(config: Any, trust: bool) -> Any:
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM  # untyped
    return causal.from_config(config, dtype=torch.float32, trust_remote_code=trust).eval()


def _tried(config: Any, trust: bool, kinds: set[Any]) -> Any | None:
    """A model of that config, if it has layers of all these kinds, is small and runs."""
    with torch.device("meta"):
        skeleton = _make(config, trust)
    size = sum(weight.numel() for weight in skeleton.parameters())
    if size > MAX_PARAMETERS or not kinds <= set(layer_kinds(skeleton, config)):
        return None
    made = _make(config, trust)
    _enliven(made)
    with torch.inference_mode():
        input_ids = torch.arange(2 * narrow.WINDOW)[None]
        logits = made(input_ids=input_ids, use_cache=False).logits
    return made if logits.isfinite().all() else None


def layer_kinds(model: Any, config: Any) -> list[Any]:
    """What tells each decoder layer from the others, sizes aside: its modules' classes, their
    flags, and what the config's lists say of it."""
    text = config.get_text_config()
    count = text.num_hidden_layers
    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if not lists:
        return [None] * count
    layers = max(lists, key=lambda item: sum(weight.numel() for weight in item.parameters()))
    stated = [
        value
        for name, value in sorted(text.to_dict().items())
        if re.search("layer|pattern", name) and hasattr(value, "__len__") and len(value) == count
    ]
    return [
        (tuple(_modules(layer)), tuple(_flag(value[index]) for value in stated))
        for index, layer in enumerate(layers)
    ]


def _modules(layer: torch.nn.Module) -> Iterator[Any]:
    for name, module in layer.named_modules():
        own = [
            (key, flag)
            for key, value in sorted(vars(module).items())
            if not re.search("^_|idx|index", key) and (flag := _flag(value)) is not None
        ]
        yield name, type(module).__name__, tuple(own)


def _flag(value: Any) -> str | None:
    """A setting without its size."""
    if value is None or isinstance(value, (bool, int, float)):
        return str(bool(value))
    return re.sub(r"\d+", "#", value) if isinstance(value, str) else None


def _enliven(model: Any) -> None:
    """Make weights so large that what a token sees and where it stands shows in its logits,
    whatever the model's own initialisation and multipliers are. Raises ValueError where it does
    not: on such an instance every level would look right."""
    with torch.inference_mode():
        for weight in model.parameters():
            if weight.dim() < 2 or weight.numel() < narrow.WIDTH:
                continue
            spread, wanted = float(weight.std()), STD * min(weight.shape[-2:]) ** -0.5
            if 0 < spread < wanted and abs(float(weight.mean())) < 0.2 * spread:
                weight *= wanted / spread
        for _ in range(4):
            spread, effect = _effect(model)
            model.get_output_embeddings().weight *= STD / spread
            if effect >= EFFECT * spread:
                return
            model.get_input_embeddings().weight *= 0.2  # what layers add to it counts for more
    raise ValueError("what stands before a token hardly matters")


def _effect(model: Any) -> tuple[float, float]:
    """How far a token's logits are spread, and how far they move on average when a token shortly
    before it is another one."""
    tokens = torch.arange(2 * narrow.WINDOW).repeat(2, 1)
    tokens[1, -6] = 0
    one, other = (model(input_ids=row[None], use_cache=False).logits[0, -1] for row in tokens)
    return float(one.std()), float((one - other).abs().mean())
