"""Engines on random weights of a given shape, made on the device and never saved.

What a run loads from files is made here in memory: transformers draws the weights, the numerics are
a run's, and the tokenizer is a small one that reads any token id, since texts only serve to look
for stop strings.
"""

from dataclasses import dataclass
from typing import Any

import torch

from evalkit.engine.core import Engine
from evalkit.engine.numerics import numerics, precise
from evalkit.engine.numerics.numerics import DTYPES, Numerics
from evalkit.engine.tree import attention

LLAMA_8B: dict[str, Any] = {  # Llama-3.1-8B's config.json
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
TINY: dict[str, Any] = LLAMA_8B | {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Shape:
    """A Llama's config, where it runs and the dtype of its weights."""

    config: dict[str, Any]
    device: str
    dtype: str


def build(shape: Shape, seed: int = 0) -> Any:
    """A random model of that shape on its device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    causal: Any = LlamaForCausalLM
    numerics.silence()
    torch.manual_seed(seed)
    with torch.device(shape.device):
        made = causal._from_config(
            LlamaConfig(**shape.config, bos_token_id=0, eos_token_id=None),
            dtype=DTYPES[shape.dtype],
            attn_implementation="sdpa",
        )
    return made.eval()


def engine(model: Any, shape: Shape, profile: str = "native", level: str = "tree") -> Engine:
    """An engine around a model, under the numerics of a run; `precise` changes the model."""
    chosen = Numerics(shape.dtype, profile)
    numerics.fix_numerics(chosen)
    if profile == "precise":
        precise.upcast(model)
    attention.switch(model, attention.NAME if level == "tree" else "sdpa")
    stub: Any = Stub()
    return Engine(model, stub, shape.device, level, chosen)


class Stub:
    """A tokenizer for any token id, for the engine and for the baseline:
    `evalkit.inputs.models.tokenizer`'s and transformers' in one."""

    def __init__(self) -> None:
        from tests import models

        made = models.train_tokenizer(
            "llama3", list(models.prose()), vocabulary=1000, max_length=4096
        )
        self._made, self._size = made, len(made)
        self.hf, self.eos_token, self.eos_token_id = self, None, None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids."""
        return list(self._made.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, tokens: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The texts of token ids, whatever they are."""
        within = [[5 + token % (self._size - 5) for token in each] for each in tokens]
        return list(self._made.batch_decode(within, skip_special_tokens=skip_special_tokens))

    def batch_decode(self, tokens: torch.Tensor) -> list[str]:
        """The same as transformers has it."""
        return self.decode(tokens.tolist(), skip_special_tokens=False)
