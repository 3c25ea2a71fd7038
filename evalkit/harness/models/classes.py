"""Which of lm-eval's model classes executes a plan, and what a run's identity says of it.

A class is looked up, its package looked for and its arguments checked before anything is planned.
"""

import inspect
from importlib.util import find_spec
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.base.machine import stamp
from evalkit.base.machine.types import Hardware, Text
from evalkit.inputs.engine_name import Choice
from evalkit.inputs.types import NumericsEntry

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
    """Return lm-eval's class of that name. Raises EvalkitError where there is none, where its
    package is not installed, where it takes text only, and for arguments that evalkit sets."""
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
    """Return the error for a package that a class needs and that is not installed."""
    return EvalkitError(
        f"{engine} needs the package {package}, which is not installed",
        fix=f"install it beside evalkit: pip install {package}",
        code=Exit.MISSING,
    )


def is_served(found: Any) -> bool:
    """Return whether a class sends its requests to a server."""
    return is_a(found, "TemplateAPI")


def is_a(found: Any, name: str) -> bool:
    """Return whether a class is, or derives from, the class of that name, which is not imported."""
    return any(base.__name__ == name for base in found.__mro__)


def versions(choice: Choice) -> dict[str, Text]:
    """Return the versions of lm-eval and of the package that the class runs on, where they can be
    known; EvalkitError where the package is not installed."""
    no_metadata = stamp.unknown("it is installed without its metadata")
    known: dict[str, Text] = {"lm_eval": stamp.version("lm_eval") or no_metadata}
    if is_served(model_class(choice)):
        known["server"] = stamp.unknown("a server's software can't be seen from here")
    elif package := PACKAGES.get(choice.foreign):
        known[package] = stamp.version(package) or no_metadata
    return known


def numerics(choice: Choice, dtype: str, requested: str | None) -> NumericsEntry:
    """Return the record's numerics: evalkit sets the dtype of the weights, where a class takes one,
    and nothing else. `requested`: the user's dtype."""
    takes_dtype = "dtype" in parameters(model_class(choice))
    if requested and not takes_dtype:
        raise EvalkitError(f"--dtype is not for {choice.name}", fix="its server decides it")
    unknown = stamp.unknown(f"{choice.name} decides it")
    return {
        "profile": unknown,
        "dtype": dtype if takes_dtype else unknown,
        "attention": unknown,
        "tf32": unknown,
        "deterministic": unknown,
        "threads": unknown,
    }


def check_device(choice: Choice, device: str | None) -> None:
    """Raise EvalkitError for a requested device where the class chooses the device itself."""
    if device is not None and not is_a(model_class(choice), "HFLM"):
        raise EvalkitError(
            f"--device is not for {choice.name}",
            fix="set CUDA_VISIBLE_DEVICES, or start its server where it is to compute",
        )


def adapter_parameter(choice: Choice) -> str:
    """Return a class's parameter for an adapter's folder; EvalkitError where it has none."""
    taken = parameters(model_class(choice))
    for name in ("peft", "lora_local_path"):
        if name in taken:
            return name
    raise EvalkitError(f"{choice.name} takes no --adapter", fix="merge it into the model's weights")


def hardware(choice: Choice, here: Hardware) -> Hardware:
    """Return the hardware that computes the answers: this host's (`here`), or unknown."""
    if not is_served(model_class(choice)):
        return here
    unknown = stamp.unknown("a server computed it")
    return {
        "device": "server",
        "gpu": unknown,
        "cuda": unknown,
        "driver": unknown,
        "cublas": unknown,
        "cudnn": unknown,
    }


def plan_length(choice: Choice, max_length: int) -> int:
    """Return the most tokens of a row that a class takes: the model's context, or the one in its
    arguments, less two tokens where a class must generate a token to score (the row's last token
    counts as well)."""
    names = ("max_length", "max_model_len", "context_length")
    stated = next((choice.args[name] for name in names if name in choice.args), str(max_length))
    if not stated.isdigit() or int(stated) < 3:
        raise EvalkitError(f"the context of {choice.name} is no number of tokens", where=stated)
    return int(stated) - (0 if is_a(model_class(choice), "HFLM") else 2)


def parameters(found: Any) -> set[str]:
    """Return the names of the arguments that a class or one of its bases takes."""
    return {
        name
        for base in found.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters
    }
