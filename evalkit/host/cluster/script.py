"""The two batch scripts of a submission: text, and nothing but text.

Each is whole in itself and made to be read: a user can look at it, change it and send it by hand.
The array's script answers one shard; the finishing one scores what is answered, sends again what
failed, or says what is missing. Slurm's warning before the time limit, a preemption and a dead node
all end in the same: the batch in hand is kept if there is time, and the task starts again.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Submission

SCRATCH = "$scratch"  # the scripts' variable, as it stands in a command
MARGIN_S = 60  # that Slurm's warning may come early, and for what follows the last batch
MAX_RESTARTS = 50  # by preemption, time limit or dead nodes, of one task
MAX_ROUNDS = 2  # in which shards that failed for another reason are sent again, elsewhere
SCRATCH_MB = 64  # that must be free
LEAKED = "WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
TOLD = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
        "SLURM_JOB_PARTITION", "CUDA_VISIBLE_DEVICES")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the scripts of a submission follow from. `evalkit`: the command, in or out of
    a container, `$scratch` being the task's temporary folder; `needed`: paths that a node must see;
    `environment`: variables for evalkit, where its command does not say them; `image`: that it runs
    in Apptainer, which takes Slurm's by the prefix `APPTAINERENV_`."""

    submission: Submission
    name: str
    evalkit: tuple[str, ...]
    environment: dict[str, str]
    needed: tuple[Path, ...]
    site: Site
    stage: Path | None
    suite: str | None
    image: bool
    grace_s: int
    device: str | None = None
    workers: int | None = None


def array(recipe: Recipe) -> str:
    """The script of the array's tasks."""
    submission, site = recipe.submission, recipe.site
    options = [
        f"--job-name={recipe.name}",
        f"--output={submission.folder}/logs/%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{recipe.grace_s + MARGIN_S}",
        "--export=NONE",
        "--nodes=1",
        "--ntasks=1",
        *site.sbatch(),
    ]
    words = ["--offline", "--grace", str(recipe.grace_s)]
    words += ["--device", recipe.device] if recipe.device else []
    words += ["--workers", str(recipe.workers)] if recipe.workers is not None else []
    return _ARRAY.format(
        head=_head(options, f"Shards of {len(submission.members)} runs, {submission.shards} each"),
        runs=_runs(recipe),
        surroundings=_surroundings(recipe),
        shards=submission.shards,
        max_restarts=MAX_RESTARTS,
        scratch_mb=SCRATCH_MB,
        needed=_list(map(str, recipe.needed)),
        check=_check(recipe),
        words=shlex.join(words),
    )


def finish(recipe: Recipe) -> str:
    """The script of the job that comes after the array."""
    folder = recipe.submission.folder
    site = Site(**{name: getattr(recipe.site, name) for name in _PLAIN})
    options = [
        f"--job-name={recipe.name}-finish",
        f"--output={folder}/logs/finish.log",
        "--open-mode=append",
        "--requeue",
        "--export=NONE",
        "--nodes=1",
        "--ntasks=1",
        *site.sbatch(),
    ]
    words = ["--offline", *(["--suite", recipe.suite] if recipe.suite else [])]
    return _FINISH.format(
        head=_head(options, "The records of what the array answered"),
        runs=_runs(recipe),
        surroundings=_surroundings(recipe),
        rounds=MAX_ROUNDS,
        words=shlex.join(words),
    )


_PLAIN = ("partition", "account", "qos", "constraint", "time", "mem", "cpus")  # no GPU to score


def _head(options: Sequence[str], what: str) -> str:
    lines = "".join(f"#SBATCH {option}\n" for option in options)
    return f"#!/bin/bash\n# {what}. Written by `evalkit submit`, whole in itself.\n{lines}"


def _runs(recipe: Recipe) -> str:
    """Whom the array's tasks work for."""
    submission = recipe.submission
    return _RUNS.format(
        submission=shlex.quote(str(submission.folder)),
        runs=_list(str(member.run) for member in submission.members),
        models=_list(member.model or "" for member in submission.members),
    )


