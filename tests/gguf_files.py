"""Writes a tiny Llama of the tests as a GGUF file, as llama.cpp's converter lays one out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

# llama.cpp's name of each weight, by transformers' name of it within a layer.
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(
    folder: Path, file: Path, kind: str = "F32", architecture: str = "llama", pre: str = "llama-bpe"
) -> Path:
    """The Llama in `folder` as a GGUF file; `kind`: the GGUF type of its matrices."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    writer.add_head_count(heads["q"])
    writer.add_head_count_kv(heads["k"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads["q"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, pre)
    for name, weight in load_file(folder / "model.safetensors").items():
        _add(writer, name, weight, heads, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, folder: Path, pre: str) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in saved["added_tokens"]}
    vocabulary = {**saved["model"]["vocab"], **{name: id_ for id_, name in special.items()}}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if vocabulary[token] in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    ids = json.loads((folder / "config.json").read_text())
    writer.add_bos_token_id(ids["bos_token_id"])
    writer.add_eos_token_id(ids["eos_token_id"])
    writer.add_add_bos_token(True)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def _add(writer: Any, name: str, weight: Any, heads: dict[str, int], kind: str) -> None:
    import gguf

    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "model" and parts[1] == "layers":
        inner = LAYER[".".join(parts[3:])]
        named = f"blk.{parts[2]}.{inner}.weight"
        if inner in ("attn_q", "attn_k"):
            weight = _permuted(weight, heads[inner[-1]])
    else:
        named = OUTSIDE[".".join(parts)] + ".weight"
    if weight.ndim == 1 or kind == "F32":
        writer.add_tensor(named, weight.astype(np.float32))
    else:
        wanted = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(named, gguf.quants.quantize(weight, wanted), raw_dtype=wanted)


def _permuted(weight: Any, heads: int) -> Any:
    """A query's or key's weight with each head's halves interleaved, as llama.cpp rotates them."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
