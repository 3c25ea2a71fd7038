"""Loads a suite's tasks through lm-eval, and refuses what would quietly measure something else.

The leaf tasks and their data must be the lock's (`pinning`) before any model is loaded. A group
member that collapsed into one task, a shot count that lm-eval would ignore, an unknown name: each
is an error here, with the name of the task.
"""

import errno
import logging
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

from evalkit.base.errors import EvalkitError, Exit, first_line, one_of
from evalkit.harness import index, verdicts
from evalkit.harness.data import cache, code, loading, metrics, pinning
from evalkit.inputs import suite as suites
from evalkit.inputs.locked import Lock, pinned_revision
from evalkit.inputs.rows import Rows
from evalkit.inputs.suite import Suite
from evalkit.inputs.types import LockedTask

log = logging.getLogger(__name__)
# What an OSError says of a place, and not of a task.
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A loaded leaf task and its data, as a lock pins them. `drawn` is the state of Python's and
    numpy's generators after its member of the suite was loaded."""

    name: str
    task: Any  # lm_eval.api.task.Task
    locked: LockedTask
    drawn: tuple[Any, Any]

    @property
    def each(self) -> Rows:
        """Its rows one by one, each of which is hashed for it."""
        return pinning.single_rows(self.task, self.locked)

    def draw_again(self) -> None:
        """Set the generators back to their state after loading, so that the task draws the same."""
        import numpy as np

        random.setstate(self.drawn[0])
        np.random.set_state(self.drawn[1])


class TaskDict(TypedDict):
    """lm-eval's loaded tasks and groups by name, and the leaf tasks of each group."""

    tasks: dict[str, Any]  # lm_eval.api.task.Task
    groups: dict[str, Any]  # lm_eval.api.group.Group
    group_map: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A suite's tasks: leaves by name in lm-eval's order, and lm-eval's own loaded dictionary."""

    suite: Suite
    leaves: dict[str, Leaf]
    groups: dict[str, list[str]]
    task_dict: TaskDict
    top_level: dict[str, list[str]]  # suite member -> its leaf tasks
    lock: Lock | None = None  # that it was held against


def load_locked(
    suite: Suite, lock: Lock, *, offline: bool, served: Callable[[], None] = lambda: None
) -> Loaded:
    """Load every task of the suite with the data that its lock pins, and hold it against the lock;
    `served` is called for each dataset."""
    pinned = {name: pinned_revision(dataset) for name, dataset in lock.datasets.items()}
    revisions = {name: revision for name, revision in pinned.items() if revision}
    pins = loading.Pins(
        revisions, include_path=suite.include_path, offline=offline, served=served,
        floating=lock.datasets.keys() - revisions.keys(),
    )  # fmt: skip
    loaded = replace(load(suite, pins), lock=lock)
    pinning.check(loaded, lock)
    return loaded


def load(suite: Suite, pins: loading.Pins) -> Loaded:
    """Load every task of the suite with its pinned data; raises EvalkitError for what's above."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    if suite.include_path is not None:
        code.check_includes(suite.include_path, index.task_folder().resolve())
    manager = _manager(suite)
    for member in suite.tasks:
        if member.task not in manager.task_index:
            hint = one_of(member.task, manager.all_tasks)
            raise EvalkitError(f"unknown task '{member.task}'", where=str(suite.path), fix=hint)
    task_dict: TaskDict = {"tasks": {}, "groups": {}, "group_map": {}}
    top_level: dict[str, list[str]] = {}
    drawn: dict[str, tuple[Any, Any]] = {}
    with loading.pinned(pins), code.fresh(suite.include_path), metrics.guarded():
        for member in suite.tasks:
            _seed_everything(suite)
            pins.task = member.task
            with named(member.task):
                part = manager.load([member.task])
            _check_collapsed(part, manager, suite)
            _check_twice(part["tasks"], top_level, member.task)
            _configure(part["tasks"], member, suite)
            top_level[member.task] = list(part["tasks"])
            drawn |= dict.fromkeys(part["tasks"], _drawn())
            task_dict["tasks"].update(part["tasks"])
            task_dict["groups"].update(part.get("groups", {}))
            task_dict["group_map"].update(part.get("group_map", {}))
        leaves = {}
        for name, task in task_dict["tasks"].items():
            with named(name):
                leaves[name] = Leaf(name, task, pinning.describe(task, pins), drawn[name])
    for folder in pins.folders:  # now that the tasks' own rewritten documents lie there too
        cache.seal(folder)
    groups = {name: list(children) for name, children in task_dict["group_map"].items()}
    return Loaded(suite, leaves, groups, task_dict, top_level)


def _manager(suite: Suite) -> Any:
    """Return lm-eval's task manager, without lm-eval's 14,000 tasks where the suite needs none."""
    from lm_eval.tasks import TaskManager

    if suite.include_path is not None:
        own = TaskManager(include_path=str(suite.include_path), include_defaults=False)
        members = {
            child if isinstance(child, str) else str(child.get("group", child.get("task")))
            for entry in own.task_index.values()
            for child in _children(entry.cfg)
        }
        if members | {member.task for member in suite.tasks} <= set(own.task_index):
            return own
        with index.kept_index():
            return TaskManager(include_path=str(suite.include_path))
    with index.kept_index():
        return TaskManager()


def _children(config: Mapping[str, Any] | None) -> list[Any]:
    children = (config or {}).get("task")
    return children if isinstance(children, list) else []


def _seed_everything(suite: Suite) -> None:
    """Set the seeds, as lm-eval does once a run, before each member: none depends on another."""
    import numpy as np

    random.seed(suite.seeds["random"])
    np.random.seed(suite.seeds["numpy"])  # the generator that tasks draw from


def _drawn() -> tuple[Any, Any]:
    import numpy as np

    return random.getstate(), np.random.get_state()


def _check_collapsed(part: TaskDict, manager: Any, suite: Suite) -> None:
    """Raise EvalkitError for a leaf with a group's name: the group collapsed into its last leaf."""
    for name in part["tasks"]:
        if name in manager.all_groups or name in manager.all_tags:
            raise EvalkitError(
                f"group '{name}' collapsed into a single task: it is listed as `- task: {name}`"
                " with an override",
                where=str(suite.include_path or suite.path),
                fix=f"write `- group: {name}` in the group's YAML",
            )


