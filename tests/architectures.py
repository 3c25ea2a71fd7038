"""Tiny random models of many architectures, each for what its attention, positions or states do.

Of each only the shape is given; `build` makes a float32 instance in a fraction of a second. Windows
and chunks are so short that prompts of 40 tokens cross them, and weights so large that a token
wrongly seen or wrongly placed moves log-probabilities by far more than 1e-3 (held by
`tests/test_probe.py`).

    python -m tests.architectures NAME FOLDER
"""

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
import models

MAX_LENGTH = 4096
STD = 0.15  # of weights, for 64 inputs
SPARE = 8  # tokens: some tokenizer classes of transformers add one to pad with


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers, what is asked of it here, and what the table says of it."""

    type: str
    features: str
    level: str  # the best that its answers are right at; empty: none
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "llama3"
    heads: bool = True  # the usual names of the usual sizes; else `config` gives all

    def to_config(self, vocabulary: int) -> dict[str, Any]:
        """The configuration's values for a vocabulary of that size."""
        usual = {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 128,
            "max_position_embeddings": MAX_LENGTH,
        }  # fmt: skip
        return (
            {"vocab_size": vocabulary, "initializer_range": STD}
            | (usual if self.heads else {})
            | self.config
        )


_MOE = {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2}
_MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_chunk_size": 16}
_LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0,
    "short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [2.0 + n for n in range(8)],
}  # fmt: skip
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "moe_intermediate_size": 48, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_OLD = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH,
}  # fmt: skip
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"

