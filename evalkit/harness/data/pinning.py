"""What a loaded leaf task is, in the form in which a lock pins it, and whether it is the locked.

Pinned are the documents that are asked and, where a task has shots, the rows that these are drawn
from: lm-eval takes them from another split or from the task's own YAML, and another row there is
another prompt. And how the task is scored. What differs is named to the row.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine.types import Unknown
from evalkit.harness import publish, samples
from evalkit.harness.data import cache, loading, local, row_digests
from evalkit.harness.data.row_digests import doc_hash
from evalkit.inputs import rows as single
from evalkit.inputs.locked import Lock, pinned_revision, pinned_shots
from evalkit.inputs.rows import Rows
from evalkit.inputs.suite import OWN_FILES, Suite
from evalkit.inputs.types import GroupMetric, GroupScore, LockedTask, ShotRows

if TYPE_CHECKING:
    from evalkit.harness.tasks import Leaf, Loaded

_REFRESH = "mend the suite or its data, or refresh the lock with `evalkit lock`"


def describe(task: Any, pins: loading.Pins) -> LockedTask:
    """Return a loaded leaf task, its data and how it is scored, as a lock pins it. EvalkitError
    where its data can't be pinned."""
    documents, digest = row_digests.of(task.eval_docs)
    config = publish.clean({"config": task.dump_config()})["config"]
    ways = task.higher_is_better()
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    return {
        "dataset": _repo(task, pins),
        "config": task.DATASET_NAME,
        "split": str(split),
        "documents": documents,
        "rows": digest,
        "shots": describe_shots(task),
        "output_type": str(task.OUTPUT_TYPE),
        "num_fewshot": task.get_config("num_fewshot") or 0,
        "version": samples.plain(task.VERSION),
        "metrics": {
            name: {"aggregation": _aggregation(config, name, function),
                   "higher_is_better": ways.get(name)}
            for name, function in task.aggregation().items()
        },
        "filters": [each.name for each in task._filters],
        "settings": single.of_settings(canon.finite(config)),
    }  # fmt: skip


def _aggregation(config: Mapping[str, Any], metric: str, function: Any) -> str:
    """A metric's aggregation by lm-eval's name, as its config or the function itself says it."""
    named = {entry["metric"]: entry.get("aggregation") for entry in config.get("metric_list") or []}
    name = named.get(metric)
    return name if isinstance(name, str) else str(getattr(function, "__name__", "code"))


def describe_group(name: str, group: Any) -> GroupScore:
    """How a group is scored, as a lock pins it; a tag, which lm-eval does not score, by nothing."""
    if group is None:
        return {"alias": name, "version": None, "metrics": {}}
    return {
        "alias": group.alias or name,
        "version": str(group.version),
        "metrics": group_metrics(group),
    }


def group_metrics(group: Any) -> dict[str, GroupMetric]:
    """How a group aggregates each metric. lm-eval goes through its list in order: what stands later
    takes the place of what it names again."""
    found: dict[str, GroupMetric] = {}
    entries = group.aggregate_metric_list or []
    named = Counter(each.metric for each in entries)
    for each in entries:
        if named[each.metric] > 1 and each.filter_list is not None:
            keys = {f"{each.metric},{name}": [name] for name in each.filter_list}
        else:
            found = {k: how for k, how in found.items() if k.partition(",")[0] != each.metric}
            keys = {each.metric: each.filter_list}
        for key, filters in keys.items():
            found[key] = {"weight_by_size": each.weight_by_size, "filters": filters}
    return found


def single_rows(task: Any, locked: LockedTask) -> Rows:
    """A loaded leaf task's rows one by one, each hashed, and its shots' if they are pinned."""
    shots = single.joined(map(doc_hash, task.sampler.df)) if pinned_shots(locked) else None
    return Rows(single.joined(map(doc_hash, task.eval_docs)), shots)


def describe_shots(task: Any) -> ShotRows | None:
    """All rows that a task's shots may be drawn from; None where it has no shots."""
    if not task.get_config("num_fewshot"):
        return None
    drawn_from = task.sampler.df if hasattr(task, "sampler") else []
    if not drawn_from:
        raise EvalkitError(
            f"task '{task.task_name}' has shots, but no rows that they are drawn from",
            fix="give it a fewshot_split or fewshot_config.samples in its YAML",
        )
    _check_enough(task, len(drawn_from))
    count, digest = row_digests.of(drawn_from)
    return {"split": _shots_split(task), "rows": count, "digest": digest}


def _check_enough(task: Any, rows: int) -> None:
    """Raise EvalkitError where there are too few rows: lm-eval would draw fewer shots."""
    shots = task.get_config("num_fewshot")
    own = task.fewshot_cfg.split == task.config.test_split
    most = rows - 1 if own else rows
    if shots > most and type(task.sampler).__name__ in ("ContextSampler", "FirstNSampler"):
        raise EvalkitError(
            f"task '{task.task_name}' is to have {shots} shots, and there are {rows} rows to draw"
            f" them from{', the document among them' if own else ''}",
            fix=f"ask for num_fewshot: {most} or fewer in the suite",
        )


def _shots_split(task: Any) -> str | None:
    """The split of the shots, as in lm-eval's `ConfigurableTask.fewshot_docs`, or None."""
    config = task.config
    if task.fewshot_cfg.split is not None:
        return str(task.fewshot_cfg.split)
    if task.fewshot_cfg.samples is not None:
        return None
    return str(config.training_split or config.validation_split or config.test_split)


