"""One evaluation from a model's name to a record: plan, execute, finish."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from evalkit import canon, lease, prepare, stamp
from evalkit import execute as executing
from evalkit import finish as finishing
from evalkit import model as models
from evalkit import plan as planning
from evalkit.errors import EvalkitError, Exit
from evalkit.events import Events
from evalkit.harness import data, requests, tasks
from evalkit.harness.tasks import Loaded
from evalkit.model import Model
from evalkit.prepare import Job, Options, Run
from evalkit.tokenise import tokenise
from evalkit.tokenizer import Tokenizer


def evaluate(options: Options, events: Events, argv: Sequence[str] = ()) -> Path:
    """Evaluate a model on a suite and return the run's folder.

    Continues an unfinished run of the same inputs and returns a finished one as it is. Raises
    EvalkitError; what was done before it is kept.
    """
    events.log("started", argv=stamp.command(list(argv)))
    job = prepare_job(options, events)
    run, loaded = find_or_plan(job, events)
    if run.finished:
        events.say("this run is already finished (--again makes another execution of it)")
        finishing.log_finished(run)
        return run.folder
    with _worked_on(run, events):
        device = executing.Device(job.device, job.numerics)
        executing.execute(run, job.model, device, events)
        finish(run, job, loaded, events, list(argv))
    return run.folder


@contextmanager
def _worked_on(run: Run, events: Events) -> Iterator[None]:
    """Hold a run's folder to its end, and note in the audit log if it fails."""
    with lease.held(run.folder):
        try:
            yield
        except EvalkitError as error:
            if error.code != Exit.STOPPED and not run.finished:
                with suppress(EvalkitError):  # a full disk has no room for this line either
                    finishing.log_failure(run, error)
            raise
        finally:
            events.close()


def prepare_job(options: Options, events: Events) -> Job:
    """Resolve what was asked for; shown, since fetching and digesting a large model takes time."""
    with events.phase("prepare", 0, "steps"):
        return prepare.prepare(options)


def find_or_plan(job: Job, events: Events) -> tuple[Run, Loaded | None]:
    """The run that this job continues or already is, else a newly planned one; of two processes
    that start the same thing at once, one plans it."""
    with lease.held(job.folder, f".{job.suite.name}.planning.lock"):
        run = prepare.find(job)
        return (run, None) if run else plan(job, events)


def plan(job: Job, events: Events) -> tuple[Run, Loaded]:
    """Build every request, plan the batches and write the run's folder."""
    started = time.monotonic()
    loaded = load(job, events)
    tokenizer = Tokenizer(job.model)
    documents = sum(
        min(job.suite.limit or t.documents, t.documents) for t in job.lock.tasks.values()
    )
    with events.phase("build", documents, "documents") as phase:
        template = tokenizer.chat_template_for(job.suite.apply_chat_template)
        built = requests.build(loaded, template, phase.advance)
    with events.phase("tokenise", len(built), "requests") as phase:
        rows = tokenise(built, tokenizer, phase.advance)
    suite_id = canon.digest(job.inputs["suite"])
    body, blocks = planning.build(
        rows,
        job.policy,
        suite_id=suite_id,
        tokenizer=job.model.tokenizer_files(),
        max_length=tokenizer.max_length,
    )
    run = prepare.create(job, body, blocks, tokenizer.template)
    events.log(
        "planned",
        seconds=time.monotonic() - started,
        peak_memory_bytes=stamp.peak_memory_bytes(),
        requests=len(built),
        batches=len(body["batches"]),
    )
    return run, loaded


def load(job: Job, events: Events) -> Loaded:
    """Load the suite's tasks with their pinned data, and hold them against the lock."""
    pins = data.Pins(
        {name: dataset.revision for name, dataset in job.lock.datasets.items()},
        include_path=job.suite.include_path,
        offline=job.options.offline,
    )
    with events.phase("load", len(job.lock.tasks), "datasets") as phase:
        pins.served = lambda: phase.advance(1)
        loaded = tasks.load(job.suite, pins)
        tasks.check_lock(loaded, job.lock)
    return loaded


def finish(run: Run, job: Job, loaded: Loaded | None, events: Events, argv: list[str]) -> Path:
    """Score a run whose batches are all answered; loads the suite's tasks if need be."""
    loaded = loaded or load(job, events)
    return finishing.finish(run, loaded, Tokenizer(job.model), events, argv)


def plan_only(options: Options, events: Events) -> Path:
    """Plan a run, or find the one that is already planned; its folder."""
    run, loaded = find_or_plan(prepare_job(options, events), events)
    if loaded is not None:
        events.open(run.folder / "events" / f"{executing.segment_name()}.jsonl")
        events.close()
    return run.folder


def execute_only(
    folder: Path, events: Events, *, model: str | None, device: str | None, offline: bool
) -> None:
    """Answer a planned run's batches. `model`: where it lies, if not where its name says."""
    run = prepare.read(folder)
    found = _model(run, model, offline)
    from evalkit.engine import core

    chosen = executing.Device(core.pick_device(device), run.body["inputs"]["numerics"])
    with lease.held(folder):
        try:
            executing.execute(run, found, chosen, events)
        finally:
            events.close()


def finish_only(
    folder: Path, events: Events, argv: list[str], *,
    suite: str | None, model: str | None, offline: bool,
) -> None:  # fmt: skip
    """Score an executed run and write its record. `suite`, `model`: where they lie, if not where
    their names say."""
    run = prepare.read(folder)
    if run.finished:
        events.say("this run is already finished")
        return
    asked = run.body["options"]
    options = Options(
        model=model or asked["model"],
        suite=suite or asked["suite"],
        revision=_revision(run),
        limit=asked["limit"],
        out=folder.parent.parent,
        offline=offline,
        dtype=run.body["inputs"]["numerics"]["dtype"],
        seed=asked["seed"],
        allow_pickle=asked["allow_pickle"],
        trust_remote_code=asked["trust_remote_code"],
    )
    job = prepare.prepare(options)
    if job.inputs["suite"] != run.body["inputs"]["suite"]:
        name, old, new = prepare.first_difference(run.body["inputs"]["suite"], job.inputs["suite"])
        raise EvalkitError(f"the suite is not the planned one, {name}: {old} -> {new}")
    with _worked_on(run, events):
        events.open(folder / "events" / f"{executing.segment_name()}.jsonl")
        finish(run, job, None, events, argv)


def _revision(run: Run) -> str | None:
    revision = run.body["model"]["revision"]
    return revision if isinstance(revision, str) else None


def _model(run: Run, where: str | None, offline: bool) -> Model:
    asked = run.body["options"]
    return models.resolve(
        where or asked["model"],
        revision=None if where else _revision(run),
        offline=offline,
        allow_pickle=asked["allow_pickle"],
        trust_remote_code=asked["trust_remote_code"],
    )
