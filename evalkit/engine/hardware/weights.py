"""Loads a model's weights through transformers: on its devices, under its numerics, with its
adapter.

What transformers only warns about is an error here: weights that the files lack (transformers would
draw them at random), weights of an adapter that have no place in the model, a dtype other than the
one in the run's identity. The packages that a quantised checkpoint needs are checked before
anything is loaded: transformers would notice in the middle of loading, with some kernels only when
they first run. Where it can't compute with the quantised weights it dequantises them without a
word; the record says so.
"""

import warnings
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import torch

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.hardware import kernels
from evalkit.engine.hardware.device import AUTO
from evalkit.engine.numerics import numerics, precise
from evalkit.engine.numerics.numerics import DTYPES, Numerics, quantization
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model

COMPARED = 64  # numbers at either end of a weight that are compared with its file
# The packages that transformers imports for each method of quantisation, by its own names.
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
# Methods that need packages only on a GPU of at least this capability. Elsewhere the weights are
# dequantised when they are loaded.
ON_GPUS: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "fp8": ((8, 9), ("kernels",)),
    "mxfp8": ((8, 9), ("kernels",)),
}
LOCKED = {"bitsandbytes", "compressed_tensors"}  # packages in requirements/quant.lock


class LoadingInfo(TypedDict):
    """transformers' report of a load: names of weights, and (name, shape in the file, shape in the
    model) of those that do not fit."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]


def import_all() -> None:
    """Import what a model of any architecture needs; this takes seconds."""
    import transformers.modeling_utils  # noqa: F401


def load(model: Model, wanted: Numerics, device: str, adapter: Path | None) -> Any:
    """Return the loaded model, in evaluation mode. Raises EvalkitError, with the first line of
    transformers' or peft's message, where it can't be loaded."""
    numerics.silence()
    require_packages(model, device)
    try:
        loaded = load_base(model, wanted, device)
        _try_quantised(model, loaded)
    except architecture.loading_errors() as error:
        raise numerics.cannot_load(model, error) from None
    if adapter is not None:
        loaded = _adapted(loaded, adapter)
    is_precise = wanted.profile == "precise"
    if device == "cpu" and (is_precise or DTYPES[wanted.dtype] == torch.float32):
        kernels.use_onednn(loaded)
    if is_precise:
        precise.upcast(loaded)
    return loaded.eval()


def missing_packages(method: str, device: str) -> list[str]:
    """Return the packages that weights quantised by a method need on a device and that are not
    installed."""
    needed = NEEDED.get(method, ())
    if method in ON_GPUS and device != "cpu":
        since, more = ON_GPUS[method]
        index = torch.device(device).index if device.startswith("cuda") else 0
        needed += more if kernels.capability(index or 0) >= since else ()
    return [name for name in needed if find_spec(name) is None]


def require_packages(model: Model, device: str) -> None:
    """Raise EvalkitError where packages for a quantised checkpoint are not installed."""
    quantized = quantization(model)
    lacking = missing_packages(quantized.method, device) if quantized else []
    if not quantized or not lacking:
        return
    names = " and ".join(lacking)
    locked = "make setup QUANT=1 installs it, or " if set(lacking) <= LOCKED else ""
    raise EvalkitError(
        f"'{model.reference}' is quantised ({quantized.method}), and computing with it needs"
        f" {names}, which is not installed",
        fix=f"{locked}install {names} beside evalkit, or use the checkpoint that it was made from",
        code=Exit.MISSING,
    )


def describe_quantized(model: Model, loaded: Any) -> list[str]:
    """Return a line for the record on how quantised weights are computed with; none for others.
    A model that transformers has dequantised no longer says that it was quantised."""
    quantized = quantization(model)
    if quantized is None:
        return []
    if getattr(loaded, "hf_quantizer", None) is not None:
        return [f"weights {quantized.method}"]
    dtype = str(loaded.dtype).removeprefix("torch.")
    return [f"weights {quantized.method}, dequantised to {dtype}"]


def load_base(model: Model, wanted: Numerics, device: str) -> Any:
    """Return the checkpoint as transformers loads it, held against its files; no adapter yet."""
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM  # untyped
    stored = DTYPES[wanted.dtype]
    is_precise = wanted.profile == "precise"
    with precise.skeleton(stored) if is_precise else nullcontext():
        loaded, info = causal.from_pretrained(
            model.folder,
            dtype=torch.float32 if is_precise else stored,
            device_map=AUTO if device == AUTO else {"": device},
            max_memory=_gpu_memory() if device == AUTO else None,
            attn_implementation=wanted.attention,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=None if model.has_safetensors else False,
            ignore_mismatched_sizes=True,  # `_check` refuses them, with their names
            output_loading_info=True,
        )
    _check(model, stored, loaded, info)
    check_values(model, loaded)
    return loaded


def _gpu_memory() -> dict[int, int]:
    """Return the bytes of each GPU that weights may use. Only GPUs are listed: accelerate would put
    the rest into the host's memory, and be slow for hours without a word."""
    free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return {index: int(0.9 * number) for index, number in enumerate(free)}


