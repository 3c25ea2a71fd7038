"""The metrics that lm-eval gets from the Hub by `evaluate.load`: programs that no lock pins.

So the Hub is never asked. A metric that is one function of scikit-learn is computed by that
function here; `code_eval` looks verdicts up; a task that needs another one is refused by its
name.
"""

import ast
import importlib.util
import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.harness import verdicts

LIBRARY = "evaluate"
# A metric's name on the Hub -> the function of sklearn.metrics that it is.
FUNCTIONS = {
    "accuracy": "accuracy_score",
    "f1": "f1_score",
    "matthews_correlation": "matthews_corrcoef",
    "precision": "precision_score",
    "recall": "recall_score",
}
_BITS = 31  # of a label there
SCORING = ("process_results", "metric_list")  # of a task's config
_FIELDS = ("process_results", "process_docs", "doc_to_text", "doc_to_target", "doc_to_choice")


class Unpinned(Exception):
    """A program on the Hub was asked for; its argument is the program's name."""

    def __str__(self) -> str:
        return f"'{self.args[0]}' is a program on the Hub, which nothing pins"


def unpinned(error: BaseException | None) -> str:
    """The program on the Hub that an error is about, or one that led to it; else nothing."""
    while error is not None:
        if isinstance(error, Unpinned):
            return str(error.args[0])
        error = error.__cause__ or error.__context__
    return ""


class Labels:
    """A metric of labels, with the method of the Hub's metrics that lm-eval calls."""

    def __init__(self, name: str) -> None:
        self._name = name

    def compute(
        self, *, predictions: list[Any], references: list[Any], **settings: Any
    ) -> dict[str, Any]:
        """What scikit-learn's function gives, one number as a float; ValueError for no labels."""
        import numpy as np
        from sklearn import metrics

        function = getattr(metrics, FUNCTIONS[self._name])
        value = function(_labels(references), _labels(predictions), **settings)
        return {self._name: np.asarray(value).item() if np.size(value) == 1 else value}


def _labels(values: list[Any]) -> list[int]:
    """Labels as the Hub's metrics take them: numbers of 32 bits, also from their digits."""
    found = [int(value) for value in values]
    for label in found:
        if not -(1 << _BITS) <= label < 1 << _BITS:
            raise ValueError(f"{label} is no label of 32 bits")
    return found


def load(name: str, config_name: str | None = None, *_: Any, **__: Any) -> Any:
    """In the place of `evaluate.load`: a metric of ours; Unpinned for a program on the Hub."""
    if name == "code_eval":
        return verdicts.GRADER
    if name in FUNCTIONS and config_name in (None, "default"):
        return Labels(name)
    raise Unpinned(name)


@contextmanager
def guarded() -> Iterator[None]:
    """Within the block, whoever loads a metric gets ours, or Unpinned. scikit-learn's warnings, of
    which lm-eval's bootstrap gives thousands, are not shown."""
    module = _late(LIBRARY)
    module.load = load
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"sklearn\.")
            yield
    finally:
        if f"{LIBRARY}.loading" in sys.modules:
            module.load = sys.modules[f"{LIBRARY}.loading"].load
        else:  # nobody has asked it for anything
            del sys.modules[LIBRARY]


def _late(name: str) -> Any:
    """Return a module that is imported when first used: `evaluate` takes a second."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None, "lm-eval requires it"
        spec.loader = importlib.util.LazyLoader(spec.loader)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def check(name: str, task: Any) -> None:
    """EvalkitError for a task that a program on the Hub scores: lm-eval only logs that it has none,
    and fails when all is answered."""
    needed = set(_lost(task))
    for function in functions(task):
        needed |= _loaded(function)
    if lost := needed - {"code_eval"} - FUNCTIONS.keys():
        raise refusal(name, sorted(lost))


def refusal(task: str, metrics: list[str]) -> EvalkitError:
    """The error about a task that these programs on the Hub score."""
    return EvalkitError(
        f"task '{task}' is scored with {', '.join(metrics)}: a program on the Hub, which nothing"
        " pins",
        fix="write a task of your own with a metric of lm-eval's, or with the metric's code beside"
        " it (metric: !function my_metrics.name)",
    )


def _lost(task: Any) -> list[str]:
    if task.get_config("process_results") is not None:
        return []
    known: dict[str, Any] = getattr(task, "_metric_fn_list", {})
    return [name for name, function in known.items() if function is None]


def by_sklearn(config: Mapping[str, Any]) -> list[str]:
    """The metrics in a task's config that are computed here in the place of the Hub's."""
    from lm_eval.api import metrics, registry

    assert metrics.mean is not None, "importing it fills the registry"
    if config.get("process_results") is not None:
        return []
    entries = [each for each in config.get("metric_list") or [] if isinstance(each, dict)]
    own = registry.metric_registry
    return [
        each["metric"] for each in entries
        if each.get("metric") in FUNCTIONS
        and (each.get("hf_evaluate") is True or each["metric"] not in own)
    ]  # fmt: skip


def functions(task: Any) -> Iterator[Any]:
    """The functions in a task's config that are its own, and its class where that is its own."""
    values = [task.get_config(name) for name in _FIELDS]
    for entry in task.get_config("metric_list") or []:
        values += list(entry.values()) if isinstance(entry, dict) else []
    for each in task.get_config("filter_list") or []:
        values += [value for step in each["filter"] for value in step.values()]
    for value in (*values, type(task)):
        if callable(value) and is_own(str(getattr(value, "__module__", None))):
            yield value


def is_own(module: str) -> bool:
    """Whether a module of that name is a task's: lm-eval's below its tasks, or one of the suite's
    own files, which lm-eval names by their path."""
    return module.startswith(("/", "lm_eval.tasks."))


@lru_cache(maxsize=4096)
def _loaded(function: Callable[..., Any]) -> frozenset[str]:
    """Return the metrics that a function, or one that it calls, loads by name."""
    found: set[str] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [function]
    while waiting:
        one = waiting.pop()
        if one in seen or not is_own(str(getattr(one, "__module__", None))):
            continue
        seen.add(one)
        if inspect.isclass(one):
            waiting += [value for value in vars(one).values() if inspect.isfunction(value)]
        elif inspect.isfunction(one):
            names, called = _read(one)
            found |= names
            waiting += called
    return frozenset(found)


def _read(function: Any) -> tuple[set[str], list[Any]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # a lambda within an expression, say
        return set(), []
    space = {**function.__globals__, **dict(_imported(tree))}
    loads, called = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _value(node.func, space) == f"{LIBRARY}.load":
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            loads.add(str(names[0]) if names else "a metric that its code names")
        elif isinstance(node, (ast.Name, ast.Attribute)):
            called.append(_value(node, space))
    return loads, [each for each in called if inspect.isfunction(each) or inspect.isclass(each)]


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((n.asname or n.name, LIBRARY) for n in node.names if n.name == LIBRARY)
        elif isinstance(node, ast.ImportFrom) and node.module == LIBRARY:
            yield from ((n.asname or n.name, f"{LIBRARY}.{n.name}") for n in node.names)


def _value(node: ast.expr, space: dict[str, Any]) -> Any:
    """What a name or a dotted name stands for; of the library, its name."""
    if isinstance(node, ast.Attribute):
        base = _value(node.value, space)
        if isinstance(base, str):
            return f"{base}.{node.attr}"
        return vars(base).get(node.attr) if isinstance(base, ModuleType) else None
    value = space.get(node.id) if isinstance(node, ast.Name) else None
    if isinstance(value, ModuleType) and value.__name__ == LIBRARY:
        return LIBRARY
    return f"{LIBRARY}.load" if value is load else value
