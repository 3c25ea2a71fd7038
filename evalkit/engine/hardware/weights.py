"""A model's weights as transformers loads them: on which devices, under which numerics, with which
adapter.

What transformers would pass over with a warning is an error here: weights that the files lack (it
would draw them at random), an adapter's weights without a place in the model, a dtype other than
the one that the run's identity states.
"""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.hardware import packages, products
from evalkit.engine.hardware.device import AUTO
from evalkit.engine.numerics import numerics, precise
from evalkit.engine.numerics.numerics import DTYPES, Numerics, quantization
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model

COMPARED = 64  # numbers at either end of a weight that are held against its file


def import_all() -> None:
    """Import what loading a model of any architecture needs; that alone takes seconds."""
    import transformers.modeling_utils  # noqa: F401


def load(model: Model, wanted: Numerics, device: str, adapter: Path | None) -> Any:
    """The loaded model, in evaluation mode. Raises EvalkitError when it can't be, in the first line
    of transformers' or peft's words."""
    numerics.silence()
    packages.require(_method(model), device, model.reference)
    try:
        loaded = _base(model, wanted, device)
        _try_quantised(model, loaded)
    except architecture.loading_errors() as error:
        raise numerics.cannot_load(model, error) from None
    if adapter is not None:
        loaded = _adapted(loaded, adapter)
    is_precise = wanted.profile == "precise"
    if device == "cpu" and (is_precise or DTYPES[wanted.dtype] == torch.float32):
        products.use_onednn(loaded)
    if is_precise:
        precise.upcast(loaded)
    return loaded.eval()


def _method(model: Model) -> str | None:
    found = quantization(model)
    return None if found is None else str(found["method"])


def _base(model: Model, wanted: Numerics, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM  # untyped
    stored = DTYPES[wanted.dtype]
    is_precise = wanted.profile == "precise"
    with precise.skeleton(stored) if is_precise else nullcontext():
        loaded, told = causal.from_pretrained(
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
    _check(model, stored, loaded, told)
    _check_held(model, loaded)
    return loaded


def _gpu_memory() -> dict[int, int]:
    """Bytes to use of each GPU for weights. Only GPUs are named: accelerate would put the rest into
    the host's memory and be slow for hours without a word."""
    free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return {index: int(0.9 * number) for index, number in enumerate(free)}


def _check(model: Model, stored: torch.dtype, loaded: Any, told: dict[str, Any]) -> None:
    """EvalkitError where the loaded model is not what the numerics and the files say. `told`:
    transformers' report."""
    what = ""
    if missing := sorted(told["missing_keys"]):
        what = f"the files of '{model.reference}' lack {len(missing)} of its weights: {missing[0]}"
    for name, found, expected in sorted(told["mismatched_keys"])[:1]:
        what = f"'{model.reference}' has {name} as {list(found)}, its config wants {list(expected)}"
    if what:
        fix = "fetch or save the model again: transformers would draw such weights at random"
        raise EvalkitError(what, where=str(model.folder), fix=fix)
    _check_read(model, told)
    dtypes = {parameter.dtype for parameter in loaded.parameters()} & set(DTYPES.values())
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {stored, torch.float32})
    if others:  # a quantised checkpoint that knows better
        raise EvalkitError(
            f"'{model.reference}' computes in {others[0]}, not in {str(stored)[6:]}",
            where=str(model.folder),
            fix=f"pass --dtype {others[0]}",
        )


def _check_read(model: Model, told: dict[str, Any]) -> None:
    """EvalkitError for weights in the files that nothing in the model reads: it would compute
    without a part of the checkpoint."""
    if unread := sorted(told["unexpected_keys"]):
        raise EvalkitError(
            f"{len(unread)} weights in the files of '{model.reference}' are read by nothing in the"
            f" model that its config describes: {unread[0]}",
            where=str(model.folder),
            fix="see whether config.json is this checkpoint's (does it lack a bias or a"
            " quantization_config?); leave them out of a copy only if they do nothing",
        )


def _check_held(model: Model, loaded: Any) -> None:
    """EvalkitError that names the first weight whose numbers are not its file's.

    The beginning and the end of each are compared, so that even a large model takes a moment. What
    transformers stores under another name or in another shape (merged experts, packed numbers)
    can't be held against the files and is left out.
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
                    raise _unlike(model, name)


def _is_same(own: torch.Tensor, stored: Any) -> bool:
    """`stored`: safetensors' slice of the file, which reads what is asked for alone."""
    if own.dim() == 0 or not own.numel():
        return True
    for first, rows in ((True, slice(0, 1)), (False, slice(len(own) - 1, len(own)))):
        wanted, found = stored[rows].flatten(), own[rows].detach().flatten()
        part = slice(0, COMPARED) if first else slice(-COMPARED, None)
        one, other = wanted[part].to(own.dtype), found[part].cpu()
        if not bool(((one == other) | (one.isnan() & other.isnan())).all()):
            return False
    return True


def _unlike(model: Model, name: str) -> EvalkitError:
    return EvalkitError(
        f"transformers did not load {name} of '{model.reference}' as its file has it",
        where=str(model.folder),
        fix="where config.json ties the embeddings and the file has an LM head of its own, one of"
        " the two is wrong: set tie_word_embeddings as the model was trained",
        code=Exit.FAILED,
    )


def _try_quantised(model: Model, loaded: Any) -> None:
    """Run a quantised model once: that its kernels are missing shows in some only then."""
    if quantization(model):
        device = loaded.get_input_embeddings().weight.device
        with torch.inference_mode():
            loaded(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


def _adapted(loaded: Any, adapter: Path) -> Any:
    """The model with a LoRA adapter beside its weights, not merged into them, as lm-eval's `hf`
    model has it."""
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
            warnings.simplefilter("ignore")  # what matters of them is an error below
            wrapped: Any = PeftModel.from_pretrained(loaded, str(adapter))
    except architecture.loading_errors() as error:
        reason = numerics.reason(error)
        raise EvalkitError(f"peft can't load the adapter: {reason}", where=str(adapter)) from None
    # Told what to do with embeddings, peft does not ask the Hub; whole ones in the file are the
    # model's own by name.
    placed = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if unlike := sorted((placed - saved) | (saved - placed - set(wrapped.state_dict()))):
        raise EvalkitError(
            f"the adapter is not of this model: {len(unlike)} weights are on one side only,"
            f" {unlike[0]} first",
            where=str(adapter),
            fix="give the model that the adapter was trained on",
        )
    return wrapped.get_base_model()