ARCHITECTURES = {
    "llama": Architecture("llama", "dense, grouped queries", "tree"),
    "llama-dynamic": Architecture(
        "llama", "rotary positions that depend on the longest (dynamic)", "tree",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "qwen2": Architecture(
        "qwen2", "dense, biases, tied head", "tree", {"tie_word_embeddings": True}
    ),
    "qwen3": Architecture("qwen3", "dense, normed queries and keys", "tree", {"head_dim": 16}),
    "mistral": Architecture("mistral", "sliding window on every layer", "tree",
                            {"sliding_window": 17}),
    "mixtral": Architecture(
        "mixtral", "mixture of experts", "tree",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen3-moe": Architecture(
        "qwen3_moe", "mixture of experts, some layers dense", "tree",
        {**_MOE, "head_dim": 16, "num_hidden_layers": 3, "mlp_only_layers": [1]},
    ),
    "olmoe": Architecture(
        "olmoe", "mixture of experts", "tree", {"num_experts": 6, "num_experts_per_tok": 2}
    ),
    "gemma": Architecture("gemma", "one key head, tied head, scaled embeddings", "tree",
                          {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": Architecture(
        "gemma2", "soft-capped scores and head, every other layer slides", "tree",
        {"head_dim": 16, "sliding_window": 18, "query_pre_attn_scalar": 16,
         "attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0},
    ),
    "gemma3": Architecture(
        "gemma3_text", "sliding and full layers with rotary bases of their own, tied head", "tree",
        {"head_dim": 16, "sliding_window": 19, "num_hidden_layers": 4, "query_pre_attn_scalar": 16,
         "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING]},
    ),
    "phi": Architecture("phi", "partly rotary, attention beside the MLP, biased head", "tree"),
    "phi3": Architecture("phi3", "fused projections, sliding window", "tree",
                         {"sliding_window": 21, "pad_token_id": 0}),
    "phi3-longrope": Architecture(
        "phi3", "rotary positions that depend on the longest (longrope)", "tree",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 2048, "pad_token_id": 0},
    ),
    "olmo2": Architecture("olmo2", "norms behind the blocks", "tree"),
    "granite": Architecture(
        "granite", "multipliers on embeddings, scores, residuals and head", "tree",
        {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
         "attention_multiplier": 0.2},
    ),
    "cohere2": Architecture(
        "cohere2", "sliding layers, a full one without positions, scaled tied head", "tree",
        {"sliding_window": 20, "logit_scale": 0.5, "num_hidden_layers": 3,
         "layer_types": [_SLIDING, _FULL, _SLIDING], "pad_token_id": 0},
    ),
    "gpt-oss": Architecture(
        "gpt_oss", "attention sinks, every other layer slides, mixture of experts", "tree",
        {"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 17},
    ),
    "deepseek-v2": Architecture(
        "deepseek_v2", "latent attention, mixture of experts", "tree",
        {**_LATENT, "n_group": 1, "topk_group": 1, "q_lora_rank": None},
    ),
    "deepseek-v3": Architecture(
        "deepseek_v3", "latent attention, grouped mixture of experts behind a dense layer", "tree",
        _LATENT,
    ),
    "glm4": Architecture("glm4", "partly rotary, norms on both sides", "tree", {"head_dim": 16}),
    "glm4-moe": Architecture(
        "glm4_moe", "mixture of experts behind a dense layer, partly rotary", "tree",
        {"head_dim": 16, "moe_intermediate_size": 48, "n_routed_experts": 8, "n_group": 1,
         "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
         "pad_token_id": 0},
    ),
    "gpt-neox": Architecture("gpt_neox", "partly rotary, attention beside the MLP", "tree",
                             {"num_key_value_heads": 4}, "gpt2"),
    "gpt2": Architecture("gpt2", "learned positions, tied head", "tree", _OLD, "gpt2", heads=False),
    "gpt-neo": Architecture(
        "gpt_neo", "learned positions, every other layer local", "prefix",
        {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 19,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": MAX_LENGTH},
        "gpt2", heads=False,
    ),
    "gptj": Architecture("gptj", "rotary in pairs, attention beside the MLP, biased head", "prefix",
                         {**_OLD, "rotary_dim": 8}, "gpt2", heads=False),
    "codegen": Architecture("codegen", "rotary in pairs, projections in blocks", "prefix",
                            {**_OLD, "rotary_dim": 8}, "gpt2", heads=False),
    "opt": Architecture(
        "opt", "learned positions with an offset, ReLU", "tree",
        {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH, "init_std": STD},
        "gpt2", heads=False,
    ),
    "bloom": Architecture("bloom", "ALiBi, tied head", "prefix",
                          {"hidden_size": 64, "n_layer": 2, "n_head": 4}, heads=False),
    "falcon": Architecture(
        "falcon", "one key head, rotary, attention beside the MLP", "prefix",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": MAX_LENGTH}, heads=False,
    ),
    "falcon-alibi": Architecture(
        "falcon", "ALiBi, grouped queries", "prefix",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
         "new_decoder_architecture": True, "num_kv_heads": 2, "parallel_attn": True},
        heads=False,
    ),
    "mpt": Architecture(
        "mpt", "ALiBi, tied head", "prefix",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": MAX_LENGTH,
         "expansion_ratio": 2}, "gpt2", heads=False,
    ),
    "starcoder2": Architecture("starcoder2", "sliding window, biases, tied head", "tree",
                               {"sliding_window": 22, "tie_word_embeddings": True}),
    "stablelm": Architecture("stablelm", "partly rotary, layer norms", "tree"),
    "smollm3": Architecture("smollm3", "every other layer without positions, tied head", "tree",
                            {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "exaone4": Architecture(
        "exaone4", "sliding layers, full ones without positions", "tree",
        {"sliding_window": 18, "layer_types": [_SLIDING, _FULL], "pad_token_id": 0},
    ),
    "llama4": Architecture(
        "llama4_text", "attention in chunks, layers without positions, mixture of experts",
        "prefix",
        {"head_dim": 16, "num_hidden_layers": 4, "intermediate_size_mlp": 96,
         "num_local_experts": 4, "attention_chunk_size": 24, "interleave_moe_layer_step": 2,
         "no_rope_layer_interval": 2, "floor_scale": 16},
    ),
    "qwen3-next": Architecture(
        "qwen3_next", "gated delta rule and gated attention, mixture of experts", "prefix",
        {**_MOE, "head_dim": 16, "shared_expert_intermediate_size": 48,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16, "layer_types": [_LINEAR, _FULL]},
    ),
    "mamba": Architecture(
        "mamba", "state space, no attention", "none",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "gpt2", heads=False,
    ),
    "mamba2": Architecture(
        "mamba2", "state space, no attention", "prefix",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8,
         "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        "gpt2", heads=False,
    ),
    "lfm2": Architecture("lfm2", "short convolutions and attention", "prefix",
                         {"num_hidden_layers": 3, "layer_types": ["conv", _FULL, "conv"]}),
    "falcon-h1": Architecture("falcon_h1", "state space beside attention in every layer", "prefix",
                              {**_MAMBA, "mamba_d_ssm": 128}),
    "bamba": Architecture("bamba", "state space layers, attention layers", "prefix",
                          {**_MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "granite-hybrid": Architecture(
        "granitemoehybrid", "state space layers, attention layers, mixture of experts", "prefix",
        {**_MAMBA, "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"],
         "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
    ),
    "jamba": Architecture(
        "jamba", "state space layers, attention layers, mixture of experts", "none",
        {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1,
         "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 8},
    ),
    "recurrent-gemma": Architecture(
        "recurrent_gemma", "gated linear recurrence, sliding attention, soft-capped head", "",
        {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 20,
         "num_key_value_heads": 1, "w_init_variance_scale": 1.0, "pad_token_id": 0},
    ),
}  # fmt: skip


def build(name: str, folder: Path, *, texts: Iterable[str] = (), seed: int = 0) -> Path:
    """A random model of that name in `folder`, with a tokenizer trained on `texts`, too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = ARCHITECTURES[name]
    corpus = [*models.prose(), *texts]
    tokenizer = models.train_tokenizer(
        wanted.tokenizer, corpus, vocabulary=1200, max_length=MAX_LENGTH
    )
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(
        wanted.type, **(special | wanted.to_config(len(tokenizer) + SPARE))
    )
    causal: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = causal.from_config(config, dtype=torch.float32)
        enliven(model)
    models.save_model(folder, model.eval(), tokenizer)
    return folder


def enliven(model: Any) -> None:
    """Make what transformers starts at zero or one (biases, norms) differ from place to place, and
    the logits spread over some nats whatever the model multiplies them by."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith(("bias", "norm.weight", "layernorm.weight")):
                parameter += 0.1 * torch.randn_like(parameter)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ARCHITECTURES:
        sys.exit(f"usage: python -m tests.architectures NAME FOLDER\n{' '.join(ARCHITECTURES)}")
    print(build(sys.argv[1], Path(sys.argv[2]), seed=random.Random(sys.argv[1]).randrange(100)))