def _repo(task: Any, pins: loading.Pins) -> str:
    """The locked source that a task's data came from."""
    if callable(function := task.get_config("custom_dataset")):
        repo, revision = local.of_function(pins.include_path, function)
        pins.hold(repo, revision)
        return repo
    if task.DATASET_PATH in pins.used:
        return str(task.DATASET_PATH)
    kwargs = task.get_config("dataset_kwargs") or {}
    if task.DATASET_PATH and (kwargs or local.is_folder(pins.include_path, task.DATASET_PATH)):
        return pins.local(task.DATASET_PATH, kwargs).repo
    raise EvalkitError(
        f"task '{task.task_name}' did not load its dataset ({task.DATASET_PATH}) in a way that"
        " can be pinned",
        fix="give it dataset_path in its YAML",
    )


def check(loaded: "Loaded", lock: Lock) -> None:
    """EvalkitError (1) that names the first leaf task off the lock, and the first of its documents
    or of the rows that its shots are drawn from; rows that the lock says are unknown may be any."""
    suite, found, wanted = loaded.suite, set(loaded.leaves), set(lock.tasks)
    if found != wanted:
        missing, extra = sorted(wanted - found), sorted(found - wanted)
        problem = "; ".join(
            f"{len(names)} leaf tasks {word} ({', '.join(names[:3])}{'...' if names[3:] else ''})"
            for names, word in ((missing, "missing"), (extra, "not in the lock"))
            if names
        )
        raise _off_the_lock(suite, problem, _REFRESH)
    for name in sorted(found):
        leaf, want = loaded.leaves[name], lock.tasks[name]
        each = lock.each.get(name, Rows(b""))
        if problem := _other_source(leaf.locked, want):
            raise _off_the_lock(suite, f"task '{name}': {problem}", _REFRESH)
        if problem := _other_rows(leaf, want, each):
            fix = _compare(want["dataset"], lock, suite)
            raise _off_the_lock(suite, f"task '{name}': {problem}", fix)
        if problem := _other_shots(leaf, want, each):
            pinned = pinned_shots(want)
            own = pinned is not None and pinned["split"] is None
            fix = _compare(OWN_FILES if own else want["dataset"], lock, suite)
            raise _off_the_lock(suite, f"task '{name}': {problem}", fix)
        if problem := _other_scoring(leaf.locked, want):
            raise _off_the_lock(suite, f"task '{name}': {problem}", _REFRESH)


def _off_the_lock(suite: Suite, problem: str, fix: str) -> EvalkitError:
    what = f"suite '{suite.name}' is not what its lock says: {problem}"
    return EvalkitError(what, where=str(suite.lock_path), fix=fix, code=Exit.FAILED)


def _other_source(have: LockedTask, want: LockedTask) -> str:
    """How a leaf task's data is not from where the locked is, whatever its rows; or nothing."""
    if problem := _first_other(have, want, ("dataset", "config", "split")):
        return problem
    ours, theirs = _source(have["shots"]), _source(want["shots"])
    unknown = have["shots"] and want["shots"] and pinned_shots(want) is None
    return "" if unknown or ours == theirs else f"it draws {ours}, the lock says {theirs}"


def _other_scoring(have: LockedTask, want: LockedTask) -> str:
    keys = ("output_type", "num_fewshot", "version", "metrics", "filters")
    same = have["settings"] == want["settings"]
    other = "" if same else "lm-eval's config of it is not the locked one"
    return _first_other(have, want, keys) or other


def _first_other(
    have: Mapping[str, object], want: Mapping[str, object], keys: tuple[str, ...]
) -> str:
    other = (key for key in keys if have[key] != want[key])
    return next((f"{key} is {have[key]}, locked {want[key]}" for key in other), "")


def _source(shots: ShotRows | Unknown | None) -> str:
    if shots is None:
        return "no shots"
    if "unknown" in shots:
        return "shots from rows that are not known"
    return f"shots from the split '{shots['split']}'" if shots["split"] else "shots of its own YAML"


def _other_rows(leaf: "Leaf", want: LockedTask, each: Rows) -> str:
    have = leaf.locked
    counts, other = (_first_other(have, want, (key,)) for key in ("documents", "rows"))
    if not counts and not other:
        return ""
    first = single.difference(leaf.each.documents, each.documents)
    if counts:
        return f"{counts}; {first}" if first else counts
    return first or other


def _other_shots(leaf: "Leaf", want: LockedTask, each: Rows) -> str:
    have = leaf.locked["shots"]
    if pinned_shots(want) is None or have == want["shots"]:
        return ""
    first = single.difference(leaf.each.shots or b"", each.shots or b"", "row")
    other = f"they are {have}, locked {want['shots']}"
    return f"{_source(have)}: {first or other}"


def _compare(dataset: str, lock: Lock, suite: Suite) -> str:
    """What to do about a row that is not the locked one."""
    from huggingface_hub import constants, file_download

    again = f"refresh the lock with `evalkit lock {suite.path}`"
    if dataset.startswith(OWN_FILES):
        return f"restore the task's own files, or {again}"
    pinned = pinned_revision(lock.datasets[dataset])
    revision = pinned[:12] if pinned else "a revision that the lock does not know"
    fetched = file_download.repo_folder_name(repo_id=dataset, repo_type="dataset")
    return (
        f"compare it with {dataset} at {revision} on the Hub: where yours is another, delete"
        f" {cache.folder_of(dataset)} and {Path(constants.HF_HUB_CACHE) / fetched} and run again,"
        f" else {again}"
    )
