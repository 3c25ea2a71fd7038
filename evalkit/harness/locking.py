"""Makes a suite's lock: loads its tasks once, builds every request, and writes down which data is
meant, to the row, what is asked of it and how that is scored."""

import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine.types import Unknown
from evalkit.harness import tasks
from evalkit.harness.asking import asked
from evalkit.harness.data import loading, metrics, pinning
from evalkit.harness.tasks import Leaf
from evalkit.inputs import hub
from evalkit.inputs import suite as suites
from evalkit.inputs.locked import ASKED, EARLIER_LOCK, LOCK, Lock, pinned_revision, read_yaml
from evalkit.inputs.suite import Suite
from evalkit.inputs.types import LockedDataset

log = logging.getLogger(__name__)
# Whose versions a run's identity has anyway, or which score nothing.
_KNOWN = {"lm_eval", "datasets", "numpy", "transformers", "torch", "huggingface_hub", "packaging"}
_KNOWN |= {"setuptools", "PyYAML", "immutabledict"}
_METRICS = {
    "bleu": "sacrebleu", "ter": "sacrebleu", "chrf": "sacrebleu",
    "f1": "scikit-learn", "mcc": "scikit-learn",
}  # fmt: skip
_BEHIND = {"math-verify": ("latex2sympy2_extended", "sympy", "antlr4-python3-runtime")}


def write_lock(name: str, *, update: bool = False, offline: bool = False) -> Path:
    """Make or refresh a suite's lock and the file of its single rows; the lock's path. Datasets
    that the lock already pins stay at their revision unless `update`, and so does what it says of
    shots that are unknown."""
    suite = suites.load(name)
    lock = make_lock(suite, update=update, offline=offline)
    lock.write(suite.lock_path)
    return suite.lock_path


def make_lock(suite: Suite, *, update: bool, offline: bool) -> Lock:
    """Load the whole suite and write down what was served."""
    import lm_eval

    known, unknown, unlocked = _kept(suite.lock_path, update)
    pins = loading.Pins(
        revisions={
            repo: pinned
            for repo, dataset in known.items()
            if (pinned := pinned_revision(dataset)) and not repo.startswith(suites.OWN_FILES)
        },
        include_path=suite.include_path,
        offline=offline,
        resolve=loading.current,
    )
    unlocked = {name: why for name, why in unlocked.items() if _cannot_be_had(suite, name, pins)}
    members = tuple(member for member in suite.tasks if member.task not in unlocked)
    loaded = tasks.load(replace(suite, tasks=members), pins)
    leaves = {name: _unpinned(leaf, unknown.get(name)) for name, leaf in loaded.leaves.items()}
    scored = loaded.task_dict["groups"]
    return Lock(
        suite=suite.name,
        lm_eval=lm_eval.__version__,
        asked=asked.settings(suite),
        datasets={
            repo: known[repo]
            if repo in known and known[repo]["revision"] in (revision, _unknown(known[repo]))
            else _describe(repo, revision)
            for repo, revision in pins.used.items()
        },
        groups=loaded.groups,
        group_scores={n: pinning.describe_group(n, scored.get(n)) for n in loaded.groups},
        tasks={name: leaf.locked for name, leaf in leaves.items()},
        each={name: asked.each(leaf, suite) for name, leaf in leaves.items()},
        scorers=tuple(scorers_of(loaded.leaves)),
        unlocked=unlocked,
    )


def _cannot_be_had(suite: Suite, member: str, pins: loading.Pins) -> bool:
    """Whether the data of a member that the lock leaves out can't be had here either."""
    own = replace(pins, revisions=dict(pins.revisions), used={}, folders=set(), files={})
    only = tuple(each for each in suite.tasks if each.task == member)
    try:
        tasks.load(replace(suite, tasks=only), own)
    except EvalkitError as error:
        if error.code != Exit.MISSING:
            raise
        log.warning("%s stays without a lock: %s", member, error)
        return True
    return False


def _unknown(dataset: LockedDataset) -> Unknown | None:
    """Why a dataset's revision is unknown, if it is: a refreshed lock says so as well."""
    revision = dataset["revision"]
    return revision if isinstance(revision, dict) else None


def _kept(
    path: Path, update: bool
) -> tuple[dict[str, LockedDataset], dict[str, Unknown], dict[str, str]]:
    """Return what a refreshed lock keeps of the one that is there: datasets, why shots are unknown
    by leaf task, and the members that are left out."""
    if update or not path.is_file():
        return {}, {}, {}
    raw = read_yaml(path, "lock")
    if problems := schema.check("lock", _with_rest(raw)):
        raise EvalkitError(
            f"the lock is not valid: {problems[0]}",
            where=str(path),
            fix="mend it, or delete it and lock anew",
        )
    shots = {name: task.get("shots") for name, task in raw["tasks"].items()}
    return (
        {repo: _in_order(dataset) for repo, dataset in raw["datasets"].items()},
        {name: said for name, said in shots.items() if said is not None and "unknown" in said},
        raw.get("unlocked", {}),
    )


