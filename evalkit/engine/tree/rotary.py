"""Rotary embeddings that remember: put back to their first state before each batch.

transformers' dynamic RoPE keeps the angles of the longest sequence that it has seen, so a batch's
answers would depend on which ran before it.
"""

from typing import Any


def reset(model: Any) -> None:
    """Let every rotary module of a model forget what it has seen."""
    for module in model.modules():
        if not hasattr(module, "max_seq_len_cached") or not hasattr(module, "rope_type"):
            continue
        for name in [name for name, _ in module.named_buffers(recurse=False)]:
            first = getattr(module, name.replace("inv_freq", "original_inv_freq"), None)
            if name.endswith("inv_freq") and "original" not in name and first is not None:
                getattr(module, name).copy_(first)
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)
