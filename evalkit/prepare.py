"""Everything that is decided before a run starts, and the folder it is decided in.

The inputs of a run's identity can all be had without building a request, so the same command finds
its unfinished run, and an upgrade or a changed option is named before it costs a night.
"""

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import canon, stamp
from evalkit import model as models
from evalkit import suite as suites
from evalkit.errors import EvalkitError, Exit
from evalkit.events import now
from evalkit.model import Model
from evalkit.plan import LEVEL, Policy
from evalkit.suite import Lock, Suite

SCHEMA = "evalkit/run/1"
FREE_BYTES = 200_000_000  # what a full run of the largest shipped suite leaves, with room


@dataclass(frozen=True, slots=True)
class Options:
    """What a user asked for."""

    model: str
    suite: str = "core"
    revision: str | None = None
    limit: int | None = None
    out: Path = Path("results")
    offline: bool = False
    dtype: str | None = None
    device: str | None = None
    seed: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    fresh: bool = False
    again: bool = False

    def published(self) -> dict[str, Any]:
        """The options as a record keeps them: a path of this host only by its last part."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        for name in ("model", "suite", "out"):
            path = Path(shown[name])
            shown[name] = path.name if path.is_absolute() else str(shown[name])
        return shown


@dataclass(frozen=True, slots=True)
class Job:
    """A run's resolved inputs. `inputs` is what the run id covers, the plan's batches aside."""

    options: Options
    model: Model
    parameters: int | None
    suite: Suite
    lock: Lock
    policy: Policy
    numerics: dict[str, Any]
    device: str
    inputs: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the runs of this model lie."""
        return self.options.out / self.model.short_name


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and run.json, what was decided before it executed."""

    folder: Path
    body: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the record, which is written last, is there."""
        return (self.folder / "record.json").is_file()


def prepare(options: Options) -> Job:
    """Resolve the model, the suite and the numerics; EvalkitError for what can't be run."""
    if options.limit is not None and options.limit < 1:
        raise EvalkitError("--limit must be at least 1")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise EvalkitError("--seed must lie between 0 and 4294967295")
    suite = suites.load(options.suite, limit=options.limit, seed=options.seed)
    lock = suites.lock_of(suite)
    model = models.resolve(
        options.model,
        revision=options.revision,
        offline=options.offline,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    parameters = models.num_parameters(model)
    _check_out(options.out / model.short_name)
    from evalkit.engine import core  # torch: only once all cheaper checks have passed

    numerics = core.numerics_for(model, options.dtype).to_json()
    device = core.pick_device(options.device)
    policy = Policy()
    inputs = {
        "suite": suites.identity(suite, lock),
        "model": model.sha256(),
        "numerics": numerics,
        "engine": {"name": core.NAME, "level": LEVEL, "policy": policy.to_json()},
        "versions": stamp.versions(),
    }
    return Job(options, model, parameters, suite, lock, policy, numerics, device, inputs)


def _check_out(folder: Path) -> None:
    """The model's results folder must be there, writable and not nearly full before anything
    costs time."""
    canon.make_folder(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EvalkitError(
            "the results folder is not writable",
            where=str(folder),
            fix="choose another with --out",
            code=Exit.MISSING,
        )
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise EvalkitError(
            f"only {free // 1_000_000} MB are free for results, a run needs"
            f" {FREE_BYTES // 1_000_000}",
            where=str(folder),
            fix="free space or choose another --out",
            code=Exit.MISSING,
        )


def run_id(plan_id: str, inputs: dict[str, Any]) -> str:
    """The run's identity: the plan, and all of `inputs` that the plan does not cover."""
    rest = {key: inputs[key] for key in ("model", "numerics", "engine", "versions")}
    return canon.digest({"plan": plan_id, **rest})


def find(job: Job) -> Run | None:
    """The run that this job continues or already is; None when it must be planned.

    Raises EvalkitError (2) that names the first differing input where an unfinished run of the
    same model and suite name was started with others.
    """
    runs = _runs(job.folder, job.suite.name)
    same = [run for run in runs if run.body["inputs"] == job.inputs]
    others = [run for run in runs if run.body["inputs"] != job.inputs and not run.finished]
    unfinished = [run for run in same if not run.finished]
    if unfinished:
        return unfinished[0]
    if same and not job.options.again:
        return same[0]
    if others and not job.options.fresh:
        name, old, new = first_difference(others[0].body["inputs"], job.inputs)
        raise EvalkitError(
            f"an unfinished run differs in {name}: {old} -> {new}",
            where=str(others[0].folder),
            fix="undo the change to continue it, or pass --fresh to start another",
        )
    return None


def _runs(folder: Path, suite: str) -> list[Run]:
    found = sorted(
        [*folder.glob(f"{suite}-*/run.json"), *folder.glob(f"{suite}.limit*-*/run.json")]
    )
    runs = [read(path.parent) for path in found]
    return [run for run in runs if run.body["suite"]["name"] == suite]


def read(folder: Path) -> Run:
    """A run's folder with its run.json; EvalkitError when it is none."""
    body = canon.read_json(folder / "run.json")
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise EvalkitError("run.json is not of this evalkit", where=str(folder))
    return Run(folder, body)


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first place, in the inputs' order, where two nested values differ: (name, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    return name, old, new


def create(job: Job, plan: dict[str, Any], blocks: list[bytes], chat_template: Any) -> Run:
    """Write a planned run's folder; it appears under its name when it is complete."""
    ids = {**plan["ids"], "run": run_id(plan["ids"]["plan"], job.inputs)}
    suite, root = job.suite, job.folder
    limit = f".limit{suite.limit}" if suite.limit else ""
    name = f"{suite.name}{limit}-{ids['run'][7:19]}"
    body = {
        "schema": SCHEMA,
        "ids": ids,
        "execution": secrets.token_hex(16),
        "created": now(),
        "suite": {"name": suite.name, "partial": suite.limit is not None, **job.inputs["suite"]},
        "inputs": job.inputs,
        "model": _describe(job, chat_template),
        "options": job.options.published(),
    }
    making = root / f".{name}.{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    canon.make_folder(making)
    canon.write_atomic(making / "plan.tokens", blocks)
    canon.write_atomic(making / "plan.json", canon.dumps(plan) + "\n")
    canon.write_atomic(making / "lock.yaml", job.lock.to_yaml())
    canon.write_json(making / "run.json", body)
    folder, count = root / name, 1
    while folder.exists():
        count += 1
        folder = root / f"{name}.{count}"
    making.rename(folder)
    return Run(folder, body)


def _describe(job: Job, chat_template: Any) -> dict[str, Any]:
    """The record's model section."""
    model = job.model
    stored = model.config.get("dtype") or model.config.get("torch_dtype")
    return {
        "reference": job.options.published()["model"],
        "revision": model.revision or stamp.unknown("a local folder"),
        "files": model.files,
        "config": canon.digest(model.config),
        "tokenizer": canon.digest(model.tokenizer_files()),
        "chat_template": canon.digest(chat_template) if chat_template else None,
        "parameters": job.parameters
        if job.parameters is not None
        else stamp.unknown("the weights are pickles"),
        "dtype": stored or stamp.unknown("config.json does not say"),
        "trust_remote_code": model.trust_remote_code,
    }
