"""Sends runs to Slurm: planned here, answered by a job array of their shards, scored by a job after
it.

Planning is a child process (in the image, where there is one), so that the machine it is sent from
needs no torch. Several models share the stage and, with one tokenizer, the plan; they fill one
array. The same command again sends what is missing and not in the queue, and nothing else.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit import canon, container, folder, script, shards, slurm, staged, submission
from evalkit import site as sites
from evalkit.errors import EvalkitError, Exit
from evalkit.plan import Plan
from evalkit.script import Recipe
from evalkit.site import Site
from evalkit.submission import Member, Submission

DEMO = "demo"
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
    if wanted.stage is not None and wanted.stage.is_dir():
        staged.check(wanted.stage)
    members = tuple(_planned(wanted, site, model, say) for model in wanted.models)
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
    _write(recipe(wanted, site, sent), sent)
    if wanted.dry_run:
        say(f"not sent (--dry-run): sbatch --array={_array(todo, wanted)} {where}/array.sbatch")
        return sent
    return _send(sent, todo, len(queued), wanted, say)


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


def recipe(
    wanted: Wanted, site: Site, sent: Submission, scratch: str = container.SCRATCH
) -> Recipe:
    """What the scripts follow from. `scratch`: the task's temporary folder."""
    out, stage = wanted.out.absolute(), wanted.stage.absolute() if wanted.stage else None
    home = _home(wanted)
    suite = Path(wanted.suite).absolute() if Path(wanted.suite).is_file() else None
    read = [Path(member.model) for member in sent.members if member.model]
    read += [suite.parent] if suite else []
    read += [Path(bind) for bind in site.binds]
    packed = stage is not None and stage.is_file()
    read += [] if packed or (stage is None and not home.is_dir()) else [stage or home]
    gpus = bool(site.gres)
    environment = _environment(wanted)
    command = container.native()
    if wanted.sif:
        into = {_mount(stage): stage} if packed and stage else {}
        command = container.apptainer(
            wanted.sif.absolute(),
            written=[out],
            read=read,
            packed=into,
            gpus=gpus,
            scratch=scratch,
        )
        environment["EVALKIT_IMAGE"] = f"sha256:{canon.sha256_file(wanted.sif)}"
    return Recipe(
        submission=sent,
        name=f"evalkit-{Path(wanted.suite).stem}",
        evalkit=command,
        environment=environment,
        needed=tuple(dict.fromkeys([out, *read, *([wanted.sif.absolute()] if wanted.sif else [])])),
        site=site,
        stage=_mount(stage) if stage else None,
        suite=str(suite) if suite else None,
        image=wanted.sif is not None,
        grace_s=wanted.grace_s,
        device="auto" if (wanted.gpus_per_shard or 1) > 1 else None,
        workers=wanted.workers,
    )


def _mount(stage: Path | None) -> Path:
    """Where a stage is seen: a packed one, in the image, beside its file."""
    assert stage is not None, "asked for one only"
    return stage if not stage.is_file() else stage.with_suffix("")


def _home(wanted: Wanted) -> Path:
    if wanted.stage is not None:
        return staged.home(_mount(wanted.stage))
    told = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(told).absolute()


def _environment(wanted: Wanted) -> dict[str, str]:
    """The variables that evalkit is told on a compute node, and for planning: all of them."""
    return {
        "HF_HOME": str(_home(wanted)),
        "XDG_CACHE_HOME": str(wanted.out.absolute() / submission.FOLDER / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
    }


def _write(made: Recipe, sent: Submission) -> None:
    canon.make_folder(sent.folder / "logs")
    canon.write_atomic(sent.folder / "array.sbatch", script.array(made))
    canon.write_atomic(sent.folder / "finish.sbatch", script.finish(made))
    sent.write()


def _planned(wanted: Wanted, site: Site, model: str, say: Say) -> Member:
    """Plan a run in a child process; EvalkitError with its exit code where that fails."""
    say(f"planning {model}")
    local = Path(model).absolute() if model != DEMO and Path(model).is_dir() else None
    member = Member(Path(), str(local) if local else None)
    empty = Submission(Path(), (member,), 1)
    here = os.environ.get("TMPDIR", "/tmp")
    made = recipe(wanted, replace(site, gres=""), empty, scratch=here)
    canon.make_folder(Path(made.environment["XDG_CACHE_HOME"]))
    environment = {**os.environ, **made.environment}
    environment |= {f"APPTAINERENV_{name}": value for name, value in made.environment.items()}
    done = subprocess.run(
        [*made.evalkit, "plan", "--offline", "--model", str(local or model),
         "--suite", made.suite or wanted.suite, "--out", str(wanted.out.absolute()), *wanted.plan],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode or not done.stdout.strip():
        code = Exit(done.returncode) if done.returncode in [*Exit] else Exit.BUG
        raise EvalkitError(
            f"{model} can't be planned (exit code {done.returncode}; what is wrong stands above)",
            fix="what is not staged has to be: `evalkit stage`",
            code=code or Exit.BUG,
        )
    return replace(member, run=Path(done.stdout.splitlines()[-1]))


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
    found = submission.speeds(run)
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
