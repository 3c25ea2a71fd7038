"""A run's folder: its files before the run executes, and the folder that a job continues."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import now
from evalkit.base.machine import stamp
from evalkit.inputs import suite as suites
from evalkit.inputs.engine_name import OWN
from evalkit.inputs.models import checkpoint
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.suite import Suite
from evalkit.inputs.types import AdapterEntry, Quantization, RunInputs, SuiteIdentity
from evalkit.plan.cache import Planned
from evalkit.plan.store import Plan
from evalkit.record.reading.folder import foreign
from evalkit.record.sections import ModelDescription
from evalkit.record.types import RecordedSuite, RunBody
from evalkit.run.preparing import named
from evalkit.run.preparing.prepare import Job, Options

SCHEMA = "evalkit/run/3"


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and the content of its run.json, which is written before it executes."""

    folder: Path
    body: RunBody

    @property
    def finished(self) -> bool:
        """Whether the record, which is written last, is there."""
        return (self.folder / "record.json").is_file()


def run_id(plan_id: str, inputs: Mapping[str, object]) -> str:
    """Return the run's identity: the plan, and all of `inputs` that the plan does not cover."""
    rest = {key: inputs[key] for key in ("model", "adapter", "numerics", "engine", "versions")}
    return canon.digest({"plan": plan_id, **rest})


def at_its_time(job: Job) -> Job:
    """Return the job with the clock of a run that differs from it in nothing else, so that it
    continues that run; the job itself where there is no such run."""
    if job.suite.chat.clock is None or job.options.clock or job.options.fresh:
        return job
    runs = _runs(job.folder, job.suite.name)
    for run in sorted(runs, key=lambda run: (run.finished, run.body["created"])):
        clock = run.body["inputs"]["suite"].get("clock")
        if clock and _inputs(run) == {"schema": SCHEMA, **_timed(job, clock).inputs}:
            return _timed(job, clock)
    return job


def _timed(job: Job, clock: str) -> Job:
    suite = replace(job.suite, chat=job.suite.chat.at(clock))
    inputs: RunInputs = job.inputs | {"suite": suites.identity(suite, job.lock)}
    return replace(job, suite=suite, inputs=inputs)


def find(job: Job) -> Run | None:
    """Return the run that this job continues, or the finished run of the same inputs; None where
    the job must be planned. Raises EvalkitError (2), with the first input that differs, for an
    unfinished run of the same model and suite name with other inputs."""
    runs = _runs(job.folder, job.suite.name)
    wanted = {"schema": SCHEMA, **job.inputs}
    same = [run for run in runs if _inputs(run) == wanted]
    others = [run for run in runs if _inputs(run) != wanted and not run.finished]
    unfinished = [run for run in same if not run.finished]
    if unfinished:
        return unfinished[0]
    if same and not job.options.again:
        return same[0]
    if others and not job.options.fresh:
        name, old, new = first_difference(_inputs(others[0]), wanted)
        raise EvalkitError(
            f"an unfinished run differs in {name}: {old} -> {new}",
            where=str(others[0].folder),
            fix=f"undo the change to continue it{_or_score(name)}, or pass --fresh for another",
        )
    return None


def _or_score(name: str) -> str:
    """Return what else can be done where only the suite was changed."""
    mended = name.startswith("suite.")
    return ", `evalkit finish RUN` to score what it answered if prompts are equal" if mended else ""


def _runs(folder: Path, suite: str) -> list[Run]:
    """Return the runs of a suite of that name, also those of an older evalkit."""
    paths = [*folder.glob(f"{suite}-*/run.json"), *folder.glob(f"{suite}.limit*-*/run.json")]
    runs = [Run(path.parent, _body(path.parent)) for path in sorted(paths)]
    return [run for run in runs if run.body["suite"]["name"] == suite]


def _inputs(run: Run) -> dict[str, Any]:
    return {"schema": run.body["schema"], **run.body["inputs"]}


def _body(folder: Path) -> RunBody:
    body = canon.read_json(folder / "run.json")
    if not isinstance(body, dict) or not {"schema", "suite", "inputs"} <= body.keys():
        raise EvalkitError("run.json is not of this evalkit", where=str(folder))
    return cast(RunBody, body)


