"""One evaluation from a model's name to a record: plan, execute, finish."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from evalkit.base import canon, lease, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.base.machine import gpus, stamp
from evalkit.harness.asking import asked
from evalkit.harness.tasks import Loaded
from evalkit.inputs import engine_name
from evalkit.inputs import suite as suites
from evalkit.inputs.models import architecture
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan import cache, memory
from evalkit.plan import store as planning
from evalkit.plan.cache import Planned
from evalkit.plan.requests import asking
from evalkit.plan.shards import Shard
from evalkit.plan.store import Policy
from evalkit.plan.tokenise import tokenise
from evalkit.run import execute, folder, means, telemetry
from evalkit.run.finishing import carried, graded
from evalkit.run.finishing import finish as finishing
from evalkit.run.folder import Run
from evalkit.run.loading import Loading, load
from evalkit.run.preparing import named, prepare
from evalkit.run.preparing.engines import Place
from evalkit.run.preparing.prepare import Job, Options
from evalkit.run.processes import worker

PLANNERS = ("lm_eval", "tokenizers", "transformers")  # whose versions a plan may depend on


def evaluate(
    options: Options, events: Events, argv: Sequence[str] = (), *,
    workers: int | None = None, grace_s: float = stopping.GRACE_S,
    seal: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """Evaluate a model on a suite and return the run's folder: an unfinished run of the same inputs
    continues, a finished one stays. `workers`, `grace_s`: see `means.Means`; `seal` is called
    before the first answer. Raises EvalkitError; what was done before it is kept."""
    events.log("started", argv=stamp.command(list(argv)))
    # An engine of lm-eval's needs the plan, and without workers this process does their work.
    wanted = options.engine == engine_name.OWN and workers != 0
    forks = options.device == "cpu" or not (options.device or gpus.signs(os.environ))
    with means.early(forks=wanted and forks, spare=wanted and not forks) as early:
        job = prepare_job(options, events)
        place = Place(job.device, job.options.adapter)
        has = means.Means(place, workers, grace_s)
        job, run, loaded = find_or_plan(job, events, lambda: early.start(job, has))
        if run.finished:
            events.say("this run is already finished (--again makes another execution of it)")
            finishing.log_finished(run)
            return run.folder
        loading = Loading(job, events, loaded, beside=bool(early.children))
        with _worked_on(run, events) as held, loading:
            if seal is not None:
                seal(run.folder)

            def check() -> None:
                held.check()
                loading.check()

            execute.execute(run, job.model, has, events, check, early)
            early.end()  # what they have imported takes memory, and so does scoring
            held.check()
            finish(run, job, loading.wait(), events, list(argv))
    return run.folder


@contextmanager
def _worked_on(run: Run, events: Events) -> Iterator[lease.Lease]:
    """Hold a run's folder to its end, and note in the audit log if it fails."""
    with lease.held(run.folder, say=events.say) as held:
        try:
            yield held
        except EvalkitError as error:
            if error.code != Exit.STOPPED and not run.finished:
                with suppress(EvalkitError):  # a full disk has no room for this line either
                    finishing.log_failure(run, error)
            raise
        finally:
            events.close()


def prepare_job(options: Options, events: Events, *, computes: bool = True) -> Job:
    """Resolve what was asked for; shown, since fetching and digesting a large model takes time."""
    with events.phase("prepare", 0, "steps"):
        say = partial(_tell_device, events)
        return prepare.prepare(options, say, computes=computes)


def _tell_device(events: Events, line: str) -> None:
    """Say what computes, and keep it where `status` looks."""
    events.say(line)
    events.log("device", line=line)


def find_or_plan(
    job: Job, events: Events, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Job, Run, Loaded | None]:
    """The run that this job continues or already is, else a newly planned one, and the job at that
    run's time; of two processes that start the same thing at once, one plans it. `meanwhile` is
    called before it is planned, to start what goes on at the same time."""
    with lease.held(job.folder, f".{job.suite.name}.planning.lock", say=events.say):
        job = folder.at_its_time(job)
        if run := folder.find(job):
            return job, run, None
        meanwhile()
        return job, *plan(job, events)


def plan(job: Job, events: Events) -> tuple[Run, Loaded | None]:
    """Write the folder of a run with its batches, and load the requests if it has to."""
    suites.check_name(job.suite, job.lock)
    span = telemetry.Span()
    tokenizer = Tokenizer(job.model)
    loaded, planned = batches(job, tokenizer, events)
    if job.room is not None:
        memory.check(planned.body, job.room)
    run = folder.create(job, planned, tokenizer)
    events.log(
        "planned",
        **span.taken(),
        batches=len(planned.body["batches"]),
        kept=loaded is None,
    )
    return run, loaded


def batches(job: Job, tokenizer: Tokenizer, events: Events) -> tuple[Loaded | None, Planned]:
    """A run's batches: those that follow from the same inputs and were kept, else from every
    request, which are then loaded."""
    inputs = _plan_inputs(job, tokenizer)
    key = cache.key(inputs)
    if planned := cache.read(key):
        events.say("planned before: the same requests in the same tokens")
        return None, planned
    loaded, planned = _build(job, tokenizer, inputs, events)
    cache.write(key, planned)
    return loaded, planned


