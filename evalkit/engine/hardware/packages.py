"""What a quantised checkpoint is computed with: packages that must be there, or a dequantised copy.

transformers finds out in the middle of loading, some kernels only when they first run, and where it
can't compute as stored it makes the weights larger without a word. Here what is missing is named
before anything is loaded, and what was dequantised afterwards, in the record.
"""

from importlib.util import find_spec
from typing import Any

import torch

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.hardware import kernels

# By transformers' name of a way to quantise: what it imports.
NEEDED: dict[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto_round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm_gpu",),
    "fp_quant": ("fp_quant",),
    "gptq": ("optimum", "gptqmodel"),
    "higgs": ("flute", "hadamard"),
    "hqq": ("hqq",),
    "quanto": ("optimum",),
    "quark": ("quark",),
    "spqr": ("spqr_quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
# Of these, what computes on a GPU from some capability on; below, and on a CPU, the weights are
# dequantised when they are loaded.
ON_GPUS: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "fp8": ((8, 9), ("kernels",)),
    "mxfp8": ((8, 9), ("kernels",)),
}
LOCKED = {"bitsandbytes", "compressed_tensors"}  # what requirements/quant.lock has


def missing(method: str, device: str) -> list[str]:
    """The packages that computing with such weights on a device needs and that are not here."""
    needed = NEEDED.get(method, ())
    if method in ON_GPUS and device != "cpu":
        since, more = ON_GPUS[method]
        index = torch.device(device).index if device.startswith("cuda") else 0
        needed += more if kernels.capability(index or 0) >= since else ()
    return [name for name in needed if find_spec(name) is None]


def require(method: str | None, device: str, reference: str) -> None:
    """EvalkitError that names what a quantised checkpoint lacks here. `method`: its way to
    quantise, None for a checkpoint that is not."""
    lacking = missing(method, device) if method else []
    if not lacking:
        return
    names = " and ".join(lacking)
    locked = "make setup QUANT=1 installs it, or " if set(lacking) <= LOCKED else ""
    raise EvalkitError(
        f"'{reference}' is quantised ({method}), and computing with it needs {names}, which is not"
        " installed",
        fix=f"{locked}install {names} beside evalkit, or use the checkpoint that it was made from",
        code=Exit.MISSING,
    )


def told(method: str | None, loaded: Any) -> list[str]:
    """How a loaded model's weights, stored by a way to quantise, are computed with, for the record.
    Where transformers has dequantised them, the model has forgotten that they were quantised."""
    if method is None:
        return []
    if getattr(loaded, "hf_quantizer", None) is not None:
        return [f"weights {method}"]
    return [f"weights {method}, dequantised to {str(loaded.dtype).removeprefix('torch.')}"]
