"""lm-eval's results as they are published: its fields and its order, without this host's text.

Paths, object addresses, host descriptions and times are replaced by fixed strings, so that the same
run gives the same files anywhere; where a number came from stands in record.json.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.base.machine import stamp
from evalkit.harness.index import task_folder
from evalkit.harness.samples import plain
from evalkit.inputs.suite import Suite

ELSEWHERE = "see record.json"
BOOTSTRAP_ITERS = 100000  # lm-eval's default


def clean(results: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """lm-eval's results as JSON values; `folder`: the suite's, whose paths are replaced."""
    return {key: _without_host(plain(value), folder) for key, value in results.items()}


def _without_host(value: Any, folder: Path | None) -> Any:
    if isinstance(value, dict):
        return {
            key: _clean_source(item) if key == "config_source" else _without_host(item, folder)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_host(item, folder) for item in value]
    if isinstance(value, str):
        value = value.replace(str(task_folder()), "lm_eval/tasks")
        value = _without_folder(folder, value)
        return re.sub(r" at 0x[0-9a-f]+>", ">", value)
    return value


def _without_folder(include_path: Path | None, value: str) -> str:
    """Return a text without the suite's task folder, or an absolute path's last part."""
    if include_path is None:
        return value
    folder = os.fspath(include_path)
    value = value.replace(f"{folder}/", "").replace(folder, ".")
    if value.startswith("/") and "\n" not in value and Path(value).exists():
        real = Path(value).resolve()
        inside = real.is_relative_to(include_path)
        return real.relative_to(include_path).as_posix() if inside else real.name
    return value


def _clean_source(path: Any) -> str:
    """A task YAML's path, from its task folder on: where it was installed is nobody's business."""
    text = str(path)
    for mark in ("/lm_eval/tasks/", "/demo/tasks/"):
        if mark in text:
            return mark.strip("/") + "/" + text.split(mark, 1)[1]
    return text.rsplit("/", 1)[-1]


def published(
    results: Mapping[str, object], hashes: dict[str, str], suite: Suite, model: str,
    tokenizer: Mapping[str, object],
) -> dict[str, object]:  # fmt: skip
    """results.json. `hashes`: leaf tasks' `task_hash`; `tokenizer`: `tokenizer.reported`."""
    template = tokenizer["chat_template"] if suite.apply_chat_template else None
    instruction = suite.system_instruction
    return {
        **results,
        "config": _call(suite, model),
        "git_hash": ELSEWHERE,
        "date": 0,
        "pretty_env_info": ELSEWHERE,
        "transformers_version": stamp.version("transformers"),
        "lm_eval_version": stamp.version("lm_eval"),
        "upper_git_hash": None,
        **{key: value for key, value in tokenizer.items() if key != "chat_template"},
        "task_hashes": hashes,
        "model_source": "evalkit",
        "model_name": model,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model),
        "system_instruction": instruction,
        "system_instruction_sha": _sha256(instruction) if instruction else None,
        "fewshot_as_multiturn": suite.fewshot_as_multiturn,
        "chat_template": template,
        "chat_template_sha": _sha256(template) if isinstance(template, str) else None,
        "total_evaluation_time_seconds": ELSEWHERE,
    }


def _call(suite: Suite, model: str) -> dict[str, object]:
    return {
        "model": "evalkit",
        "model_args": f"pretrained={model}",
        "batch_size": ELSEWHERE,
        "batch_sizes": [],
        "device": ELSEWHERE,
        "use_cache": None,
        "limit": suite.limit,
        "bootstrap_iters": BOOTSTRAP_ITERS,
        "gen_kwargs": suite.gen_kwargs or None,
        "random_seed": suite.seeds["random"],
        "numpy_seed": suite.seeds["numpy"],
        "torch_seed": suite.seeds["torch"],
        "fewshot_seed": suite.seeds["fewshot"],
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
