"""Sends runs to Slurm: plans them here, answers them in a job array, scores them in a job after it.

Planning runs in a child process (in the image, if any), so that this machine needs no torch.
Several models share one stage and one array. The same command again sends only what is missing.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from evalkit.base import canon, private
from evalkit.base.errors import EvalkitError, Exit
from evalkit.host import stage_manifest
from evalkit.host.cluster import checks, script, slurm, submission
from evalkit.host.cluster import site as sites
from evalkit.host.cluster.checks import Say, Wanted
from evalkit.host.cluster.script import Recipe
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Member, Submission
from evalkit.host.launch import runtimes, start
from evalkit.host.launch import work as works
from evalkit.host.launch.command import EMPTY, OF_SIFS, Work, command_line
from evalkit.host.launch.runtimes import Place
from evalkit.inputs import hub
from evalkit.inputs.models import model as models
from evalkit.inputs.models.builtin import smollm2
from evalkit.plan import shards
from evalkit.run import folder, pace
from evalkit.run.processes import template

LONG_S = 10 * shards.START_S  # a shorter segment has mostly been starting up
NATIVE = Place(None, None, "in this environment")


def submit(wanted: Wanted, say: Say) -> Submission:
    """Plan the runs, write the scripts and send what is missing. Raises EvalkitError where
    something needed is missing, a run can't be planned, its longest batch can't fit, Slurm refuses,
    or the queue holds another number of shards."""
    site = sites.read(wanted.site).with_words(dict(wanted.words))
    site = site.with_gpus(wanted.gpus_per_shard) if wanted.gpus_per_shard else site
    checks.before(wanted, site, say)
    if site.wants_gpu() and "--memory" not in wanted.plan:
        say("planned by a CPU's policy: --memory GB plans for GPUs of that size, which is faster")
    place = _place(wanted)
    say(f"runs {place.words}")
    if checks.lacks(wanted):
        fetch_stage(wanted, place, say)
    checks.stage(wanted)
    members = tuple(_planned(wanted, site, place, model, say) for model in wanted.models)
    runs = [member.run for member in members]
    where = submission.place(wanted.out, Path(wanted.suite).stem, runs)
    before = submission.read(where) if (where / submission.NAME).is_file() else None
    count = wanted.shards or (before.shards if before else _default_shards(members[0], wanted))
    if slurm.is_here():
        count = checks.allowed_shards(count, len(members), bool(wanted.shards), site, say)
    batches = folder.plan_of(members[0].run).body["batches"]
    longest = max((entry["cost"] for entry in batches), default=0)
    speed = wanted.tokens_per_second or measured_speed(members[0].run)
    checks.fits(longest, speed, wanted, site, say)
    sent = Submission(where, members, count, before.jobs if before else ())
    queued = slurm.tasks([array for array, _ in before.jobs]) if before else {}
    if before and queued and before.shards != count:
        raise EvalkitError(
            f"{len(queued)} tasks of {before.shards} shards a run are in the queue still",
            where=str(where),
            fix=f"evalkit cancel {shlex.quote(os.path.relpath(where))}, or leave --shards out",
        )
    todo = [task for task in submission.missing(sent) if task not in queued]
    _write(recipe(wanted, site, sent, place), sent)
    if wanted.dry_run:
        say(f"not sent (--dry-run): sbatch --array={_array(todo, wanted)} {where}/array.sbatch")
        return sent
    return _send(sent, todo, len(queued), wanted, say)


def fetch_stage(wanted: Wanted, place: Place, say: Say) -> None:
    """Fetch what the stage lacks, as `evalkit stage` does; EvalkitError where that fails."""
    say(f"staging into {wanted.stage}, which lacks some of it")
    if any(os.environ.get(name) == "1" for name in hub.OFFLINE):
        what = "the stage lacks a model or the suite, and this host is told to stay offline"
        raise EvalkitError(what, where=str(wanted.stage), code=Exit.MISSING,
                           fix="`evalkit stage` where there is a network")  # fmt: skip
    words = ["stage", "--to", str(wanted.stage), "--suite", wanted.suite]
    words += [word for model in wanted.models for word in ("--model", model)]
    words += [word for word in wanted.plan if word in ("--allow-pickle", "--trust-remote-code")]
    if "--revision" in wanted.plan:
        words += ["--revision", wanted.plan[wanted.plan.index("--revision") + 1]]
    command = [*template.COMMAND[:-1], *words]
    in_image = place.runtime is not None
    code = start.start(place, words) if in_image else subprocess.run(command).returncode
    if code:
        raise EvalkitError(
            f"it can't be staged from here (exit code {code}; what is wrong stands above)",
            fix="`evalkit stage` where there is a network", code=Exit.MISSING,
        )  # fmt: skip


def _place(wanted: Wanted) -> Place:
    """Return where evalkit runs: in this environment, or in the image by the first program here."""
    if wanted.sif is None:
        return NATIVE
    here = [name for name in OF_SIFS if shutil.which(name)]
    return runtimes.choose(here[0] if here else OF_SIFS[0], os.fspath(wanted.sif))


def _array(tasks: list[int], wanted: Wanted) -> str:
    limit = f"%{wanted.max_running}" if wanted.max_running else ""
    return submission.ranges(tasks) + limit


def _send(sent: Submission, todo: list[int], queued: int, wanted: Wanted, say: Say) -> Submission:
    scripts = sent.folder
    finished = all(folder.read(member.run).finished for member in sent.members)
    if not todo and (queued or finished):
        say("nothing to send: " + (f"{queued} tasks are in the queue" if queued else "finished"))
        return sent
    array, after = "", []
    if todo:
        array = slurm.send(scripts / "array.sbatch", f"--array={_array(todo, wanted)}")
        after = [f"--dependency=afterany:{array}"]
    if queued:  # wait for the earlier finishing job, too
        after[0] += f":{sent.jobs[-1][0]}"
    last = slurm.send(scripts / "finish.sbatch", *after)
    sent.note(array, last)
    say(f"sent: {len(todo)} of {len(sent.members) * sent.shards} shards as job {array or '-'}, and"
        f" job {last} to finish")  # fmt: skip
    say(f"watch it: evalkit status {shlex.quote(os.path.relpath(scripts))} --watch")
    return sent


def recipe(wanted: Wanted, site: Site, sent: Submission, place: Place) -> Recipe:
    """Return everything that the scripts depend on. `place`: where evalkit runs on a node."""
    out = wanted.out.absolute()
    suite = Path(wanted.suite).absolute() if Path(wanted.suite).is_file() else None
    shown = _shown(wanted, suite)
    packed = wanted.stage.absolute() if wanted.stage and wanted.packed else None
    image = place.image.reference if place.image else ""
    needed = [out, *shown, *([packed] if packed else []), *([Path(image)] if image else [])]
    shown += [Path(bind) for bind in site.binds]
    environment = _environment(wanted)
    words = ["--device", "auto"] if (wanted.gpus_per_shard or 1) > 1 else []
    words += ["--workers", str(wanted.workers)] if wanted.workers is not None else []
    words += ["--adapter", str(works.real(wanted.adapter))] if wanted.adapter else []
    return Recipe(
        submission=sent,
        name=wanted.array_name,
        evalkit=command_on_node(
            place, out, shown, environment, packed, gpus=bool(site.wants_gpu())
        ),
        environment={} if image else environment,
        needed=tuple(dict.fromkeys([*needed, *map(Path, site.binds if image else ())])),
        site=site,
        stage=wanted.mount,
        suite=str(suite) if suite else None,
        image=image,
        grace_s=wanted.grace_s,
        program=place.runtime.name if place.runtime else "",
        path=_path(place),
        words=tuple(words),
    )


def _shown(wanted: Wanted, suite: Path | None) -> list[Path]:
    """Return what a node must have besides results: models, adapter, suite, stage or caches."""
    named = [_local(model) for model in wanted.models]
    named += [works.real(wanted.adapter)] if wanted.adapter else []
    shown = {path for model in filter(None, named) for path in (model, *works.linked_from(model))}
    shown |= works.suite_files(suite) if suite else set()
    if wanted.stage is not None:
        return [*sorted(shown), *([] if wanted.packed else [wanted.stage.absolute()])]
    for model in wanted.models:
        shown |= works.elsewhere(model, os.environ)
    caches = works.caches(os.environ).values()
    return [*sorted(shown), *(folder for folder in caches if folder.is_dir())]


def _path(place: Place) -> str:
    programs = ["sbatch", *([place.runtime.name] if place.runtime else [])]
    folders = [str(Path(path).parent) for path in map(shutil.which, programs) if path]
    return ":".join(dict.fromkeys([*script.PATH.split(":"), *folders]))


def command_on_node(
    place: Place, out: Path, shown: list[Path], environment: dict[str, str], packed: Path | None,
    *, gpus: bool,
) -> tuple[str, ...]:  # fmt: skip
    """Return evalkit's command line on a node, up to its arguments: this environment's own, or in
    the image with these folders and no network."""
    if place.runtime is None or place.image is None:
        beside = Path(sys.executable).with_name("evalkit")
        return (os.fspath(beside),) if beside.is_file() else template.COMMAND[:-1]
    work = Work(
        arguments=(),
        folder=os.fspath(out),
        scratch=script.SCRATCH,
        user=f"{os.getuid()}:{os.getgid()}",
        hostname="node",
        readable=tuple(sorted({os.fspath(path) for path in shown})),
        writable=(os.fspath(out),),
        environment=tuple(environment.items()),
        gpus=gpus,
    )
    words = command_line(place.runtime, place.image, work)
    if packed:
        mount = f"type=bind,source={packed},destination={packed.with_suffix('')},image-src=/,ro"
        words[2:2] = ["--mount", mount]
    return tuple(words)


def _environment(wanted: Wanted) -> dict[str, str]:
    if wanted.mount is not None:
        home = stage_manifest.home(wanted.mount)
        caches = {"HF_HUB_CACHE": home / "hub", "HF_DATASETS_CACHE": home / "datasets"}
    else:
        caches = works.caches(os.environ)
    return {
        **{name: os.fspath(path) for name, path in caches.items()},
        "XDG_CACHE_HOME": str(wanted.out.absolute() / submission.FOLDER / "cache"),
        **({private.GROUP: os.environ[private.GROUP]} if private.GROUP in os.environ else {}),
        **hub.OFFLINE,
    }


def _write(made: Recipe, sent: Submission) -> None:
    canon.make_folder(sent.folder / "logs")
    canon.write_atomic(sent.folder / "array.sbatch", script.array(made))
    canon.write_atomic(sent.folder / "finish.sbatch", script.finish(made))
    sent.write()


def _planned(wanted: Wanted, site: Site, place: Place, model: str, say: Say) -> Member:
    """Plan a run in a child process; EvalkitError with its exit code where it fails."""
    say(f"planning {model}")
    local = _local(model)
    member = Member(Path(), str(local) if local else None)
    if place.runtime and place.image:
        place = replace(place, runtime=runtimes.isolated(place.runtime, place.image))
    made = recipe(wanted, Site(binds=site.binds), Submission(Path(), (member,), 1), place)
    adapter = ["--adapter", str(works.real(wanted.adapter))] if wanted.adapter else []
    canon.make_folder(wanted.out / submission.FOLDER / "cache")
    with tempfile.TemporaryDirectory(prefix="evalkit-scratch-") as scratch:
        canon.make_folder(Path(scratch) / EMPTY)
        words = [word.replace(script.SCRATCH, scratch) for word in made.evalkit]
        done = subprocess.run(
            [*words, "plan", "--offline", "--model", str(local or model),
             "--suite", made.suite or wanted.suite, "--out", str(wanted.out.absolute()),
             *adapter, *wanted.plan],
            env={**os.environ, **made.environment}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    if done.returncode or not done.stdout.strip():
        code = Exit(done.returncode) if done.returncode in [*Exit] else Exit.MISSING
        raise EvalkitError(
            f"{model} can't be planned (exit code {done.returncode}; what is wrong stands above)",
            fix="what is not staged has to be: `evalkit stage`",
            code=code or Exit.BUG,
        )
    return replace(member, run=Path(done.stdout.splitlines()[-1]))


def _local(model: str) -> Path | None:
    if model == smollm2.NAME:
        return smollm2.file(offline=False).absolute()
    is_named = model == models.DEMO or models.is_on_hub(model)
    return None if is_named else works.real(Path(model))


def _default_shards(member: Member, wanted: Wanted) -> int:
    """Return as many shards as are worth their start-up, by the first run's plan."""
    speed = wanted.tokens_per_second or measured_speed(member.run) or _guessed(member.run)
    return shards.default_count(folder.plan_of(member.run).body, speed)


def _guessed(run: Path) -> float:
    parameters = folder.read(run).body["model"]["parameters"]
    return 1e14 / (2 * parameters) if isinstance(parameters, int) else 10_000.0


def measured_speed(run: Path) -> float | None:
    """Return the mean tokens a second of a run's workers so far; None before they have answered."""
    speeds = pace.speeds(run, LONG_S)
    return sum(speeds) / len(speeds) if speeds else None