def _surroundings(recipe: Recipe) -> str:
    """The environment, the scratch folder and the command."""
    site = recipe.site
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in recipe.environment.items()
    )
    return _SURROUNDINGS.format(
        leaked=LEAKED,
        exports=exports,
        load=f"module load {shlex.join(site.modules)}\n" if site.modules else "",
        scratch=site.scratch,
        into=_INTO.format(names=" ".join(TOLD)) if recipe.image else "",
        command=" ".join(map(_quoted, recipe.evalkit)),
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
    return f'"${{evalkit[@]}}" stage --to {folder} --check || failed "$?"\n'


def _list(words: Iterable[str]) -> str:
    return "".join(f"    {shlex.quote(word)}\n" for word in words)


_RUNS = """set -uo pipefail

submission={submission}
runs=(
{runs})
models=( # where a run's model lies, if its name does not say
{models})
"""

_SURROUNDINGS = """
# What other launchers leak is not ours; what we want is said here.
unset {leaked}
{exports}{load}
scratch=$(mktemp -d "{scratch}/evalkit.XXXXXX") ||
    {{ say "no scratch folder can be made in {scratch}"; failed 3; }}
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch
{into}
evalkit=({command})
"""

_INTO = """
for name in {names}; do
    [ -n "${{!name-}}" ] && export "APPTAINERENV_$name=${{!name}}"
done
"""

_ARRAY = """{head}{runs}
# 1. Which shard of which run this task is.
me=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
run=${{runs[SLURM_ARRAY_TASK_ID / {shards}]}}
model=${{models[SLURM_ARRAY_TASK_ID / {shards}]}}
shard=$((SLURM_ARRAY_TASK_ID % {shards} + 1))/{shards}
restarts=${{SLURM_RESTART_COUNT:-0}}
say() {{ echo "evalkit shard $shard on ${{SLURMD_NODENAME:-?}}: $*" >&2; }}
say "task $me, start $((restarts + 1))"

# A failure is noted, so that the finishing job sends this task again, elsewhere.
noted=$submission/failures/$SLURM_ARRAY_TASK_ID
rm -f "$noted"
failed() {{
    say "failed with exit code $1"
    mkdir -p "$submission/failures" && echo "${{SLURMD_NODENAME:-?}}" >"$noted"
    exit "$1"
}}
{surroundings}
# 2. Everything is looked at before work is wasted.
needed=(
{needed})
for path in "${{needed[@]}}"; do
    [ -e "$path" ] || {{ say "$path can't be seen on this node"; failed 3; }}
done
[ -w "$run" ] || {{ say "the run's folder can't be written to: $run"; failed 3; }}
head -c {scratch_mb}M /dev/zero 2>/dev/null >"$scratch/probe" ||
    {{ say "scratch is full: {scratch_mb} MB can't be written to $scratch"; failed 3; }}
rm -f "$scratch/probe"
{check}
# 3. The shard, in the background, so that signals come through. Slurm warns before the time limit
# with USR1 and preempts with TERM; either way the batch in hand is ended and kept.
told=
"${{evalkit[@]}}" execute "$run" ${{model:+--model "$model"}} --shard "$shard" {words} &
payload=$!
trap 'told=USR1; new=1; say "the time limit is near"; kill -USR1 "$payload" 2>/dev/null' USR1
trap 'told=TERM; new=1; say "told to stop"; kill -TERM "$payload" 2>/dev/null' TERM
while new=; wait "$payload"; code=$?; [ -n "$new" ]; do :; done

# 4. Done, to be started again, or failed.
if [ "$code" = 0 ]; then
    say "done"
    exit 0
fi
[ -n "$told" ] || failed "$code"
# A task that is cancelled, or put back by Slurm itself, is not running any more: leave it so.
if ! scontrol show job -o "$me" | grep -q "JobState=RUNNING"; then
    say "stopped; what is done is kept"
elif [ "$restarts" -ge {max_restarts} ]; then
    say "stopped, and started {max_restarts} times before: given up; submit again to go on"
else
    say "stopped; it is put back into the queue"
    trap - USR1 TERM
    rm -rf "$scratch"
    scontrol requeue "$me" && sleep 60 # Slurm ends the script meanwhile
fi
exit "$code"
"""

_FINISH = """{head}{runs}
round=${{1:-0}}
say() {{ echo "evalkit: $*" >&2; }}
failed() {{ exit "$1"; }}
{surroundings}
# 1. Shards that failed, for no reason of Slurm's, are tried again on other nodes, twice.
shopt -s nullglob
noted=("$submission"/failures/*)
if [ "${{#noted[@]}}" -gt 0 ] && [ "$round" -lt {rounds} ]; then
    tasks=$(printf '%s\\n' "${{noted[@]##*/}}" | sort -n | paste -sd,)
    bad=$(cat "${{noted[@]}}" | sort -u)
    rm "${{noted[@]}}"
    others=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u | grep -vxF "$bad")
    exclude=(${{others:+"--exclude=$(paste -sd, <<<"$bad")"}})
    job=$(sbatch --parsable --array="$tasks" "${{exclude[@]}}" "$submission/array.sbatch") || exit 3
    next=$(sbatch --parsable --dependency="afterany:$job" "$submission/finish.sbatch" \\
        $((round + 1))) || exit 3
    echo "[\\"$job\\",\\"$next\\"]" >>"$submission/jobs.jsonl"
    say "tasks $tasks failed on $(paste -sd, <<<"$bad") and are sent again: jobs $job, $next"
    exit 75
fi

# 2. Each run's record, or what it lacks.
code=0
for index in "${{!runs[@]}}"; do
    run=${{runs[index]}} model=${{models[index]}}
    "${{evalkit[@]}}" finish "$run" ${{model:+--model "$model"}} {words} && continue
    code=$?
    "${{evalkit[@]}}" status "$run"
done

# 3. All of them side by side.
if [ "$code" = 0 ] && [ "${{#runs[@]}}" -gt 1 ]; then
    "${{evalkit[@]}}" compare "${{runs[@]}}" || code=$?
fi
exit "$code"
"""