def read(folder: Path) -> Run:
    """Return a run's folder with its run.json; EvalkitError where there is none of this evalkit."""
    body = _body(folder)
    if body["schema"] != SCHEMA:
        raise EvalkitError(
            f"run.json is {body['schema']}, this evalkit reads {SCHEMA}", where=str(folder)
        )
    return Run(folder, body)


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any]:
    """Return the first place, in the order of `new`, where two nested values differ: its name, the
    old value and the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    return name, old, new


def name_of(suite: Suite, run: str) -> str:
    """Return the name of the folder of a run of that id."""
    limit = f".limit{suite.limit}" if suite.limit else ""
    return f"{suite.name}{limit}-{run[7:19]}"


def described(suite: Suite, identity: SuiteIdentity) -> RecordedSuite:
    """Return the suite section of run.json."""
    return {"name": suite.name, "partial": suite.limit is not None, **identity}


def plan_of(folder: Path) -> Plan:
    """Read the plan of a run. Raises EvalkitError (1) where it is none, or where a trunk does not
    stand after its parent: somebody else may have planned, and a circle of trunks has no end."""
    with foreign(folder):
        plan = Plan(folder)
        for index, trunk in enumerate(plan.body["trunks"]):
            if trunk["parent"] is not None and trunk["parent"] not in range(index):
                what = f"trunk {index:,} of plan.json does not stand after its parent"
                raise EvalkitError(what, where=str(folder))
    return plan


def create(job: Job, planned: Planned, tokenizer: Tokenizer) -> Run:
    """Write the folder of a planned run, which gets its name when it is complete, and return it."""
    plan = planned.body
    run = run_id(plan["ids"]["plan"], job.inputs)
    suite, root = job.suite, job.folder
    name = name_of(suite, run)
    body: RunBody = {
        "schema": SCHEMA,
        "ids": {**plan["ids"], "run": run},
        "execution": secrets.token_hex(16),
        "created": now(),
        "suite": described(suite, job.inputs["suite"]),
        "inputs": job.inputs,
        "carried": None,
        "model": _describe(job, tokenizer),
        "options": job.options.published(),
        "unique_tokens": planned.unique_tokens,
    }
    making = canon.beside(root / name)
    canon.make_folder(making)
    canon.write_atomic(making / "plan.tokens", planned.tokens)
    canon.write_atomic(making / "plan.json", canon.dumps(plan) + "\n")
    job.lock.write(making / "lock.yaml")
    canon.write_json(making / "run.json", body)
    folder, count = root / name, 1
    while folder.exists():
        count += 1
        folder = root / f"{name}.{count}"
    making.rename(folder)
    named.remember(folder, job.options.places())
    return Run(folder, body)


def _adapter(job: Job) -> AdapterEntry | None:
    if job.adapter is None:
        return None
    return {"reference": str(job.options.published()["adapter"]), "files": job.adapter}


def _quantised(model: Model) -> Quantization | None:
    from evalkit.engine import quantization

    quantized = quantization(model)
    if model.quantization or quantized is None:
        return model.quantization
    unknown = stamp.unknown("config.json does not say")
    return {
        "method": quantized.method,
        "bits": unknown if quantized.bits is None else quantized.bits,
        "dequantized": stamp.unknown("transformers decides when it loads"),
    }


def _describe(job: Job, tokenizer: Tokenizer) -> ModelDescription:
    model = job.model
    stored = model.config.get("dtype") or model.config.get("torch_dtype") or checkpoint.dtype(model)
    return {
        "reference": job.options.published()["model"],
        "revision": model.revision or stamp.unknown("a local folder"),
        "files": model.files,
        "config": canon.digest(model.config),
        "tokenizer": canon.digest(model.tokenizer_files()),
        "chat_template": canon.digest(tokenizer.template) if tokenizer.template else None,
        "special_tokens": tokenizer.unlike,
        "tokenizer_reads_otherwise": tokenizer.unlike_file(),
        "adapter": _adapter(job),
        "generation": dict(checkpoint.own_settings(model)),
        "quantization": _quantised(model),
        "parameters": job.parameters
        if job.parameters is not None
        else stamp.unknown("the weights are pickles"),
        "dtype": stored or stamp.unknown("config.json does not say"),
        "trust_remote_code": model.trust_remote_code,
    }


def to_score(run: Run, suite: str | None, model: str | None, offline: bool) -> Options:
    """Return the options for scoring a run: its suite and tokenizer, but no engine, so neither an
    engine's package nor an adapter nor a probe of the level is needed."""
    asked, dtype = run.body["options"], run.body["inputs"]["numerics"]["dtype"]
    may, places = named.code(run.folder, run.body), named.places(run.folder)
    return Options(
        model=model or places.get("model", asked["model"]),
        suite=suite or places.get("suite", asked["suite"]),
        revision=_revision(run, model),
        limit=asked["limit"],
        out=run.folder.parent.parent,
        offline=offline,
        dtype=dtype if isinstance(dtype, str) else None,
        level="none",
        device="cpu" if asked["engine"] == OWN else None,
        seed=asked["seed"],
        allow_pickle=may["allow_pickle"],
        trust_remote_code=may["trust_remote_code"],
        clock=run.body["inputs"]["suite"].get("clock"),
    )


def _revision(run: Run, model: str | None) -> str | None:
    """Return the commit of a run's model; None where the user gives another model."""
    revision = run.body["model"]["revision"]
    same = model in (None, run.body["options"]["model"])
    return revision if same and isinstance(revision, str) else None


def model_of(run: Run, where: str | None, offline: bool) -> Model:
    """Return the model of a run, or the one at `where`."""
    asked, may = run.body["options"], named.code(run.folder, run.body)
    try:
        return models.resolve(
            where or named.places(run.folder).get("model", asked["model"]),
            revision=_revision(run, where),
            offline=offline,
            allow_pickle=may["allow_pickle"],
            trust_remote_code=may["trust_remote_code"],
        )
    except EvalkitError as error:
        if where is None and error.code is Exit.MISSING:
            error.fix = f"give --model if it has moved, or {error.fix or 'mend that'}"
        raise
