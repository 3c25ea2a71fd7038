"""Sends runs to Slurm: planned here, answered by a job array of their shards, scored by a job after
it.

Planning is a child process (in the image, where there is one), so that the machine it is sent from
needs no torch. Several models share the stage and, with one tokenizer, the plan; they fill one
array. The same command again sends what is missing and not in the queue, and nothing else.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.host import stage_manifest
from evalkit.host.cluster import script, slurm, submission
from evalkit.host.cluster import site as sites
from evalkit.host.cluster.script import Recipe
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Member, Submission
from evalkit.host.launch import runtimes
from evalkit.host.launch import work as works
from evalkit.host.launch.command import Work, command_line
from evalkit.host.launch.runtimes import Place
from evalkit.inputs import hub
from evalkit.inputs import model as models
from evalkit.inputs.builtin import smollm2
from evalkit.plan import shards
from evalkit.plan.store import Plan
from evalkit.run import child, folder

LONG_S = 10 * shards.START_S  # what worked less than that has mostly been starting up
PACKED = (".sqsh", ".squashfs", ".sqfs")  # a stage in one file, which only an image can see into
NATIVE = Place(None, None, "in this environment")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user wants submitted. `plan`: options that decide what the runs are, as `evalkit plan`
    takes them; `words`: the site file's settings as the command line has them."""

    models: tuple[str, ...]
    suite: str
    out: Path
    plan: tuple[str, ...] = ()
    shards: int | None = None
    max_running: int | None = None
    words: tuple[tuple[str, str | None], ...] = ()
    site: Path | None = None
    stage: Path | None = None
    sif: Path | None = None
    gpus_per_shard: int | None = None
    grace_s: int = 120
    tokens_per_second: float | None = None
    workers: int | None = None
    dry_run: bool = False


def submit(wanted: Wanted, say: Say) -> Submission:
    """Plan the runs, write the scripts and send what is missing.

    Raises EvalkitError where a run can't be planned, its longest batch can't fit, Slurm refuses, or
    what is in the queue was cut otherwise.
    """
    site = sites.read(wanted.site).with_words(dict(wanted.words))
    if wanted.gpus_per_shard:
        site = replace(site, gres=f"gpu:{wanted.gpus_per_shard}")
    _check_stage(wanted)
    place = runtimes.choose("apptainer", os.fspath(wanted.sif)) if wanted.sif else NATIVE
    say(f"runs {place.words}")
    members = tuple(_planned(wanted, place, model, say) for model in wanted.models)
    where = submission.place(wanted.out, Path(wanted.suite).stem, [each.run for each in members])
    before = submission.read(where) if (where / submission.NAME).is_file() else None
    count = wanted.shards or (before.shards if before else _default_shards(members[0], wanted))
    _check_fits(members[0], wanted, site, say)
    sent = Submission(where, members, count, before.jobs if before else ())
    queued = slurm.tasks([array for array, _ in before.jobs]) if before else {}
    if before and queued and before.shards != count:
        raise EvalkitError(
            f"{len(queued)} tasks of {before.shards} shards a run are in the queue still",
            where=str(where),
            fix=f"scancel {' '.join(array for array, _ in before.jobs)}, or leave --shards out",
        )
    todo = [task for task in submission.missing(sent) if task not in queued]
    _write(recipe(wanted, site, sent, place), sent)
    if wanted.dry_run:
        say(f"not sent (--dry-run): sbatch --array={_array(todo, wanted)} {where}/array.sbatch")
        return sent
    return _send(sent, todo, len(queued), wanted, say)


def _check_stage(wanted: Wanted) -> None:
    """EvalkitError unless the stage is whole, as far as it can be seen from here."""
    if wanted.stage is None:
        return
    if wanted.stage.suffix not in PACKED:
        stage_manifest.check(wanted.stage)
    elif not wanted.stage.is_file():
        raise EvalkitError("there is no such stage", where=str(wanted.stage), code=Exit.MISSING)
    elif wanted.sif is None:
        raise EvalkitError(
            "a stage in one file is seen in an image only",
            where=str(wanted.stage),
            fix="give --sif, or the stage's folder",
        )


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
    if queued:  # the finishing job that waits already would come too early
        after[0] += f":{sent.jobs[-1][0]}"
    last = slurm.send(scripts / "finish.sbatch", *after)
    sent.note(array, last)
    say(f"sent: {len(todo)} of {len(sent.members) * sent.shards} shards as job {array or '-'}, and"
        f" job {last} to finish")  # fmt: skip
    say(f"watch it: evalkit status {os.path.relpath(scripts)} --watch")
    return sent


def recipe(wanted: Wanted, site: Site, sent: Submission, place: Place) -> Recipe:
    """What the scripts follow from. `place`: where evalkit runs on a node."""
    out, stage = wanted.out.absolute(), wanted.stage.absolute() if wanted.stage else None
    suite = Path(wanted.suite).absolute() if Path(wanted.suite).is_file() else None
    seen = [Path(member.model) for member in sent.members if member.model]
    seen += sorted(works.suite_files(suite)) if suite else []
    seen += [Path(bind) for bind in site.binds]
    packed = stage if stage is not None and stage.suffix in PACKED else None
    seen += [] if packed else [stage or _home(wanted)]
    image = [Path(place.image.reference)] if place.image else []
    environment = _environment(wanted)
    return Recipe(
        submission=sent,
        name=f"evalkit-{Path(wanted.suite).stem}",
        evalkit=_command(place, out, seen, environment, packed, gpus=bool(site.gres)),
        environment={} if place.image else environment,
        needed=tuple(dict.fromkeys([out, *seen, *([packed] if packed else []), *image])),
        site=site,
        stage=_mount(stage) if stage else None,
        suite=str(suite) if suite else None,
        image=place.image is not None,
        grace_s=wanted.grace_s,
        device="auto" if (wanted.gpus_per_shard or 1) > 1 else None,
        workers=wanted.workers,
    )


