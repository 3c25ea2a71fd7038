"""The settings that can change a bit of an answer on the same hardware, and how they are set.

A run's numerics are chosen when it is planned, from the model's config only. They are part of its
identity and are set before the weights are loaded. Nothing is tuned by measuring time, and nothing
depends on the host: neither on its cores nor on environment variables that would change a kernel.
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
from evalkit.inputs.types import NumericsEntry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROFILES = ("native", "precise")
BIT_KEYS = ("bits", "w_bit", "nbits", "num_bits")


@dataclass(frozen=True, slots=True)
class Numerics:
    """A run's numerics, which are part of its id.

    `dtype` is the dtype of the weights. The `profile` says whether the model computes in it too
    ("native") or in float32 ("precise"). `attention` is transformers' own implementation: "eager"
    where a model has no "sdpa". `threads` is the number within one operation.
    """

    dtype: str
    profile: str = "native"
    attention: str = "sdpa"
    tf32: bool = False
    deterministic: bool = True
    threads: int = 1

    def to_json(self) -> NumericsEntry:
        """Return the numerics as the record holds them."""
        return {
            "dtype": self.dtype,
            "profile": self.profile,
            "attention": self.attention,
            "tf32": self.tf32,
            "deterministic": self.deterministic,
            "threads": self.threads,
        }


@dataclass(frozen=True, slots=True)
class Quantized:
    """How the weights of a checkpoint are quantised; `bits` is None where its config does not
    say."""

    method: str
    bits: int | None


def numerics_for(
    model: Model, dtype: str | None, profile: str = "native", threads: int = 1
) -> Numerics:
    """Return the numerics of a run: with `dtype`, or with the dtype of the weights.

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
    """Raise EvalkitError for the profile `precise` on a quantised checkpoint, and for a method that
    transformers does not know: it would take the packed numbers for weights."""
    quantized = quantization(model)
    if quantized is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    if quantized.method not in {str(method).removesuffix("_4bit") for method in KNOWN}:
        raise EvalkitError(
            f"'{model.reference}' is quantised by '{quantized.method}', unknown to transformers",
            where=str(model.folder),
        )
    if profile == "precise":
        raise EvalkitError(
            f"'{model.reference}' is quantised ({quantized.method}), and its kernels decide what is"
            " computed in float32",
            fix="use --profile native, or the checkpoint that it was made from",
        )


def _plain_attention(model: Model) -> str:
    """Return the implementation with which transformers computes this model's attention. It is kept
    by config, code and versions."""
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
    """Return the attention of a model that is built without weights: some models choose it when
    they are built."""
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
    """Return the error for a model that transformers can't load, with transformers' reason."""
    what = f"transformers can't load '{model.reference}': {reason(error)}"
    return EvalkitError(what, where=str(model.folder))


def reason(error: Exception) -> str:
    """Return the first line of an exception's message; two where the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def silence() -> None:
    """Let transformers print errors only: evalkit itself reports the rest."""
    from transformers.utils import logging

    untyped: Any = logging
    untyped.set_verbosity_error()
    untyped.disable_progress_bar()


def quantization(model: Model) -> Quantized | None:
    """Return how a checkpoint's weights are quantised, as its config says; None if they are not."""
    config = model.config
    stated = config.get("quantization_config") or (config.get("text_config") or {}).get(
        "quantization_config"
    )
    if not isinstance(stated, dict) or not stated:
        return None
    flags = [bits for bits in (4, 8) if stated.get(f"load_in_{bits}bit")]
    method = stated.get("quant_method") or ("bitsandbytes" if flags else "unknown")
    numbers = [*flags, *_bits(stated)]
    if not numbers:
        words = " ".join(str(stated.get(key, "")) for key in ("weights", "quant_type"))
        named = re.findall(r"(?:fp|float|int)(\d+)", f"{method} {words}", re.I)
        numbers = [int(bits) for bits in named]
    return Quantized(str(method), numbers[0] if numbers else None)


def _bits(value: Any) -> Iterator[int]:
    """Yield every number of bits in a quantisation's config, however deep it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in BIT_KEYS and isinstance(inner, int):
                yield inner
            else:
                yield from _bits(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _bits(inner)


def fix_numerics(numerics: Numerics) -> None:
    """Set torch's global switches, whatever they or the environment variables were.

    torch has two interfaces to TF32, and refuses to read either where they disagree. So both are
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
