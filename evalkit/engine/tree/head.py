"""The LM head at chosen places only.

A hook hands the head those tokens; what a model does behind its head (soft-capping, scaling)
still happens to them.
"""

from typing import Any

import torch


def logits(model: Any, places: list[tuple[int, int]], **inputs: Any) -> torch.Tensor:
    """Logits [places, vocabulary] in the model's dtype of a forward pass over `inputs`.

    `places`: (row, token) pairs.
    """
    output: torch.Tensor = run(model, places, **inputs).logits
    return output[0]


def run(model: Any, places: list[tuple[int, int]], **inputs: Any) -> Any:
    """transformers' whole output of a forward pass, its logits [1, places, vocabulary]."""
    index = torch.tensor(places)  # [places, 2]

    def select(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        rows, tokens = index.to(args[0].device).unbind(dim=1)
        return (args[0][rows, tokens].unsqueeze(0),)  # [1, places, hidden]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        return model(**inputs)
    finally:
        handle.remove()
