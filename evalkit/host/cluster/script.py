"""The two batch scripts of a submission: text, and nothing but text.

Each is whole in itself and made to be read: a user can look at it, change it and send it by hand.
The array's script answers one shard; the finishing one scores what is answered, sends again what
failed, or says what is missing. Slurm's warning before the time limit, a preemption and a dead node
all end in the same: the batch in hand is kept if there is time, and the task starts again. The
text itself stands in `template`.
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
MARGIN_S = 60  # that Slurm's warning may come early, and for what follows the last batch
MAX_RESTARTS = 50  # by preemption, time limit or dead nodes, of one task
MAX_ROUNDS = 2  # in which shards that failed for another reason are sent again, elsewhere
SCRATCH_MB = 64  # that must be free
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
# Variables that a node has of Slurm and of itself: which GPUs, whose job, where it is.
KEPT = ("SLURM*", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES",
        "ZE_AFFINITY_MASK", "HOME", "USER", "LOGNAME", "HOSTNAME", "PWD", "TMPDIR")  # fmt: skip
MODULES = ("MODULEPATH", "MODULESHOME", "LMOD_CMD", "LMOD_DIR", "LMOD_PKG", "LMOD_ROOT")
# Where the command `module` comes from where no variable says it.
INITS = ("/etc/profile.d/modules.sh", "/etc/profile.d/lmod.sh", "/etc/profile.d/z00_lmod.sh",
         "/usr/share/lmod/lmod/init/bash", "/usr/share/modules/init/bash")  # fmt: skip
TOLD = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
        "SLURM_JOB_PARTITION", "CUDA_VISIBLE_DEVICES")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the scripts of a submission follow from. `evalkit`: the command, in or out of
    a container, `$scratch` being the task's temporary folder; `needed`: paths that a node must see;
    `environment`: variables for evalkit, where its command does not say them; `image`: the SIF, and
    `program`: what starts it; `path`: where a node's programs are; `words`: further ones for
    `evalkit execute`."""

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
    """The script of the array's tasks."""
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
        check=_check(recipe),
        words=shlex.join(words),
        times=template.TIMES if most else "",
        timer=template.TIMER.format(**limit) if most else "",
        over=template.OVER.format(**limit) if most else "",
        closed=template.CLOSED if most else "",
    )


def finish(recipe: Recipe) -> str:
    """The script of the job that comes after the array."""
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
    """An option as a line of #SBATCH has it, where only what stands in quotes may have spaces."""
    name, equals, value = option.partition("=")
    if not re.search(r"[\s'\"\\#]", option):
        return option
    return name + equals + '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _escaped(path: Path) -> str:
    """A path in the name of a log, where % stands for what Slurm knows."""
    return str(path).replace("%", "%%")


def _runs(recipe: Recipe) -> str:
    """Whom the array's tasks work for."""
    submission = recipe.submission
    return template.RUNS.format(
        submission=shlex.quote(str(submission.folder)),
        runs=_list(str(member.run) for member in submission.members),
        models=_list(member.model or "" for member in submission.members),
    )


def _clean(recipe: Recipe) -> str:
    """The environment, without what a login shell brings."""
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
    """The scratch folder, the modules and the command."""
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
    """What the image is told of Slurm, and whether it has a network on this node."""
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
    """A word for bash; one with a comma in quotes, where shellcheck sees a mistyped list else, and
    one with the scratch folder in such that let it through."""
    if SCRATCH in word:
        return '"' + re.sub(r'(["`\\])', r"\\\1", word) + '"'
    return f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)


def _check(recipe: Recipe) -> str:
    if recipe.stage is None:
        return ""
    folder = shlex.quote(str(recipe.stage))
    return template.CHECK.format(folder=folder)


def _list(words: Iterable[str]) -> str:
    return "".join(f"    {shlex.quote(word)}\n" for word in words)
