"""What each document of a leaf task is asked, and how the task is scored, as a lock pins it.

Prompts are pinned as lm-eval renders them; with a chat template, which is the model's, the messages
that go into it. What differs from the lock stops a run before it costs anything.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.asking import requests as building
from evalkit.harness.samples import plain
from evalkit.harness.tasks import Leaf, Loaded, named
from evalkit.inputs import rows
from evalkit.inputs.locked import ASKED, other_settings, pinned_shots
from evalkit.inputs.rows import Rows
from evalkit.inputs.suite import Suite
from evalkit.inputs.types import Asked as AskedSettings
from evalkit.plan.requests.asking import PLAIN, Asking
from evalkit.plan.requests.request import Request

Asked = tuple[bytes, bytes]  # digests of a leaf task's prompts and of its targets


def settings(suite: Suite) -> AskedSettings:
    """The suite's settings that prompts follow from."""
    return cast(AskedSettings, {key: getattr(suite, key) for key in ASKED})


class Messages:
    """A chat template that renders messages as canonical JSON, or by the model's own template, and
    then remembers what went into each prompt."""

    def __init__(self, template: building.ChatTemplate | None = None) -> None:
        self._template, self._before = template, dict[str, str]()

    def __call__(self, messages: list[dict[str, str]], **how: Any) -> str:
        """The rendered prompt."""
        text = canon.dumps([messages, how])
        if self._template is None:
            return text
        rendered = self._template(messages, **how)
        self._before[rendered] = text
        return rendered

    def before(self, prompt: str) -> str:
        """What a prompt was rendered from; the prompt itself where no template made it."""
        return self._before.get(prompt, prompt)


def of_built(leaf: Leaf, messages: Messages) -> Asked:
    """The digests of a built leaf task's documents, in order."""
    prompts, targets = bytearray(), bytearray()
    for _, found in _by_document(leaf.task):
        asked = [messages.before(instance.args[0]) for instance in found]
        kinds = {instance.request_type for instance in found}
        continuations = [each.args[1] for each in found] if kinds == {"loglikelihood"} else []
        target = str(plain(leaf.task.doc_to_target(found[0].doc)))
        prompts += rows.of_prompts(asked)
        targets += rows.of_target(target, continuations)
    return bytes(prompts), bytes(targets)


def _by_document(task: Any) -> Iterator[tuple[int, list[Any]]]:
    ordered = sorted(task.instances, key=lambda instance: instance.doc_id)  # stable
    for doc_id, found in groupby(ordered, key=lambda instance: instance.doc_id):
        yield doc_id, list(found)


def each(leaf: Leaf, suite: Suite) -> Rows:
    """All that a lock pins of a leaf task's documents one by one; all its requests are built. Where
    it does not pin the rows that shots are drawn from, it can't pin the prompts either."""
    messages = Messages()
    with named(leaf.name):
        building.build_task(leaf, replace(suite, limit=None), messages)
        prompts, targets = of_built(leaf, messages)
    leaf.task._instances = None
    pinned = leaf.locked["shots"] is None or pinned_shots(leaf.locked) is not None
    return replace(leaf.each, prompts=prompts if pinned else b"", targets=targets)


def of_leaf(loaded: Loaded, name: str, asking: Asking = PLAIN) -> list[Request]:
    """A leaf task's requests, held against the loaded lock as far as they follow from it.
    EvalkitError (1) names the first document that is asked otherwise than the lock says."""
    messages = Messages(asking.template)
    how = replace(asking, template=messages if asking.template else None)
    return building.of_leaf(loaded, name, how, lambda leaf: check(loaded, leaf, messages))


def check(loaded: Loaded, leaf: Leaf, messages: Messages) -> None:
    """Hold a built leaf task against the loaded lock, where the suite asks as that does; `messages`
    rendered its prompts. Raises EvalkitError as `of_leaf` does."""
    lock, suite = loaded.lock, loaded.suite
    if lock is None or other_settings(lock.asked, settings(suite)):
        return
    locked = lock.each[leaf.name]
    prompts, targets = of_built(leaf, messages)
    problem = ""
    if locked.prompts:
        problem = rows.difference(prompts, locked.prompts[: len(prompts)], "prompt")
    problem = problem or rows.difference(targets, locked.targets[: len(targets)], "target")
    if problem:
        raise EvalkitError(
            f"suite '{suite.name}' is not what its lock says: task '{leaf.name}': {problem}",
            where=str(suite.lock_path),
            fix="mend the suite, or refresh the lock with `evalkit lock`",
            code=Exit.FAILED,
        )
