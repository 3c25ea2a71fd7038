"""What a suite's scores follow from besides lm-eval: packages that tasks' own code and metrics use.

Their names are found when the suite is locked, from the modules that the tasks were made of; a
run's identity has the versions that are installed. No version is asked for that a lock knows:
another one is another run, and says so.
"""

import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalkit.harness.tasks import Leaf

# Whose versions a run's identity has anyway, or which score nothing.
_KNOWN = {"lm_eval", "datasets", "numpy", "transformers", "torch", "huggingface_hub", "packaging"}
_KNOWN |= {"setuptools", "PyYAML", "immutabledict"}
_METRICS = {
    "bleu": "sacrebleu", "ter": "sacrebleu", "chrf": "sacrebleu",
    "f1": "scikit-learn", "mcc": "scikit-learn",
}  # fmt: skip
_BEHIND = {"math-verify": ("latex2sympy2_extended", "sympy", "antlr4-python3-runtime")}
_FUNCTIONS = ("process_results", "process_docs", "doc_to_text", "doc_to_target", "doc_to_choice")


def names(leaves: "dict[str, Leaf]") -> list[str]:
    """The distributions that these tasks are scored with, sorted."""
    modules: dict[str, ModuleType] = {}
    used: set[str] = set()
    for leaf in leaves.values():
        for module in _modules_of(leaf.task):
            _collect(module, modules)
        used |= {_METRICS[name] for name in _metrics(leaf.task) if name in _METRICS}
    owners = metadata.packages_distributions()
    tops = {name.partition(".")[0] for module in modules.values() for name in _used(module)}
    used |= {owner for top in tops for owner in owners.get(top, [])[:1]}
    used |= {behind for name in used for behind in _BEHIND.get(_plain(name), ())}
    found = {_plain(name): name for name in used}
    return sorted(found[name] for name in found.keys() - {_plain(name) for name in _KNOWN})


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _metrics(task: Any) -> list[str]:
    entries = task.get_config("metric_list") or []
    return [str(entry.get("metric")) for entry in entries if isinstance(entry, dict)]


def _modules_of(task: Any) -> Iterator[ModuleType]:
    """The modules of a task's functions, and of its class where that is its own."""
    values = [task.get_config(name) for name in _FUNCTIONS]
    for entry in task.get_config("metric_list") or []:
        values += list(entry.values()) if isinstance(entry, dict) else []
    for each in task.get_config("filter_list") or []:
        values += [value for step in each["filter"] for value in step.values()]
    for value in (*values, type(task)):
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        if module is not None and callable(value) and _is_own(module):
            yield module


def _is_own(module: ModuleType) -> bool:
    """Whether a module is a task's: lm-eval's below its tasks, or one of the suite's own files,
    which lm-eval names by their path."""
    return module.__name__.startswith("/") or module.__name__.startswith("lm_eval.tasks.")


def _collect(module: ModuleType, found: dict[str, ModuleType]) -> None:
    """A task's module and those of the tasks' own that it uses."""
    if module.__name__ in found:
        return
    found[module.__name__] = module
    for name in _used(module):
        other = sys.modules.get(name)
        if other is not None and _is_own(other):
            _collect(other, found)


def _used(module: ModuleType) -> set[str]:
    """Names of the modules that stand in a module's globals, or define what stands there."""
    used: set[str] = set()
    for value in vars(module).values():
        if isinstance(value, ModuleType):
            used.add(value.__name__)
        elif isinstance(name := getattr(value, "__module__", None), str):
            used.add(name)
    return used