def _command(
    place: Place, out: Path, seen: list[Path], environment: dict[str, str], packed: Path | None,
    *, gpus: bool,
) -> tuple[str, ...]:  # fmt: skip
    """evalkit's command line on a node, up to its arguments: this environment's own, or in the
    image, which sees these folders and no network."""
    if place.runtime is None or place.image is None:
        beside = Path(sys.executable).with_name("evalkit")
        own = (os.fspath(beside),) if beside.is_file() else child.COMMAND[:-1]
        return own
    work = Work(
        arguments=(),
        folder=os.fspath(out),
        scratch=script.SCRATCH,
        user=f"{os.getuid()}:{os.getgid()}",
        hostname="node",
        readable=tuple(sorted({os.fspath(path) for path in seen})),
        writable=(os.fspath(out),),
        environment=tuple(environment.items()),
        gpus=gpus,
    )
    words = command_line(place.runtime, place.image, work)
    if packed:
        mount = f"type=bind,source={packed},destination={_mount(packed)},image-src=/,ro"
        words[2:2] = ["--mount", mount]
    return tuple(words)


def _mount(stage: Path) -> Path:
    """Where a stage is seen: a packed one, in the image, beside its file."""
    return stage.with_suffix("") if stage.suffix in PACKED else stage


def _home(wanted: Wanted) -> Path:
    if wanted.stage is not None:
        return stage_manifest.home(_mount(wanted.stage))
    return hub.home(os.environ).absolute()


def _environment(wanted: Wanted) -> dict[str, str]:
    """The variables that evalkit is told on a compute node, and for planning."""
    home = _home(wanted)
    return {
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "XDG_CACHE_HOME": str(wanted.out.absolute() / submission.FOLDER / "cache"),
        **hub.OFFLINE,
    }


def _write(made: Recipe, sent: Submission) -> None:
    canon.make_folder(sent.folder / "logs")
    canon.write_atomic(sent.folder / "array.sbatch", script.array(made))
    canon.write_atomic(sent.folder / "finish.sbatch", script.finish(made))
    sent.write()


def _planned(wanted: Wanted, place: Place, model: str, say: Say) -> Member:
    """Plan a run in a child process; EvalkitError with its exit code where that fails."""
    say(f"planning {model}")
    local = _local(model)
    member = Member(Path(), str(local) if local else None)
    made = recipe(wanted, Site(), Submission(Path(), (member,), 1), place)
    canon.make_folder(wanted.out / submission.FOLDER / "cache")
    with tempfile.TemporaryDirectory(prefix="evalkit-scratch-") as scratch:
        words = [word.replace(script.SCRATCH, scratch) for word in made.evalkit]
        done = subprocess.run(
            [*words, "plan", "--offline", "--model", str(local or model),
             "--suite", made.suite or wanted.suite, "--out", str(wanted.out.absolute()),
             *wanted.plan],
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
    """Where a model lies that a node must see by its path; None for one of the Hub's."""
    if model == smollm2.NAME:
        return smollm2.file(offline=False).absolute()
    is_elsewhere = model == models.DEMO or models.is_on_hub(model)
    return None if is_elsewhere else Path(model).absolute()


def _default_shards(member: Member, wanted: Wanted) -> int:
    """As many shards as pay for their start-up, by the first run's plan."""
    speed = wanted.tokens_per_second or _speed(member.run) or _guessed(member.run)
    return shards.default_count(Plan(member.run).body, speed)


def _guessed(run: Path) -> float:
    """Tokens a second by the model's size, as a GPU of today has it."""
    parameters = folder.read(run).body["model"]["parameters"]
    return 1e14 / (2 * parameters) if isinstance(parameters, int) else 10_000.0


def _speed(run: Path) -> float | None:
    """Tokens a second of one worker, by what a run's segments have answered; None before that."""
    found = submission.speeds(run, LONG_S)
    return sum(found) / len(found) if found else None


def _check_fits(member: Member, wanted: Wanted, site: Site, say: Say) -> None:
    """EvalkitError where the longest batch is longer than the time that there is for it."""
    speed = wanted.tokens_per_second or _speed(member.run)
    longest = max((entry["cost"] for entry in Plan(member.run).body["batches"]), default=0)
    if speed is None:
        say(f"the longest batch is of {longest:,} tokens; how long that takes is not known yet"
            " (--tokens-per-second states it)")  # fmt: skip
        return
    takes, limit = longest / speed, sites.seconds(site.time)
    if takes > wanted.grace_s:
        raise EvalkitError(
            f"the longest batch takes {takes:,.0f} s and would be lost whenever a shard is stopped,"
            f" which gives it {wanted.grace_s} s",
            fix=f"--grace {int(takes * 1.5) + 1}",
        )
    needed = takes + wanted.grace_s + script.MARGIN_S + shards.START_S
    if limit is not None and needed > limit:
        raise EvalkitError(
            f"a time limit of {limit:,} s has no room for the longest batch of {takes:,.0f} s, the"
            f" start and the warning ({needed:,.0f} s together)",
            fix=f"--time {int(needed / 60) + 1} or more",
        )
