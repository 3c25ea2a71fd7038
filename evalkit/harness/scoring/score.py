"""Phase two: lm-eval computes its own metrics from answers that are already there.

Scores are lm-eval's to the last digit; only a document with a NaN answer scores 0 (numpy's argmax
would call a NaN the best choice). What lm-eval holds of a million requests does not fit into
memory, so its `evaluate` runs for each leaf task alone, for the samples, and then once on each
document's metrics, for the aggregates, their errors and the groups.
"""

import math
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, first_line
from evalkit.harness import publish, samples, tasks
from evalkit.harness.asking import asked
from evalkit.harness.asking import requests as building
from evalkit.harness.data import metrics
from evalkit.harness.index import task_folder
from evalkit.harness.samples import Sample, value_of
from evalkit.harness.tasks import Leaf, Loaded

_FIX = (
    "mend the task, then `evalkit finish RUN`: answers are kept, and count while prompts are equal"
)
Answers = Mapping[str, Mapping[str, Any]]  # request id -> answer, as the journal has it
Metrics = Mapping[str, object]  # of a document, by name: numbers, or what a task aggregates


class Replay:
    """The model that `lm_eval.evaluate` is given: it answers from the journal."""

    def __init__(self, answers: Answers, ids: dict[int, str]) -> None:
        self.rank, self.world_size = 0, 1
        self._answers, self._ids = answers, ids

    def _replay(self, instances: list[Any]) -> Iterator[Mapping[str, Any]]:
        asked: dict[int, int] = defaultdict(int)
        for instance in instances:  # the k-th time an instance comes, its k-th repeat is meant
            request_id = f"{self._ids[id(instance)]}/{asked[id(instance)]}"
            asked[id(instance)] += 1
            yield self._answers[request_id]

    def loglikelihood(self, instances: list[Any]) -> list[tuple[float, bool]]:
        """Return each instance's log-likelihood, and whether greedy decoding gives it."""
        return [
            (canon.number(answer["loglikelihood"]), answer["is_greedy"])
            for answer in self._replay(instances)
        ]

    def loglikelihood_rolling(self, instances: list[Any]) -> list[float]:
        """Return each whole text's log-likelihood."""
        return [canon.number(answer["loglikelihood"]) for answer in self._replay(instances)]

    def generate_until(self, instances: list[Any]) -> list[str]:
        """Return each instance's text."""
        return [answer["text"] for answer in self._replay(instances)]


class Asked:
    """A leaf task whose requests are built: `evaluate` must not build them again."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self.process_results = zero_when_nan(task.process_results)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def build_all_requests(self, **_: Any) -> None:
        """Do nothing: the requests stand."""


class _Scored:
    """A leaf task whose documents are scored: `evaluate` is to aggregate their metrics, which stand
    for the documents, and must ask nothing."""

    def __init__(self, task: Any, first: Any, samples: list[Sample]) -> None:
        first.repeats = 0
        self._task, self.instances = task, [first]  # whose filtered answers name the filters
        self._metric_fn_list: dict[str, object] = {}  # with `bypass` evaluate wants samples
        self._metrics: dict[str, list[Metrics]] = {name: [] for name in first.filtered_resps}
        for sample in samples:
            metrics = {name: value_of(sample, name) for name in sample["metrics"]}
            self._metrics[sample["filter"]].append(metrics)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def build_all_requests(self, **_: Any) -> None:
        self._filters = iter(self._metrics.values())

    def apply_filters(self) -> None:
        pass

    def doc_iterator(self, **_: Any) -> Iterator[tuple[int, Metrics]]:
        return enumerate(next(self._filters))

    def process_results(self, metrics: Metrics, _: Any) -> Metrics:
        return metrics


class Scoring:
    """Scores a suite, leaf task by leaf task. `answers` gives those of a leaf task's requests."""

    def __init__(
        self,
        loaded: Loaded,
        answers: Callable[[str], Answers],
        chat_template: building.ChatTemplate | None = None,
    ) -> None:
        self._loaded, self._answers = loaded, answers
        self._template = asked.Messages(chat_template) if chat_template else None
        self._scored: dict[str, _Scored] = {}
        self._hashes: dict[str, str] = {}

    def samples(self) -> Iterator[Sample]:
        """Every sample, by leaf task, document and filter; EvalkitError for a missing answer."""
        filters: dict[str, int] = {}
        for name in sorted(self._loaded.leaves):
            found = self._samples(self._loaded.leaves[name])
            self._hashes[name] = samples.task_hash(found)
            yield from samples.published(name, found, filters)

    def _samples(self, leaf: Leaf) -> list[Sample]:
        """lm-eval's own samples of a leaf task. Its requests are gone when they are made."""
        answers, task, suite = self._answers(leaf.name), leaf.task, self._loaded.suite
        with tasks.named(leaf.name):
            building.build_task(leaf, suite, self._template)
        asked.check(self._loaded, leaf, self._template or asked.Messages())
        replay = Replay(answers, request_ids(leaf, answers))
        with _Blamed(leaf.name, suite.include_path):
            results = self._evaluate(replay, {leaf.name: Asked(task)}, {}, log_samples=True)
        made: list[Sample] = results["samples"][leaf.name]
        self._scored[leaf.name] = _Scored(task, task.instances[0], made)
        task._instances = None
        return made

    def results(self) -> dict[str, Any]:
        """lm-eval's results dictionary but for the samples, once all of these were made.
        Deterministic: no host, no time, no path in it."""
        scored = {name: self._scored[name] for name in self._loaded.leaves}
        groups = self._loaded.task_dict["groups"]
        own = self._loaded.suite.include_path

        def alone(name: str) -> None:
            self._evaluate(Replay({}, {}), {name: scored[name]}, {}, log_samples=False)

        with _Blamed(" and ".join(groups) or "of the suite", own, list(scored), alone):
            results = self._evaluate(Replay({}, {}), scored, groups, log_samples=False)
        return publish.clean(results, own)

    def task_hashes(self) -> dict[str, str]:
        """lm-eval's hash of each leaf task, once all samples were made."""
        return {name: self._hashes[name] for name in self._loaded.leaves}

    def _evaluate(
        self, replay: Replay, leaves: Mapping[str, object], groups: Mapping[str, object], *,
        log_samples: bool,
    ) -> dict[str, Any]:  # fmt: skip
        from lm_eval.evaluator import evaluate

        # lm-eval prints that it bootstraps; stdout is for programs
        with redirect_stdout(sys.stderr), tasks.compiled_once(), metrics.guarded():
            results = evaluate(
                replay,
                {"tasks": dict(leaves), "groups": dict(groups)},
                limit=self._loaded.suite.limit,
                log_samples=log_samples,
                bootstrap_iters=0 if log_samples else publish.BOOTSTRAP_ITERS,
                system_instruction=self._loaded.suite.system_instruction,
                apply_chat_template=False,  # only decides what build_all_requests is given
                fewshot_as_multiturn=self._loaded.suite.fewshot_as_multiturn,
                confirm_run_unsafe_code=True,  # verdicts are looked up: nothing runs
            )
        assert results is not None, "rank 0 always gets results"
        return dict(results)