def _check(model: Model, stored: torch.dtype, loaded: Any, info: LoadingInfo) -> None:
    """Raise EvalkitError where the loaded model does not match the numerics or the files."""
    what = ""
    if missing := sorted(info["missing_keys"]):
        what = f"the files of '{model.reference}' lack {len(missing)} of its weights: {missing[0]}"
    for name, stored_shape, shape in sorted(info["mismatched_keys"])[:1]:
        own = f"'{model.reference}' has {name} as {list(stored_shape)}"
        what = f"{own}, its config wants {list(shape)}"
    if what:
        fix = "fetch or save the model again: transformers would draw such weights at random"
        raise EvalkitError(what, where=str(model.folder), fix=fix)
    _check_read(model, info)
    dtypes = {parameter.dtype for parameter in loaded.parameters()} & set(DTYPES.values())
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {stored, torch.float32})
    if others:  # a quantised checkpoint that knows better
        raise EvalkitError(
            f"'{model.reference}' computes in {others[0]}, not in {str(stored)[6:]}",
            where=str(model.folder),
            fix=f"pass --dtype {others[0]}",
        )


def _check_read(model: Model, info: LoadingInfo) -> None:
    """Raise EvalkitError for weights in the files that the model does not read: it would compute
    without a part of the checkpoint."""
    if unread := sorted(info["unexpected_keys"]):
        raise EvalkitError(
            f"{len(unread)} weights in the files of '{model.reference}' are read by nothing in the"
            f" model that its config describes: {unread[0]}",
            where=str(model.folder),
            fix="see whether config.json is this checkpoint's (does it lack a bias or a"
            " quantization_config?); leave them out of a copy only if they do nothing",
        )


def check_values(model: Model, loaded: Any) -> None:
    """Raise EvalkitError that names the first weight whose numbers differ from its file.

    The beginning and the end of each weight are compared, so that even a large model takes a
    moment. Weights that transformers keeps under another name or in another shape (merged experts,
    packed numbers) can't be compared and are left out.
    """
    if not model.has_safetensors or quantization(model):
        return
    from safetensors import safe_open

    state = loaded.state_dict()
    prefix = f"{getattr(loaded, 'base_model_prefix', '')}."
    for path in model.weight_files():
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                own = state.get(
                    name, state.get(prefix + name, state.get(name.removeprefix(prefix)))
                )
                stored = file.get_slice(name)
                if own is None or list(own.shape) != stored.get_shape() or own.is_meta:
                    continue
                if not _is_same(own, stored):
                    raise _other_values(model, name)


def _is_same(own: torch.Tensor, stored: Any) -> bool:
    """Return whether a weight has the file's numbers. `stored` is safetensors' slice of the file,
    which reads only the rows that are indexed."""
    if own.dim() == 0 or not own.numel():
        return True
    for first, rows in ((True, slice(0, 1)), (False, slice(len(own) - 1, len(own)))):
        in_file, in_model = stored[rows].flatten(), own[rows].detach().flatten()
        part = slice(0, COMPARED) if first else slice(-COMPARED, None)
        wanted, loaded = in_file[part].to(own.dtype), in_model[part].cpu()
        if not bool(((wanted == loaded) | (wanted.isnan() & loaded.isnan())).all()):
            return False
    return True


def _other_values(model: Model, name: str) -> EvalkitError:
    return EvalkitError(
        f"transformers did not load {name} of '{model.reference}' as its file has it",
        where=str(model.folder),
        fix="where config.json ties the embeddings and the file has an LM head of its own, one of"
        " the two is wrong: set tie_word_embeddings as the model was trained",
        code=Exit.FAILED,
    )


def _try_quantised(model: Model, loaded: Any) -> None:
    """Run a quantised model once: some fail only then if their kernels are missing."""
    if quantization(model):
        device = loaded.get_input_embeddings().weight.device
        with torch.inference_mode():
            loaded(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


def _adapted(loaded: Any, adapter: Path) -> Any:
    """Return the model with a LoRA adapter beside its weights, not merged into them, as lm-eval's
    `hf` model does."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise EvalkitError(
            "adapters need the package peft, which is not installed",
            fix="pip install 'evalkit-lm[lora]'",
            code=Exit.MISSING,
        ) from None
    from safetensors import safe_open

    try:
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            saved = set(file.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those that matter are errors below
            wrapped: Any = PeftModel.from_pretrained(loaded, str(adapter))
    except architecture.loading_errors() as error:
        reason = numerics.reason(error)
        raise EvalkitError(f"peft can't load the adapter: {reason}", where=str(adapter)) from None
    # With `save_embedding_layers` given, peft does not ask the Hub. Whole embeddings in the file
    # have the names of the model's own.
    placed = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if unlike := sorted((placed - saved) | (saved - placed - set(wrapped.state_dict()))):
        raise EvalkitError(
            f"the adapter is not of this model: {len(unlike)} weights are on one side only,"
            f" {unlike[0]} first",
            where=str(adapter),
            fix="give the model that the adapter was trained on",
        )
    return wrapped.get_base_model()