def _check_twice(tasks: Iterable[str], top_level: dict[str, list[str]], member: str) -> None:
    for other, leaves in top_level.items():
        twice = sorted(set(tasks) & set(leaves))
        if twice:
            what = f"task '{twice[0]}' is asked for twice, by '{other}' and '{member}'"
            raise EvalkitError(what, fix="leave one of the two out of the suite")


def _configure(tasks: Mapping[str, Any], member: suites.SuiteTask, suite: Suite) -> None:
    """Set on each task what lm-eval's `simple_evaluate` sets before it builds requests."""
    for name, task in tasks.items():
        fixed = task.get_config("num_fewshot")
        if member.num_fewshot is not None:
            if fixed == 0 and member.num_fewshot != 0:
                raise EvalkitError(
                    f"task '{name}' fixes num_fewshot at 0, so {member.num_fewshot} can't be given",
                    where=str(suite.path),
                )
            task.set_config(key="num_fewshot", value=member.num_fewshot)
        elif fixed is None:
            task.set_config(key="num_fewshot", value=0)
        if suite.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(suite.gen_kwargs), update=True)
        if getattr(task, "UNSAFE_CODE", False) and not verdicts.is_graded(task):
            raise EvalkitError(
                f"task '{name}' runs code that a model wrote, in a way that evalkit can't take out"
                " of this process"
            )
        metrics.check(name, task)
        if getattr(task, "MULTIMODAL", False):
            raise EvalkitError(f"task '{name}' needs images or sound; evalkit measures text models")


# What a task's own YAML, templates or data lead to, whoever raises it.
_MISTAKES = (
    KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError, OSError,
    ImportError, NotImplementedError, SyntaxError, SystemExit,
)  # fmt: skip


class _Named:
    """What `named` returns. Its exit is a method so that errors of other kinds, which a task's code
    or lm-eval raises, count as well, and our own bugs go on as they are."""

    def __init__(self, task: str) -> None:
        self._task = task

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        from datasets.exceptions import DatasetsError
        from jinja2.exceptions import TemplateError

        if not isinstance(error, (Exception, SystemExit)) or isinstance(error, EvalkitError):
            return
        if program := metrics.unpinned(error):
            raise metrics.refusal(self._task, [program]) from None
        if not isinstance(error, (*_MISTAKES, DatasetsError, TemplateError)) and _is_ours(trace):
            return
        inner: BaseException = error
        while isinstance(inner, DatasetsError) and isinstance(inner.__cause__, Exception):
            inner = inner.__cause__  # the outer one says that something went wrong
        raise EvalkitError(
            f"task '{self._task}' can't be built: {type(inner).__name__}: {first_line(inner)}",
            fix=_fix(inner, str(getattr(inner, "filename", None) or "")),
            code=Exit.MISSING if isinstance(inner, ImportError) else Exit.USAGE,
        ) from None


def named(task: str) -> AbstractContextManager[None]:
    """Within the block, an error in a task's own YAML, code or data is one line with its name."""
    return _Named(task)


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether evalkit, or what it called, raised an error, and not lm-eval."""
    package, harness = Path(__file__).resolve().parents[1], index.task_folder().resolve().parent
    for frame in reversed(traceback.extract_tb(trace)):
        file = Path(frame.filename).resolve()
        if file.is_relative_to(package):
            return True
        if file.is_relative_to(harness):
            return False
    return True


def _fix(error: BaseException, where: str) -> str:
    """What to do about what kept a task from being built."""
    if isinstance(error, ImportError):
        top = (error.name or "").partition(".")[0]
        if not top:
            return "install what it names"
        if top in sys.modules:
            return f"its code was written for another version of {top}"
        return f"install {error.name}, which its code imports"
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        return f"see that {where or 'HF_HOME'} can be written to and has room, or set HF_HOME"
    return "mend its YAML or its data"


@contextmanager
def compiled_once() -> Iterator[None]:
    """lm-eval compiles a template for every document, and a shot's for every document again; within
    the block each is compiled once."""
    from lm_eval import utils

    original = utils.env.from_string
    utils.env.from_string = lru_cache(maxsize=256)(original)
    try:
        yield
    finally:
        utils.env.from_string = original
