"""Phase one: every request of a suite, built by lm-eval before anything runs.

`build` does what lm-eval's `evaluate` does up to the point where it would call the model, with the
few-shot seed set anew before each leaf task (lm-eval sets it only in `simple_evaluate`: without it
the prompts differ from one build to the next). So a leaf task can be built alone, and again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.harness.tasks import Leaf, Loaded, compiled_once, named
from evalkit.inputs.models import checkpoint
from evalkit.inputs.suite import Suite
from evalkit.plan.requests.asking import PLAIN, Asking
from evalkit.plan.requests.request import Request, new_tokens, settings_from

ChatTemplate = Callable[..., str]


def build_task(leaf: Leaf, suite: Suite, chat_template: ChatTemplate | None) -> None:
    """Let lm-eval build one leaf task's instances: the same ones, whatever was built before."""
    leaf.draw_again()
    leaf.task.set_fewshot_seed(seed=suite.seeds["fewshot"])
    with compiled_once():
        leaf.task.build_all_requests(
            limit=suite.limit,
            rank=0,
            world_size=1,
            system_instruction=suite.system_instruction,
            apply_chat_template=bool(suite.apply_chat_template),
            fewshot_as_multiturn=suite.fewshot_as_multiturn,
            chat_template=chat_template if suite.apply_chat_template else None,
            tokenizer_name="",
        )


def instance_ids(task: Any) -> Iterator[tuple[Any, int]]:
    """Each instance of a built task with its index among its document's requests. lm-eval's own
    `idx` is not unique in tasks that make several requests by hand."""
    seen: dict[int, int] = {}
    for instance in task.instances:
        index = seen.get(instance.doc_id, 0)
        seen[instance.doc_id] = index + 1
        yield instance, index


def of_leaf(
    loaded: Loaded, name: str, asking: Asking = PLAIN,
    check: Callable[[Leaf], None] = lambda _: None,
) -> list[Request]:  # fmt: skip
    """A leaf task's requests, in lm-eval's order; `check` is called once they are built. What
    lm-eval built is gone then: a million instances take gigabytes, and scoring builds the same
    ones."""
    leaf = loaded.leaves[name]
    with named(name), _leaking(leaf.task) as leaking:
        build_task(leaf, loaded.suite, asking.template)
        check(leaf)
    ids = {id(doc) for doc in leaking}
    requests = [
        replace(_request(name, instance, index, repeat, asking), leaks=id(instance.doc) in ids)
        for instance, index in instance_ids(leaf.task)
        for repeat in range(instance.repeats or 1)
    ]
    leaf.task._instances = None
    return requests


def build(
    loaded: Loaded,
    asking: Asking = PLAIN,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Request]:
    """All requests of the suite, in lm-eval's order; `advance` is told of documents done."""
    requests: list[Request] = []
    for name, leaf in loaded.leaves.items():
        requests += of_leaf(loaded, name, asking)
        advance(min(loaded.suite.limit or leaf.locked["documents"], leaf.locked["documents"]))
    return requests


@contextmanager
def _leaking(task: Any) -> Iterator[list[Any]]:
    """Within the block, collect the documents that lm-eval draws as their own shots. lm-eval
    prevents that only where the shots' split is named and is the tested one. Scores stay lm-eval's;
    such documents are counted."""
    leaking: list[Any] = []
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        yield leaking
        return
    drawn: list[Any] = []
    sample, context = sampler.sample, task.fewshot_context

    def sample_and_keep(*args: Any, **kwargs: Any) -> Any:
        drawn[:] = shots = list(sample(*args, **kwargs))
        return shots

    def context_and_compare(doc: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.clear()
        made = context(doc, *args, **kwargs)
        if any(shot is doc or shot == doc for shot in drawn):
            leaking.append(doc)
        return made

    sampler.sample, task.fewshot_context = sample_and_keep, context_and_compare
    try:
        yield leaking
    finally:
        del sampler.sample, task.fewshot_context


def _request(name: str, instance: Any, index: int, repeat: int, asking: Asking) -> Request:
    args = instance.args
    where = (name, instance.doc_id, index, repeat)
    if instance.request_type == "loglikelihood":
        context, continuation = args
        if continuation == "":
            raise EvalkitError(
                f"document {instance.doc_id} of '{name}' has an empty continuation to score"
            )
        asking.check_scored(name, context)
        return Request(*where, "loglikelihood", context, continuation)
    if instance.request_type == "loglikelihood_rolling":
        return Request(*where, "loglikelihood_rolling", args[0])
    if instance.request_type == "generate_until":
        context, gen_kwargs = args
        checkpoint.check_settings(asking.terms.own)
        settings = settings_from(gen_kwargs, task=name, terms=asking.terms)
        reserved = new_tokens(gen_kwargs)
        return Request(*where, "generate_until", context, settings=settings, reserved=reserved)
    raise EvalkitError(f"task '{name}' makes {instance.request_type} requests, which evalkit lacks")
