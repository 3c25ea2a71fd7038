"""Tasks whose answers are programs: lm-eval scores them with the Hub's metric `code_eval`, which
runs them on this host. Here it never does.

`guarded` puts a metric in that one's place which looks verdicts up. What is asked of it is noted,
so that the programs can be run where they harm nobody (`host.grading`); one without a verdict
counts as failed, and as missing.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evalkit.harness.programs import verdicts

# Tasks' modules that run programs by that metric only.
GRADED = ("lm_eval.tasks.humaneval.", "lm_eval.tasks.mbpp.")


class Grader:
    """The metric: what it is asked about, by name, and the verdicts that it answers from."""

    def __init__(self) -> None:
        self.verdicts: verdicts.Verdicts = {}
        self.asked: dict[str, str] = {}

    def compute(
        self, references: list[str], predictions: list[list[str]], k: Any = (1,), **_: Any
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """pass@k over the answers of each question, as `code_eval` means it."""
        ks, values = [k] if isinstance(k, int) else list(k), []
        for test, answers in zip(references, predictions, strict=True):
            texts = [verdicts.program(answer, test) for answer in answers]
            names = [verdicts.name_of(text) for text in texts]
            self.asked.update(zip(names, texts, strict=True))
            passed = sum(self.verdicts.get(name) == "passed" for name in names)
            values.append((passed, len(names)))
        found = {
            f"pass@{each}": sum(verdicts.pass_at_k(c, n, each) for c, n in values) / len(values)
            for each in ks
            if all(n >= each for _, n in values)
        }
        return found, {}


_GRADER = Grader()  # lm-eval's modules keep what they loaded, so there is one for all


@contextmanager
def guarded() -> Iterator[None]:
    """Within the block, whoever loads `code_eval` gets ours; other metrics are as they were."""

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        from evaluate.loading import load as original

        return _GRADER if path == "code_eval" else original(path, *args, **kwargs)

    evaluate = _late("evaluate")
    evaluate.load = load
    try:
        yield
    finally:
        if "evaluate.loading" in sys.modules:
            evaluate.load = sys.modules["evaluate.loading"].load
        else:  # nobody has asked it for anything
            del sys.modules["evaluate"]


def _late(name: str) -> Any:
    """A module that is imported when somebody first reads an attribute of it: `evaluate` takes a
    second, and few tasks use it. What is set before then stays set."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None, "lm-eval requires it"
        spec.loader = importlib.util.LazyLoader(spec.loader)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def lost_metrics(task: Any) -> list[str]:
    """The metrics that lm-eval lacks and could not get from the Hub: it only logs that, and fails
    when all is answered."""
    if task.get_config("process_results") is not None:
        return []
    functions: dict[str, Any] = getattr(task, "_metric_fn_list", {})
    return sorted(name for name, function in functions.items() if function is None)


def is_graded(task: Any) -> bool:
    """Whether a task's answers are programs that are graded by verdicts."""
    if not getattr(task, "UNSAFE_CODE", False):
        return False
    functions = [entry["metric"] for entry in task.get_config("metric_list") or []]
    modules = [str(getattr(function, "__module__", "")) for function in functions]
    return bool(modules) and all(name.startswith(GRADED) for name in modules)


@contextmanager
def judged(known: verdicts.Verdicts) -> Iterator[dict[str, str]]:
    """Within the block, scoring goes by these verdicts; the programs that it asks about by name."""
    _GRADER.verdicts, _GRADER.asked = known, {}
    try:
        yield _GRADER.asked
    finally:
        _GRADER.verdicts = {}