def _plan_inputs(job: Job, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that a plan follows from, evalkit's own code aside."""
    how = asking.of(job.suite, job.model, tokenizer)  # chooses one of several templates
    return {
        "suite": job.inputs["suite"],
        "tokenizer": job.model.tokenizer_files(),
        "tokenizer_as_loaded": tokenizer.identity(),
        "level": job.level,
        "policy": job.policy.to_json(),
        "max_length": job.engine.max_length(tokenizer.max_length),
        "rope_limit": architecture.rope_limit(job.model.config),
        "chat_template": tokenizer.template if job.suite.apply_chat_template else None,
        "generation": how.terms.own,
        "versions": {name: stamp.version(name) for name in PLANNERS},
    }


def _build(
    job: Job, tokenizer: Tokenizer, inputs: dict[str, Any], events: Events
) -> tuple[Loaded, Planned]:
    loaded = load(job, events)
    documents = sum(
        min(job.suite.limit or t["documents"], t["documents"]) for t in job.lock.tasks.values()
    )
    tokenizer.max_length = inputs["max_length"]
    how = asking.of(job.suite, job.model, tokenizer)
    made = planning.Builder(
        Policy(**inputs["policy"]), level=inputs["level"], rope_limit=inputs["rope_limit"]
    )
    with events.phase("build", documents, "documents") as phase:
        for name in sorted(loaded.leaves):  # one's requests and rows are gone before the next's
            made.add(tokenise(asked.of_leaf(loaded, name, how), tokenizer))
            phase.advance(min(job.suite.limit or documents, job.lock.tasks[name]["documents"]))
    body = made.body(
        suite_id=canon.digest(job.inputs["suite"]),
        tokenizer=inputs["tokenizer"],
        max_length=inputs["max_length"],
        dropped_system_turns=how.dropped,
    )
    return loaded, Planned(body, b"".join(made.blocks), made.unique_tokens)


def finish(
    run: Run, job: Job, loaded: Loaded | None, events: Events, argv: list[str],
    prefer: str | None = None,
) -> Path:  # fmt: skip
    """Score a run whose batches are all answered; loads the suite's tasks if need be."""
    loaded = loaded or load(job, events)
    return finishing.finish(run, loaded, Tokenizer(job.model), events, argv, prefer)


def plan_only(options: Options, events: Events) -> Path:
    """Plan a run, or find the one that is already planned; its folder."""
    _, run, _ = find_or_plan(prepare_job(options, events, computes=False), events)
    if not (run.folder / "events").exists():  # new: how it was planned is kept
        events.open(run.folder / "events" / f"{worker.segment_name()}.jsonl")
        events.close()
    return run.folder


def execute_only(
    where: Path, events: Events, *,
    model: str | None, adapter: Path | None, device: str | None, offline: bool,
    workers: int | None, grace_s: float, shard: Shard | None,
) -> None:  # fmt: skip
    """Answer a planned run's batches, or those of a shard, which needs no lock: others may work on
    theirs, or on the same. `model`, `adapter`: where they lie, if not where their names say."""
    run = folder.read(where)
    named.require_to_execute(where, run.body, model, adapter)
    found = folder.model_of(run, model, offline)
    from evalkit.engine.hardware import device as devices

    asked = named.places(where).get("adapter", run.body["options"]["adapter"])
    chosen = devices.pick(device)
    _tell_device(events, devices.described(chosen))
    place = Place(chosen, adapter or (Path(asked) if asked else None))
    has = means.Means(place, workers, grace_s, shard)
    own = run.body["inputs"]["engine"]["name"] == engine_name.OWN
    locked = nullcontext() if shard else lease.held(where, say=events.say)
    with locked as held, means.early(forks=own and chosen == "cpu" and workers != 0) as early:
        try:
            check = held.check if held else lambda: None
            execute.execute(run, found, has, events, check, early)
        finally:
            events.close()


def finish_only(
    where: Path, events: Events, argv: list[str], *,
    suite: str | None, model: str | None, offline: bool, prefer: str | None,
    grade: Callable[[Path, dict[str, str]], None] | None = None,
) -> Path:  # fmt: skip
    """Score an executed run and write its record; the run's folder. `suite`, `model`: where they
    lie, if not where their names say; `prefer`: the segment whose answers count where two are
    unequal; `grade`: sees to verdicts on the run's programs, by name. Where the suite's tasks were
    mended since, and ask the same, it is a new run's."""
    run = folder.read(where)
    if run.finished:
        events.say("this run is already finished")
        return where
    progress = execute.progress(where)
    finishing.check_complete(run, progress.done, progress.batches)
    named.require_to_score(where, run.body, model, suite)
    job = prepare.prepare(folder.to_score(run, suite, model, offline))
    loaded = None
    if job.inputs["suite"] != run.body["inputs"]["suite"]:
        run, loaded = _carried(run, job, events)
    with _worked_on(run, events):
        events.open(run.folder / "events" / f"{worker.segment_name()}.jsonl")
        loaded = loaded or load(job, events)
        if grade is not None:
            grade(run.folder, graded.programs_of(run, loaded, Tokenizer(job.model)))
        finish(run, job, loaded, events, argv, prefer)
    return run.folder


def _carried(run: Run, job: Job, events: Events) -> tuple[Run, Loaded]:
    name, old, new = folder.first_difference(run.body["inputs"]["suite"], job.inputs["suite"])
    events.say(f"the suite is not the planned one, {name}: {old} -> {new}; are its prompts?")
    plan_body = canon.read_json(run.folder / "plan.json")
    tokenizer = Tokenizer(job.model)
    as_planned = {key: plan_body[key] for key in ("level", "policy", "max_length")}
    inputs = _plan_inputs(job, tokenizer) | as_planned
    loaded, planned = _build(job, tokenizer, inputs, events)
    made = carried.over(run, job.suite, job.lock, job.inputs["suite"], planned)
    events.say(f"they are: the answers count, in {made.folder.name}")
    return made, loaded
