"""Phase two: lm-eval computes its own metrics from answers that are already there.

`Replay` is a model that only remembers. Scores are therefore lm-eval's to the last digit, and
scoring needs no GPU, no torch and no weights. What evalkit adds: a document with a NaN answer
scores 0 (numpy's argmax would call a NaN the best choice).
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from evalkit.errors import EvalkitError
from evalkit.harness import requests as building
from evalkit.harness.publish import BOOTSTRAP_ITERS, clean
from evalkit.harness.tasks import Loaded

Answers = dict[str, dict[str, Any]]  # request id -> answer


class _Replay:
    """The model that `lm_eval.evaluate` is given: it answers from the journal."""

    def __init__(self, answers: Answers, ids: dict[int, str], template: Any) -> None:
        self.rank, self.world_size = 0, 1
        self.tokenizer_name = ""
        self.apply_chat_template = template
        self._answers, self._ids = answers, ids

    def _replay(self, instances: list[Any]) -> Iterator[dict[str, Any]]:
        asked: dict[int, int] = defaultdict(int)
        for instance in instances:  # the k-th time an instance comes, its k-th repeat is meant
            request_id = f"{self._ids[id(instance)]}/{asked[id(instance)]}"
            asked[id(instance)] += 1
            yield self._answers[request_id]

    def loglikelihood(self, instances: list[Any]) -> list[tuple[float, bool]]:
        return [(a["loglikelihood"], a["is_greedy"]) for a in self._replay(instances)]

    def loglikelihood_rolling(self, instances: list[Any]) -> list[float]:
        return [a["loglikelihood"] for a in self._replay(instances)]

    def generate_until(self, instances: list[Any]) -> list[str]:
        return [a["text"] for a in self._replay(instances)]


def score(
    loaded: Loaded, answers: Answers, chat_template: building.ChatTemplate | None = None
) -> dict[str, Any]:
    """lm-eval's results dictionary, samples included, from every request's answer.

    Raises EvalkitError when an answer is missing. Deterministic: no host, no time, no path in it.
    """
    ids: dict[int, str] = {}
    for name, leaf in loaded.leaves.items():
        if getattr(leaf.task, "_instances", None) is None:  # else the plan was made of them
            building.build_task(leaf.task, loaded.suite, chat_template)
        for instance, index in building.instance_ids(leaf.task):
            instance.resps, instance.filtered_resps = [], {}  # of an earlier scoring
            ids[id(instance)] = f"{name}/{instance.doc_id}/{index}"
            for repeat in range(instance.repeats or 1):
                if f"{ids[id(instance)]}/{repeat}" not in answers:
                    raise EvalkitError(f"no answer for {ids[id(instance)]}/{repeat}")
        leaf.task.build_all_requests = lambda **_: None  # built above: evaluate must not again
        leaf.task.process_results = _zero_when_nan(leaf.task.process_results)
    results = _evaluate(loaded, _Replay(answers, ids, chat_template))
    return clean(results)


def _evaluate(loaded: Loaded, replay: _Replay) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    with redirect_stdout(sys.stderr):  # lm-eval prints that it bootstraps; stdout is for programs
        results = evaluate(
            replay,
            loaded.task_dict,
            limit=loaded.suite.limit,
            log_samples=True,
            bootstrap_iters=BOOTSTRAP_ITERS,
            system_instruction=loaded.suite.system_instruction,
            apply_chat_template=False,  # only decides what build_all_requests is given
            fewshot_as_multiturn=loaded.suite.fewshot_as_multiturn,
        )
    assert results is not None, "rank 0 always gets results"
    return dict(results)


def _zero_when_nan(process_results: Any) -> Any:
    def wrapped(doc: Any, results: list[Any]) -> dict[str, Any]:
        metrics: dict[str, Any] = process_results(doc, results)
        if not any(_has_nan(result) for result in results):
            return metrics
        return {
            name: 0.0 if isinstance(value, (int, float)) else value
            for name, value in metrics.items()
        }

    return wrapped


def _has_nan(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return any(_has_nan(item) for item in result)
    return isinstance(result, float) and math.isnan(result)