def request_ids(leaf: Leaf, answers: Answers) -> dict[int, str]:
    """The id of each instance's requests, without the repeat, by the instance's own."""
    ids: dict[int, str] = {}
    for instance, index in building.instance_ids(leaf.task):
        ids[id(instance)] = f"{leaf.name}/{instance.doc_id}/{index}"
        for repeat in range(instance.repeats or 1):
            if f"{ids[id(instance)]}/{repeat}" not in answers:
                raise EvalkitError(f"no answer for {ids[id(instance)]}/{repeat}")
    return ids


def zero_when_nan(process_results: Any) -> Any:
    """Return a task's `process_results` that scores 0 where an answer is NaN."""

    def wrapped(doc: Any, results: list[Any]) -> Metrics:
        metrics: Metrics = process_results(doc, results)
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


class _Blamed:
    """A block in which a leaf task is scored. An error in it becomes an EvalkitError (1) that names
    the task and the line that raised: a task's functions are its author's code, or lm-eval's.

    Where several leaf tasks are scored at once, `alone` tries each of `leaves` again, to name the
    one that fails.
    """

    def __init__(
        self, name: str, include_path: Path | None, leaves: Sequence[str] = (),
        alone: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._name, self._own, self._leaves, self._alone = name, include_path, leaves, alone

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if not isinstance(error, Exception) or isinstance(error, EvalkitError):
            return
        for name in self._leaves:
            with _Blamed(name, self._own):
                self._alone(name)
        place = self._place(trace)
        if place is None:
            return  # neither the task nor lm-eval had a part in it: our own bug
        raise EvalkitError(
            f"task '{self._name}' can't be scored: {type(error).__name__}: {first_line(error)}",
            where=place, fix=_FIX, code=Exit.FAILED,
        ) from None  # fmt: skip

    def _place(self, trace: TracebackType | None) -> str | None:
        """The last line of the task's own code, else of lm-eval's, on the way to the error."""
        found: dict[str, str] = {}
        harness = task_folder().resolve().parent
        for frame in traceback.extract_tb(trace):
            file = Path(frame.filename)
            if self._own is not None and file.is_relative_to(self._own):
                found["own"] = f"{file.relative_to(self._own)} line {frame.lineno}"
            elif file.resolve().is_relative_to(harness):
                inside = file.resolve().relative_to(harness.parent)
                found["harness"] = f"{inside} line {frame.lineno}"
        return found.get("own") or found.get("harness")