def _in_order(dataset: LockedDataset) -> LockedDataset:
    """Return a dataset's entry with its keys in the order in which locks have them."""
    entry: Mapping[str, object] = dataset
    ordered = {key: entry[key] for key in LockedDataset.__annotations__ if key in entry}
    return cast(LockedDataset, ordered)


_REST_OF_TASK: dict[str, Any] = {
    "shots": None,
    "output_type": "generate_until",
    "num_fewshot": 0,
    "version": None,
    "metrics": {},
    "filters": ["none"],
    "settings": canon.digest_bytes(b""),
}


def _with_rest(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a lock completed with what an earlier evalkit did not pin, for the schema."""
    if raw.get("schema") not in (LOCK, EARLIER_LOCK):
        return raw
    none: dict[str, Any] = {
        **dict.fromkeys(ASKED, False),
        "system_instruction": None,
        "gen_kwargs": {},
    }
    rest = {"rows_file": canon.digest_bytes(b""), "asked": {**none, "seeds": {}}}
    made = {**rest, "group_scores": {}, **raw, "schema": LOCK}
    if isinstance(raw.get("tasks"), dict):
        made["tasks"] = {
            name: {**_REST_OF_TASK, **task} if isinstance(task, dict) else task
            for name, task in raw["tasks"].items()
        }
    return made


def _unpinned(leaf: Leaf, unknown: Unknown | None) -> Leaf:
    """A leaf task as a lock is to have it: its shots' rows left out where they are unknown."""
    if unknown is None or leaf.locked["shots"] is None:
        return leaf
    return replace(leaf, locked=leaf.locked | {"shots": unknown})


def _describe(repo: str, revision: str) -> LockedDataset:
    """Return a dataset's entry, by its card. That texts may be passed on is our reading of the
    licence: open, without a non-commercial clause."""
    if repo.startswith(suites.OWN_FILES):
        return {"revision": revision, "licence": "the suite's own files", "redistributable": True}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def card() -> str:
        return str(hf_hub_download(repo, "README.md", repo_type="dataset", revision=revision))

    try:
        path = hub.patiently(f"the card of dataset {repo}", card)
        licence = hub.licence_in(Path(path))
    except RemoteEntryNotFoundError:  # it has none; another error is not taken for that
        licence = "unknown"
    except hub.unreachable() as error:
        raise loading.not_told(repo, error) from None
    open_ones = ("mit", "apache", "cc-by", "cc0", "bsd", "odc-by")
    redistributable = licence.lower().startswith(open_ones) and "-nc" not in licence.lower()
    return {"revision": revision, "licence": licence, "redistributable": redistributable}


def scorers_of(leaves: dict[str, Leaf]) -> list[str]:
    """Return the distributions besides lm-eval that these tasks are scored with, sorted: those that
    the modules of the tasks' own code and metrics use."""
    modules: dict[str, ModuleType] = {}
    used: set[str] = set()
    for leaf in leaves.values():
        for module in _modules_of(leaf.task):
            _collect(module, modules)
        used |= {_METRICS[name] for name in _metrics(leaf.task) if name in _METRICS}
        if metrics.by_sklearn({key: leaf.task.get_config(key) for key in metrics.SCORING}):
            used.add("scikit-learn")
    owners = _owners()
    tops = {name.partition(".")[0] for module in modules.values() for name in _used(module)}
    used |= {owner for top in tops for owner in owners.get(top, [])[:1]}
    used |= {behind for name in used for behind in _BEHIND.get(_plain(name), ())}
    found = {_plain(name): name for name in used}
    return sorted(found[name] for name in found.keys() - {_plain(name) for name in _KNOWN})


@cache
def _owners() -> Mapping[str, list[str]]:
    """Each installed package's distributions; every distribution's list of files is read for it."""
    return metadata.packages_distributions()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _metrics(task: Any) -> list[str]:
    entries = task.get_config("metric_list") or []
    return [str(entry.get("metric")) for entry in entries if isinstance(entry, dict)]


def _modules_of(task: Any) -> Iterator[ModuleType]:
    for function in metrics.functions(task):
        if (module := sys.modules.get(function.__module__)) is not None:
            yield module


def _collect(module: ModuleType, found: dict[str, ModuleType]) -> None:
    if module.__name__ in found:
        return
    found[module.__name__] = module
    for name in _used(module):
        other = sys.modules.get(name)
        if other is not None and metrics.is_own(name):
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
