"""Scores recorded samples again with the installed lm-eval's own task of that name.

The task is built from the installed YAML (or our demo's), its dataset is the samples' documents. A
recorded config only decides whether it is the same task. A task that scores by Python of its own is
not scored in this process: `OwnCode` says so, and `apart` does it.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from evalkit.harness import publish, tasks
from evalkit.harness.data import metrics
from evalkit.harness.index import task_folder
from evalkit.harness.samples import REQUESTED_AS, Sample, plain, strings, unmarked
from evalkit.harness.scoring.own_code import IGNORED, Refused, Unlike, refuse_code
from evalkit.inputs.models.builtin.demo import model as demo

_NAME = re.compile(
    rb"""^["']?task["']?[ \t]*:[ \t]*["']?([^"'\s#\[{]+)["']?[ \t]*(?:#.*)?\r?$""", re.M
)


@dataclass(slots=True)
class Scored:
    """A document as lm-eval scores it: what its requests or target should have been, and, by
    filter, its filtered responses as strings and its metrics."""

    problem: str = ""
    filtered: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)


def installed() -> str | None:
    """The installed lm-eval's version, or None."""
    if util.find_spec("lm_eval") is None:
        return None
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return None


@cache
def _yaml_files() -> dict[str, list[Path]]:
    """The YAML files that may define each task: lm-eval's own index takes ten seconds."""
    found: dict[str, list[Path]] = {}
    for root in (demo.TASKS, task_folder().resolve()):
        for path in sorted(root.glob("**/*.yaml")):
            for name in _NAME.findall(path.read_bytes()):
                found.setdefault(name.decode(errors="replace"), []).append(path)
    return found


def installed_config(name: str, *, with_code: bool = False) -> dict[str, Any]:
    """The installed config of a leaf task; functions stay names unless they are our demo's, or
    `with_code`, which imports them. Raises Refused for a task that can't be scored without."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path, config = _found(name)
    if not path.is_relative_to(demo.TASKS):
        refuse_code(config, with_code=with_code)
    config = load_yaml(path, resolve_func=True) if with_code else config
    return {key: value for key, value in config.items() if key not in ("tag", "task_list")}


def unresolved(name: str) -> Mapping[str, Any]:
    """The installed config of a leaf task, its functions as names; Refused where there is none."""
    return _found(name)[1]


def _found(name: str) -> tuple[Path, dict[str, Any]]:
    """The file that defines a leaf task, and its config; functions are resolved in our demo's."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in _yaml_files().get(name, []):
        try:
            config = load_yaml(path, resolve_func=path.is_relative_to(demo.TASKS))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # as lm-eval's index does
        if config.get("task") == name and "group" not in config:
            return path, config
    raise Refused("the installed lm-eval has no task of that name")


def task(
    name: str, recorded: Mapping[str, Any], first_doc: Any, *, chat: bool, with_code: bool = False
) -> "Task":
    """The installed task of that name over recorded documents, of which the first shows the shape.
    Raises Refused where the task or its recorded config is not one that can be scored again.
    `with_code`: run its own functions, which only `apart` may want."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    config = installed_config(name, with_code=with_code)
    _refuse_other(config, recorded)
    for key in ("custom_dataset", "process_docs", "training_split", "fewshot_split"):
        config.pop(key, None)  # the samples' documents are processed already; no shots are drawn
    config["fewshot_config"] = {"samples": []}
    try:
        return Task(_configured(config, first_doc), chat=chat)
    except _errors() as error:
        raise Refused(f"lm-eval can't build it: {type(error).__name__}: {error}") from None


def _refuse_other(config: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    from copy import deepcopy

    from lm_eval.api.task import TaskConfig

    built = TaskConfig(**deepcopy(dict(config))).to_dict()
    ours = {key: item for key, item in publish.clean(built).items() if key not in IGNORED}
    theirs = {key: item for key, item in recorded.items() if key not in IGNORED}
    unlike = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if unlike:
        raise Unlike(", ".join(unlike))


def _errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    return (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
        TemplateError,
    )


def _configured(config: Mapping[str, Any], first_doc: Any) -> Any:
    from lm_eval.api.task import ConfigurableTask

    class Documents(list[Any]):
        """Enough of a `datasets.Dataset` for lm-eval: rows, and the columns' names."""

        features = dict.fromkeys(first_doc)

    class Recorded(ConfigurableTask):  # type: ignore[misc]
        """The installed task with the record's documents for its dataset."""

        def download(self, *args: Any, **kwargs: Any) -> None:
            split = self.config.test_split or self.config.validation_split
            self.dataset = {split: Documents([first_doc])}

    with metrics.guarded():
        return Recorded(config=config)


