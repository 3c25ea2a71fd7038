"""Every setting that can change a bit of an answer on the same hardware, and how it is set.

Numerics are decided when a run is planned, from the model's config alone, stand in its identity,
and are set here before the weights are loaded. Nothing is tuned by the clock and nothing is read
from the host: neither its cores nor the environment variables that would change a kernel.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp, steering
from evalkit.inputs.models import architecture, checkpoint
from evalkit.inputs.models.model import Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROFILES = ("native", "precise")
BIT_KEYS = ("bits", "w_bit", "nbits", "num_bits")


@dataclass(frozen=True, slots=True)
class Numerics:
    """A run's numerics: part of its id.

    `dtype` is the weights', `profile` whether they also compute in it ("native") or in float32
    ("precise"); `attention` is transformers' plain implementation, "eager" where a model has no
    "sdpa"; `threads` are those within an operation.
    """

    dtype: str
    profile: str = "native"
    attention: str = "sdpa"
    tf32: bool = False
    deterministic: bool = True
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        """The numerics as the record holds them."""
        return {name: getattr(self, name) for name in self.__slots__}


def numerics_for(
    model: Model, dtype: str | None, profile: str = "native", threads: int = 1
) -> Numerics:
    """The numerics of a run: the weights' own dtype unless another is asked for.

    Raises EvalkitError for an unknown dtype, profile or quantisation, for `precise` on a quantised
    checkpoint, and for a config that transformers can't make a model of.
    """
    config = model.config
    inner = config.get("text_config") or config
    stated = inner.get("dtype") or inner.get("torch_dtype") or config.get("dtype")
    stated = stated or config.get("torch_dtype") or checkpoint.dtype(model) or "float32"
    chosen = (dtype or str(stated)).removeprefix("torch.")
    if chosen not in DTYPES:
        raise EvalkitError(f"unknown dtype '{chosen}'", fix=f"choose from {', '.join(DTYPES)}")
    if profile not in PROFILES:
        what = f"unknown numerics profile '{profile}'"
        raise EvalkitError(what, fix=f"choose from {', '.join(PROFILES)}")
    _check_quantised(model, profile)
    attention = _plain_attention(model)
    return Numerics(dtype=chosen, profile=profile, attention=attention, threads=threads)


def _check_quantised(model: Model, profile: str) -> None:
    """EvalkitError for a way to quantise that transformers would pass over, taking the packed
    numbers for weights, and for `precise`."""
    found = quantization(model)
    if found is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    if found["method"] not in {str(method).removesuffix("_4bit") for method in KNOWN}:
        raise EvalkitError(
            f"'{model.reference}' is quantised by '{found['method']}', unknown to transformers",
            where=str(model.folder),
        )
    if profile == "precise":
        raise EvalkitError(
            f"'{model.reference}' is quantised ({found['method']}), and its kernels decide what is"
            " computed in float32",
            fix="use --profile native, or the checkpoint that it was made from",
        )


def _plain_attention(model: Model) -> str:
    """What transformers computes this model's attention with; remembered by config, code and
    versions."""
    key = origin(model)
    known = kept.read("attention")
    if key not in known:
        known |= {key: _attention_of_skeleton(model)}
        kept.write("attention", known)
    return str(known[key])


def origin(model: Model) -> str:
    """Return the digest of all that follows from a model before its weights are read: its config
    and code, the engine's code, and the versions of what that stands on."""
    ours = {name: sha for name, sha in kept.code().items() if name.startswith("engine/")}
    theirs = {name: sha for name, sha in model.sha256().items() if name.endswith(".py")}
    versions = [stamp.version("torch"), stamp.version("transformers")]
    return canon.digest([model.config, theirs, ours, versions])


def _attention_of_skeleton(model: Model) -> str:
    """What transformers computes this model's attention with: asked of a skeleton without weights,
    because some models decide it when they are made."""
    from transformers import AutoConfig, AutoModelForCausalLM

    silence()
    causal: Any = AutoModelForCausalLM  # untyped
    trust = model.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=trust)
        with torch.device("meta"):
            skeleton = causal.from_config(config, trust_remote_code=trust)
    except architecture.loading_errors() as error:
        raise cannot_load(model, error) from None
    chosen: str = skeleton.config.get_text_config()._attn_implementation
    return chosen


def cannot_load(model: Model, error: Exception) -> EvalkitError:
    """transformers' reason in its first line's words."""
    what = f"transformers can't load '{model.reference}': {reason(error)}"
    return EvalkitError(what, where=str(model.folder))


def reason(error: Exception) -> str:
    """What an exception says, in a line; two where the first only announces the second."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def silence() -> None:
    """Let transformers say nothing but errors: what else there is to say is ours to tell."""
    from transformers.utils import logging

    untyped: Any = logging
    untyped.set_verbosity_error()
    untyped.disable_progress_bar()


def quantization(model: Model) -> dict[str, Any] | None:
    """How the checkpoint's weights are quantised, from its config: {"method", "bits"}, bits None
    where the config does not say; None for a checkpoint that is not quantised."""
    config = model.config
    stated = config.get("quantization_config") or (config.get("text_config") or {}).get(
        "quantization_config"
    )
    if not isinstance(stated, dict) or not stated:
        return None
    flags = [bits for bits in (4, 8) if stated.get(f"load_in_{bits}bit")]
    method = stated.get("quant_method") or ("bitsandbytes" if flags else "unknown")
    found = [*flags, *_numbers(stated)]
    if not found:
        words = " ".join(str(stated.get(key, "")) for key in ("weights", "quant_type"))
        found = [
            int(bits) for bits in re.findall(r"(?:fp|float|int)(\d+)", f"{method} {words}", re.I)
        ]
    return {"method": str(method), "bits": found[0] if found else None}


def _numbers(value: Any) -> Iterator[int]:
    """Every number of bits that a quantisation's config states, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in BIT_KEYS and isinstance(inner, int):
                yield inner
            else:
                yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def fix_numerics(numerics: Numerics) -> None:
    """Set torch's global switches, whatever they were and whatever the environment says.

    torch has two interfaces to TF32 and refuses to read either where they disagree, so both are
    set, the older one first and without its deprecation warning.
    """
    steering.clear()  # where torch was imported before the command line could
    torch.set_num_threads(numerics.threads)
    torch.use_deterministic_algorithms(numerics.deterministic)
    memory: Any = torch.utils.deterministic  # untyped
    memory.fill_uninitialized_memory = False  # it finds bugs, and costs 5% of decoding
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = numerics.deterministic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
        torch.backends.cudnn.allow_tf32 = numerics.tf32
    precision = "tf32" if numerics.tf32 else "ieee"
    backends: Any = torch.backends  # torch's types lag behind its interface
    for part in (backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv,
                 backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv):  # fmt: skip
        part.fp32_precision = precision
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_fp16_accumulation = False
    backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
    if torch.cuda.is_available():  # a build without CUDA has no kernels to tune
        torch.cuda.tunable.enable(False)
