"""Which installed tasks score by code of their own, and why a task can't be scored again.

A task's YAML may name Python functions that say what is asked or what an answer is worth. They are
found here as names, without being imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.harness.data import metrics
from evalkit.harness.index import task_folder

# Fields of a config that don't score: which data (the samples' own), which examples, which words.
IGNORED = {"custom_dataset", "dataset_kwargs", "fewshot_config", "generation_kwargs"}
IGNORED |= {"metadata", "num_fewshot", "process_docs", "tag", "task_alias"}
REFUSED = ("class", "doc_to_audio", "doc_to_image", "unsafe_code", "use_prompt")


class Refused(Exception):
    """This task can't be scored again here; the text says why."""


class OwnCode(Refused):
    """This task scores by code of its own; the text says where."""


class Unlike(Refused):
    """The recorded config is not the installed task's; the text names the fields."""


def refuse_code(config: Mapping[str, Any], *, with_code: bool) -> None:
    """Raises Refused for a task that scores by what can't be run, and, unless `with_code`, OwnCode
    for one that scores by more than templates and lm-eval's own parts."""
    from lm_eval.api.registry import metric_registry

    ours = metrics.by_sklearn(config)
    for key in REFUSED:
        if config.get(key):
            raise Refused(f"the task has {key}")
    own = config.get("process_results") is not None
    for metric in config.get("metric_list") or []:
        known = metric["metric"] in metric_registry and not metric.get("hf_evaluate")
        if not (own or known or metric["metric"] in ours):
            raise Refused(f"metric {metric['metric']} is not lm-eval's own")
    if not with_code and (names := code_in(config)):
        raise OwnCode(f"the task's {', '.join(sorted(names))} is code")


def code_in(config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files of the functions that score in an unresolved config, by its key: lm-eval reads a
    `!function` as a path with the function's name behind the last point."""
    found = {key: _files(config[key]) for key in config.keys() - IGNORED}
    return {key: files for key, files in found.items() if files}


def _files(value: Any) -> list[Path]:
    if isinstance(value, dict):
        return [path for item in value.values() for path in _files(item)]
    if isinstance(value, list):
        return [path for item in value for path in _files(item)]
    if isinstance(value, str) and value.startswith(f"{task_folder().resolve()}/"):
        return [Path(value.rpartition(".")[0] + ".py")]
    return []
