"""Loads a model under fixed numerics, and sends a batch to scoring or to generation."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from evalkit.engine import generate, scoring
from evalkit.errors import EvalkitError, Exit
from evalkit.model import Model
from evalkit.plan import Batch
from evalkit.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAME = "evalkit"


@dataclass(frozen=True, slots=True)
class Numerics:
    """Every setting that can change a bit of an answer on the same hardware: part of the run id."""

    dtype: str
    profile: str = "native"
    attention: str = "sdpa"
    tf32: bool = False
    deterministic: bool = True
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        """The numerics as the record holds them."""
        return {name: getattr(self, name) for name in self.__slots__}


def numerics_for(model: Model, dtype: str | None) -> Numerics:
    """The numerics of a run: the weights' own dtype unless another is asked for."""
    config = model.config
    inner = config.get("text_config") or config
    stated = inner.get("dtype") or inner.get("torch_dtype") or config.get("dtype") or "float32"
    chosen = (dtype or str(stated)).removeprefix("torch.")
    if chosen not in DTYPES:
        raise EvalkitError(f"unknown dtype '{chosen}'", fix=f"choose from {', '.join(DTYPES)}")
    return Numerics(dtype=chosen)


def pick_device(device: str | None) -> str:
    """The device asked for, or the first GPU, or the CPU; EvalkitError when it isn't there."""
    chosen = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(chosen).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise EvalkitError(f"unknown device '{chosen}'", fix="use cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise EvalkitError(
            f"device '{chosen}' is asked for but torch sees no GPU",
            fix="run nvidia-smi; the lock may be the CPU one (LOCK=cuda13 make setup)",
            code=Exit.MISSING,
        )
    return chosen


def fix_numerics(numerics: Numerics) -> None:
    """Set torch's global switches; nothing is tuned by the clock or read from the host."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's deterministic setting
    torch.set_num_threads(numerics.threads)
    torch.use_deterministic_algorithms(numerics.deterministic)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
    torch.backends.cudnn.allow_tf32 = numerics.tf32


class Engine:
    """A loaded model. `execute` is a pure function of the weights, the numerics and the batch."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: str) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, torch.device(device)
        self.eos_ids = eos_ids(model, tokenizer)
        self.processors = generate.processors(getattr(model, "generation_config", None))
        self.eos_text: str = tokenizer.hf.eos_token or ""

    def execute(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """Answers of a batch by part id; EvalkitError when the device runs out of memory."""
        try:
            with torch.inference_mode():
                if batch.kind == "generate_until":
                    return generate.generate(self, batch)
                return scoring.score(self.model, batch, self.device)
        except torch.OutOfMemoryError:
            raise EvalkitError(
                f"out of memory in a batch of {len(batch.rows)} rows x {batch.width} tokens",
                where=str(self.device),
                fix="use a GPU with more memory; what is done is kept",
                code=Exit.MISSING,
            ) from None


def eos_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Token ids that end a text: the tokenizer's EOS and those of the generation config."""
    found = {tokenizer.hf.eos_token_id}
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found.update(stated if isinstance(stated, list) else [stated])
    return frozenset(token for token in found if token is not None)


def load(model: Model, tokenizer: Tokenizer, numerics: Numerics, device: str) -> Engine:
    """Load the weights. Raises EvalkitError when transformers can't, in its first line's words."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    quiet: Any = logging  # untyped
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    fix_numerics(numerics)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=DTYPES[numerics.dtype],
            attn_implementation=numerics.attention,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=None if any(n.endswith(".safetensors") for n in model.files) else False,
        )
        loaded = loaded.to(device).eval()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EvalkitError(
            f"transformers can't load '{model.reference}': {reason}", where=str(model.folder)
        ) from None
    return Engine(loaded, tokenizer, device)


def hardware(device: str) -> dict[str, Any]:
    """What the answers were computed on: the device and, for a GPU, its name and CUDA version."""
    if torch.device(device).type != "cuda":
        return {"device": "cpu", "gpu": [], "cuda": None}
    return {
        "device": device,
        "gpu": [torch.cuda.get_device_name(torch.device(device))],
        "cuda": torch.version.cuda,
    }
