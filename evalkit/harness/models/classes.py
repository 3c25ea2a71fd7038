"""Which of lm-eval's model classes executes a plan, and what a run's identity says of it.

A class is looked up, its package looked for and its arguments checked before anything is planned.
"""

import inspect
from importlib.util import find_spec
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.base.machine import stamp
from evalkit.inputs.engine_name import Choice

PACKAGES = {"vllm": "vllm", "vllm-vlm": "vllm", "sglang": "sglang"}  # that a class runs on
# What evalkit decides, digests or checks itself, and what to do instead.
RESERVED = {
    "pretrained": "use --model", "tokenizer": "use --model", "tokenizer_path": "use --model",
    "revision": "use --revision", "dtype": "use --dtype", "device": "use --device",
    "trust_remote_code": "use --trust-remote-code",
    "peft": "use --adapter", "lora_local_path": "use --adapter",
    "delta": "give a model with these weights merged", "gguf_file": "give a model of safetensors",
    "tokenized_requests": "leave it out: a plan holds token ids, and the engine must take them",
    "enable_thinking": "set chat_template_args: {enable_thinking: ...} in the suite",
    "chat_template_args": "set chat_template_args in the suite",
    "chat_template": "set chat_template in the suite",
    "think_end_token": "set think_end in the suite", "think_start_token": "set think_start in the"
    " suite", "reasoning_parser": "set think_end in the suite",
    "system_instruction": "set system_instruction in the suite",
}  # fmt: skip


def model_class(choice: Choice) -> Any:
    """lm-eval's class of that name. Raises EvalkitError where there is none, where its package is
    not installed, where it takes text only, and for arguments that are evalkit's to give."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import get_model
    from lm_eval.models import MODEL_MAPPING

    name = choice.foreign
    if name not in MODEL_MAPPING:
        hint = one_of(name, sorted(MODEL_MAPPING))
        raise EvalkitError(f"lm-eval has no model class '{name}'", fix=hint)
    for key in choice.args:
        if key in RESERVED:
            raise EvalkitError(f"--engine-arg {key} is not for {choice.name}", fix=RESERVED[key])
    package = PACKAGES.get(name)
    if package and find_spec(package) is None:
        raise missing(choice.name, package)
    try:
        found = get_model(name)
    except ImportError as error:
        raise missing(choice.name, str(error.name or error)) from None
    if "chat" in name or not issubclass(found, TemplateLM):
        raise EvalkitError(
            f"{choice.name} takes text or chats only, and a plan holds token ids",
            fix="choose a class that scores tokens: hf, vllm, sglang, local-completions",
        )
    if is_served(found) and find_spec("tenacity") is None:
        raise missing(choice.name, "tenacity")
    return found


def missing(engine: str, package: str) -> EvalkitError:
    """The error for a package that a class runs on and that is not there."""
    return EvalkitError(
        f"{engine} needs the package {package}, which is not installed",
        fix=f"install it beside evalkit: pip install {package}",
        code=Exit.MISSING,
    )


def is_served(found: Any) -> bool:
    """Whether a class sends its requests to a server, which computes somewhere else."""
    return is_a(found, "TemplateAPI")


def is_a(found: Any, name: str) -> bool:
    """Whether a class is or derives from the one of that name (whose module imports much)."""
    return any(base.__name__ == name for base in found.__mro__)


def versions(choice: Choice) -> dict[str, Any]:
    """Versions of lm-eval and of what the class runs on, as far as they can be seen from here."""
    found: dict[str, Any] = {"lm_eval": stamp.version("lm_eval")}
    if is_served(model_class(choice)):
        found["server"] = stamp.unknown("a server's software can't be seen from here")
    elif package := PACKAGES.get(choice.foreign):
        version = stamp.version(package)
        found[package] = version or stamp.unknown("it is installed without its metadata")
    return found


def numerics(choice: Choice, dtype: str, asked: str | None) -> dict[str, Any]:
    """The record's numerics: evalkit sets the weights' dtype, where a class takes one; no more."""
    found: dict[str, Any] = dict.fromkeys(
        ("profile", "attention", "tf32", "deterministic", "threads"),
        stamp.unknown(f"{choice.name} decides it"),
    )
    if "dtype" in parameters(model_class(choice)):
        return found | {"dtype": dtype}
    if asked:
        raise EvalkitError(f"--dtype is not for {choice.name}", fix="its server decides it")
    return found | {"dtype": stamp.unknown(f"{choice.name} decides it")}


def check_device(choice: Choice, device: str | None) -> None:
    """EvalkitError where a device is asked for that the class chooses itself."""
    if device is not None and not is_a(model_class(choice), "HFLM"):
        raise EvalkitError(
            f"--device is not for {choice.name}",
            fix="set CUDA_VISIBLE_DEVICES, or start its server where it is to compute",
        )


def adapter_parameter(choice: Choice) -> str:
    """What a class calls an adapter's folder; EvalkitError where it takes none."""
    taken = parameters(model_class(choice))
    for name in ("peft", "lora_local_path"):
        if name in taken:
            return name
    raise EvalkitError(f"{choice.name} takes no --adapter", fix="merge it into the model's weights")


def hardware(choice: Choice, here: dict[str, Any]) -> dict[str, Any]:
    """What computes the answers: `here` (`engine.hardware`), or a server's machine, unknown."""
    if not is_served(model_class(choice)):
        return here
    elsewhere = stamp.unknown("a server computed it")
    parts = dict.fromkeys(("gpu", *stamp.GPU_PARTS), elsewhere)
    return {"device": "server", **parts}


def plan_length(choice: Choice, max_length: int) -> int:
    """The longest row that a class takes: the model's context, or the one in its arguments, less
    two tokens where a class must generate one to score (the row's last token counts as well)."""
    names = ("max_length", "max_model_len", "context_length")
    stated = next((choice.args[name] for name in names if name in choice.args), str(max_length))
    if not stated.isdigit() or int(stated) < 3:
        raise EvalkitError(f"the context of {choice.name} is no number of tokens", where=stated)
    return int(stated) - (0 if is_a(model_class(choice), "HFLM") else 2)


def parameters(found: Any) -> set[str]:
    """Names of the arguments that a class or one of its bases takes."""
    return {
        name
        for base in found.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters
    }