class Task:
    """An installed lm-eval task that scores recorded samples."""

    def __init__(self, task: Any, *, chat: bool) -> None:
        self._task, self._chat = task, chat

    def score(self, documents: Sequence[list[Sample]]) -> Iterator[Scored]:
        """What lm-eval makes of some documents, each given as its recorded samples by filter."""
        with tasks.compiled_once():
            try:
                made = [self._instances(samples[0]) for samples in documents]
                self._task._instances = [instance for each in made for instance in each]
                self._task.apply_filters()
            except _errors() as error:
                yield from [Scored(f"can't be filtered: {_named(error)}")] * len(documents)
                return
            for samples, instances in zip(documents, made, strict=True):
                try:
                    yield self._scored(samples[0], instances)
                except _errors() as error:
                    yield Scored(f"can't be scored: {_named(error)}")

    def _instances(self, sample: Sample) -> list[Any]:
        """The requests with their recorded responses, as they were before filtering."""
        from lm_eval.api.instance import Instance

        kind = REQUESTED_AS.get(self._task.OUTPUT_TYPE, self._task.OUTPUT_TYPE)
        return [
            Instance(
                request_type=kind,
                doc=unmarked(sample["doc"]),
                arguments=tuple(arguments.values()),
                idx=index,
                metadata=(self._task.task_name, sample["doc_id"], len(responses)),
                resps=[_response(kind, response) for response in responses],
            )
            for index, (arguments, responses) in enumerate(
                zip(sample["arguments"].values(), sample["resps"], strict=True)
            )
        ]

    def _scored(self, sample: Sample, instances: list[Any]) -> Scored:
        scored = Scored("; ".join(self._asked(sample, instances)))
        for name in (ensemble.name for ensemble in self._task._filters):
            results = [each.filtered_resps[name] for each in instances]
            metrics = self._task.process_results(unmarked(sample["doc"]), results)
            scored.filtered[name] = strings(results)
            scored.metrics[name] = {metric: plain(value) for metric, value in metrics.items()}
        return scored

    def _asked(self, sample: Sample, instances: list[Any]) -> Iterator[str]:
        """Whether target and requests are the task's own for this document."""
        task, doc = self._task, unmarked(sample["doc"])
        if str(task.doc_to_target(doc)) != sample["target"]:
            yield f"its target is {sample['target']}, lm-eval says {task.doc_to_target(doc)}"
        contexts = [each.args[0] for each in instances]
        if task.multiple_input:
            context: Any = contexts[: len(task.doc_to_choice(doc))]
        else:
            context = contexts[0]
            plain = not self._chat and task.config.gen_prefix is None
            plain = plain and task.OUTPUT_TYPE != "loglikelihood_rolling"
            if plain and not context.endswith(task.doc_to_text(doc)):
                yield "its prompt does not end with the task's question"
        metadata = (task.task_name, sample["doc_id"], task.config.repeats)
        made = task.construct_requests(
            doc=doc, ctx=context, metadata=metadata, apply_chat_template=self._chat
        )
        made = made if isinstance(made, list) else [made]
        kept = 1 if task.OUTPUT_TYPE == "generate_until" else None  # gen_kwargs: the suite's
        if [each.args[:kept] for each in made] != [each.args[:kept] for each in instances]:
            yield "its requests are not the task's"


def _response(kind: str, response: Any) -> Any:
    """A response as the model gave it, from the strings that lm-eval's samples hold."""
    if kind == "loglikelihood":
        value, greedy = response
        return float(value), {"True": True, "False": False}[greedy]
    return float(response) if kind == "loglikelihood_rolling" else response


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
