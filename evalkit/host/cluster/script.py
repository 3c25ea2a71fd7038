"""Fills in the two batch scripts of a submission: a pure function of a recipe and `template`.

A user can read a script, change it and send it by hand. The array's script answers one shard; the
finishing one scores runs, sends failed shards again, or says what is missing. After Slurm's warning
before the time limit, or a dead node, a task starts again where it was.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.host.cluster import site as sites
from evalkit.host.cluster import template
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Submission
from evalkit.host.launch.command import NO_NETWORK, SHARED_NETWORK

SCRATCH = "$scratch"  # the scripts' variable, as it stands in a command
MARGIN_S = 60  # for a warning that comes early, and for the end of the last batch
MAX_RESTARTS = 50  # of one task: by preemption, time limit or dead nodes
MAX_ROUNDS = 2  # in which shards that failed otherwise are sent to other nodes
SCRATCH_MB = 64  # that must be free
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
# Variables of Slurm and of the node that a task keeps.
KEPT = ("SLURM*", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES",
        "ZE_AFFINITY_MASK", "HOME", "USER", "LOGNAME", "HOSTNAME", "PWD", "TMPDIR")  # fmt: skip
MODULES = ("MODULEPATH", "MODULESHOME", "LMOD_CMD", "LMOD_DIR", "LMOD_PKG", "LMOD_ROOT")
# Files that define the command `module`, if no variable names one.
INITS = ("/etc/profile.d/modules.sh", "/etc/profile.d/lmod.sh", "/etc/profile.d/z00_lmod.sh",
         "/usr/share/lmod/lmod/init/bash", "/usr/share/modules/init/bash")  # fmt: skip
TOLD = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
        "SLURM_JOB_PARTITION", "CUDA_VISIBLE_DEVICES")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the scripts of a submission depend on. `evalkit`: its command, in a container
    or not, with `$scratch` for the task's temporary folder; `needed`: paths that must exist on a
    node; `environment`: variables for evalkit, unless its command sets them; `image`: the SIF;
    `program`: what starts it; `path`: PATH on a node; `words`: further options of `evalkit
    execute`."""

    submission: Submission
    name: str
    evalkit: tuple[str, ...]
    environment: dict[str, str]
    needed: tuple[Path, ...]
    site: Site
    stage: Path | None
    suite: str | None
    image: str
    grace_s: int
    program: str = "apptainer"
    path: str = PATH
    words: tuple[str, ...] = ()


def array(recipe: Recipe) -> str:
    """Return the script of the array's tasks."""
    submission, site = recipe.submission, recipe.site
    options = [
        f"--job-name={recipe.name}",
        f"--output={_escaped(submission.folder)}/logs/%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{recipe.grace_s + MARGIN_S}",
        "--export=NONE",
        "--nodes=1",
        "--ntasks=1",
        *site.options(),
    ]
    most = sites.seconds(site.max_walltime)
    limit = {"most": most, "shown": site.max_walltime}
    words = ("--offline", "--grace", str(recipe.grace_s), *recipe.words)
    check = template.CHECK.format(folder=shlex.quote(str(recipe.stage))) if recipe.stage else ""
    return template.ARRAY.format(
        head=_head(options, f"Shards of {len(submission.members)} runs, {submission.shards} each"),
        runs=_runs(recipe),
        clean=_clean(recipe),
        room=_room(recipe),
        shards=submission.shards,
        max_restarts=MAX_RESTARTS,
        scratch=site.scratch,
        scratch_mb=SCRATCH_MB,
        needed=_list(map(str, recipe.needed)),
        check=check,
        words=shlex.join(words),
        times=template.TIMES if most else "",
        timer=template.TIMER.format(**limit) if most else "",
        over=template.OVER.format(**limit) if most else "",
        closed=template.CLOSED if most else "",
    )


def finish(recipe: Recipe) -> str:
    """Return the script of the job that runs after the array."""
    folder = recipe.submission.folder
    options = [
        f"--job-name={recipe.name}-finish",
        f"--output={_escaped(folder)}/logs/finish.log",
        "--open-mode=append",
        "--requeue",
        "--export=NONE",
        "--nodes=1",
        "--ntasks=1",
        *recipe.site.finishing(),
    ]
    words = ["--offline", *(["--suite", recipe.suite] if recipe.suite else [])]
    partition = recipe.site.partition
    return template.FINISH.format(
        head=_head(options, "The records of what the array answered"),
        runs=_runs(recipe),
        clean=_clean(recipe),
        room=_room(recipe),
        rounds=MAX_ROUNDS,
        partition=shlex.quote(partition) if partition else '"$SLURM_JOB_PARTITION"',
        words=shlex.join(words),
    )


def _head(options: Sequence[str], what: str) -> str:
    lines = "".join(f"#SBATCH {_directive(option)}\n" for option in options)
    return f"#!/bin/bash\n# {what}. Written by `evalkit submit`, whole in itself.\n{lines}"


def _directive(option: str) -> str:
    """Return an option for a line of #SBATCH: a value with spaces needs double quotes."""
    name, equals, value = option.partition("=")
    if not re.search(r"[\s'\"\\#]", option):
        return option
    return name + equals + '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _escaped(path: Path) -> str:
    """Escape a path for the name of a log, where Slurm replaces %."""
    return str(path).replace("%", "%%")


def _runs(recipe: Recipe) -> str:
    submission = recipe.submission
    return template.RUNS.format(
        submission=shlex.quote(str(submission.folder)),
        runs=_list(str(member.run) for member in submission.members),
        models=_list(member.model or "" for member in submission.members),
    )


def _clean(recipe: Recipe) -> str:
    site = recipe.site
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in recipe.environment.items()
    )
    kept = [*KEPT, *(MODULES if site.modules else ())]
    kept += re.findall(r"\$\{?(\w+)", site.scratch)
    return template.CLEAN.format(
        kept=" | ".join(dict.fromkeys(kept)), path=shlex.quote(recipe.path), exports=exports
    )


def _room(recipe: Recipe) -> str:
    site = recipe.site
    load = template.LOAD.format(modules=shlex.join(site.modules), inits=" ".join(INITS))
    command = " ".join(map(_quoted, recipe.evalkit))
    if recipe.image:
        command = command.replace(" ".join(NO_NETWORK), '"${network[@]}"')
    return template.ROOM.format(
        load=load if site.modules else "",
        scratch=site.scratch,
        into=_into(recipe) if recipe.image else "",
        command=command,
    )


def _into(recipe: Recipe) -> str:
    start = f"{recipe.program} --quiet exec"
    image = f"{shlex.quote(recipe.image)} /bin/true"
    return template.INTO.format(
        names=" ".join(TOLD),
        prefix=f"{recipe.program.upper()}ENV",
        network=" ".join(NO_NETWORK),
        without=" ".join(SHARED_NETWORK),
        probe=f"{start} --net --network none {image}",
        plain=f"{start} {image}",
    )


def _quoted(word: str) -> str:
    """Quote a word for bash: double quotes for one with the scratch variable, single ones for one
    with a comma, which shellcheck takes for a mistyped list."""
    if SCRATCH in word:
        return '"' + re.sub(r'(["`\\])', r"\\\1", word) + '"'
    return f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)


def _list(words: Iterable[str]) -> str:
    return "".join(f"    {shlex.quote(word)}\n" for word in words)
