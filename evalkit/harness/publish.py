"""lm-eval's results as they are published: its fields and its order, without this host's text.

Paths, object addresses, host descriptions and times are replaced by fixed strings, so that the same
run gives the same files anywhere; where a number came from stands in record.json.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from evalkit import stamp
from evalkit.harness.tasks import task_folder
from evalkit.suite import Suite

ELSEWHERE = "see record.json"
BOOTSTRAP_ITERS = 100000  # lm-eval's default


def clean(results: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results as JSON values. Task paths and object addresses are replaced, but not in
    the samples: what a model read and wrote stays as it was."""
    return {
        key: plain(value) if key == "samples" else _without_host(plain(value))
        for key, value in results.items()
    }


def plain(value: Any) -> Any:
    """A value of numpy's, sets and objects as JSON values, as lm-eval writes them."""
    from lm_eval.utils import handle_non_serializable

    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, set):
        return sorted(map(plain, value))  # a set's own order differs between processes
    if hasattr(value, "tolist"):
        return value.tolist()  # numpy's scalars and arrays
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return handle_non_serializable(value)


def _without_host(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _clean_source(item) if key == "config_source" else _without_host(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_host(item) for item in value]
    if isinstance(value, str):
        value = value.replace(str(task_folder()), "lm_eval/tasks")
        return re.sub(r" at 0x[0-9a-f]+>", ">", value)
    return value


def _clean_source(path: Any) -> str:
    """A task YAML's path, from its task folder on: where it was installed is nobody's business."""
    text = str(path)
    for mark in ("/lm_eval/tasks/", "/demo/tasks/"):
        if mark in text:
            return mark.strip("/") + "/" + text.split(mark, 1)[1]
    return text.rsplit("/", 1)[-1]


def published(
    results: dict[str, Any], suite: Suite, model: str, tokenizer: dict[str, Any]
) -> dict[str, Any]:
    """results.json. `tokenizer`: what lm-eval reports of one (`tokenizer.reported`)."""
    body = {key: value for key, value in results.items() if key != "samples"}
    template, instruction = tokenizer.pop("chat_template"), suite.system_instruction
    template = template if suite.apply_chat_template else None  # what was applied, as lm-eval says
    return body | {
        "config": _call(suite, model),
        "git_hash": ELSEWHERE,
        "date": 0,
        "pretty_env_info": ELSEWHERE,
        "transformers_version": stamp.version("transformers"),
        "lm_eval_version": stamp.version("lm_eval"),
        "upper_git_hash": None,
        **tokenizer,
        "task_hashes": {
            name: _sha256("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in of))
            for name, of in results["samples"].items()
        },
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


def _call(suite: Suite, model: str) -> dict[str, Any]:
    """What lm-eval reports of its own call."""
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


def samples(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """lm-eval's sample records as it would write them, each with its leaf task's name first."""
    filters: dict[str, int] = {}
    for name in sorted(results["samples"]):
        for sample in results["samples"][name]:
            filters.setdefault(sample["filter"], len(filters))
        ordered = sorted(
            results["samples"][name], key=lambda s: (s["doc_id"], filters[s["filter"]])
        )
        for sample in ordered:
            arguments = {
                f"gen_args_{i}": {f"arg_{j}": arg for j, arg in enumerate(args)}
                for i, args in enumerate(sample["arguments"])
            }
            yield (
                {"task": name}
                | sample
                | {
                    "target": str(sample["target"]),
                    "arguments": arguments,
                    "resps": strings(sample["resps"]),
                    "filtered_resps": strings(sample["filtered_resps"]),
                }
            )


def strings(value: Any) -> Any:
    """Nested lists with every leaf as a string, as lm-eval writes responses."""
    return [strings(item) for item in value] if isinstance(value, (list, tuple)) else str(value)
