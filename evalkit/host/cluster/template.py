"""The text of the two batch scripts, which `script` fills in: bash, and nothing but text."""

RUNS = """set -uo pipefail

submission={submission}
runs=(
{runs})
models=( # where a run's model lies, if its name does not say
{models})
"""

CLEAN = """
# Slurm reads the login shell's environment even where nothing is exported. None of it goes on: not
# what changes Python, nor what other launchers leak. What we want is said here.
for name in $(compgen -e); do
    case $name in
    {kept}) ;;
    *) unset "$name" 2>/dev/null ;;
    esac
done
for name in $(compgen -A function); do
    case $name in
    say | failed | cause | module | _module* | ml) ;;
    *) unset -f "$name" ;;
    esac
done
export PATH={path} LANG=C.UTF-8
{exports}"""

ROOM = """
scratch=$(mktemp -d "{scratch}/evalkit.XXXXXX") ||
    failed 3 "no scratch folder can be made in {scratch}"
mkdir "$scratch/empty"
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch
{load}{into}
evalkit=({command})
"""

# The commands of modules know nothing of `set -u`, and old ones only print that they failed.
LOAD = """
load() {{
    local init
    for init in "${{LMOD_PKG-}}/init/bash" "${{MODULESHOME-}}/init/bash" {inits}; do
        declare -F module >/dev/null && break
        # shellcheck disable=SC1090
        [ -r "$init" ] && . "$init"
    done
    declare -F module >/dev/null || {{ echo "this node has no command module" && return 1; }}
    module load {modules} && ! grep -q "ERROR" "$scratch/modules"
}}
set +u
load >"$scratch/modules" 2>&1 ||
    failed 3 "module load {modules}: $(tr -s '\\n\\t ' ' ' <"$scratch/modules" | head -c 300)"
set -u
"""

INTO = """
for name in {names}; do
    [ -n "${{!name-}}" ] && export "{prefix}_$name=${{!name}}"
done
# No network, unless this node forbids namespaces of it: the record says which.
network=({network})
if ! {probe} 2>"$scratch/network"; then
    {plain} 2>"$scratch/network" ||
        failed 3 "the image can't be started: $(tail -n 1 "$scratch/network")"
    say "this node forbids network namespaces: the image runs with its network"
    network=({without})
fi
"""

CHECK = """"${{evalkit[@]}}" stage --to {folder} --check
code=$?
[ "$code" = 0 ] || failed "$code" "$(cause "$code" "$length")" "$([ "$code" = 1 ] && echo final)"
"""

ARRAY = """{head}{runs}
# 1. Which shard of which run this task is.
me=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
run=${{runs[SLURM_ARRAY_TASK_ID / {shards}]}}
model=${{models[SLURM_ARRAY_TASK_ID / {shards}]}}
shard=$((SLURM_ARRAY_TASK_ID % {shards} + 1))/{shards}
restarts=${{SLURM_RESTART_COUNT:-0}}
log=$submission/logs/$SLURM_ARRAY_TASK_ID.log
say() {{ echo "evalkit shard $shard on ${{SLURMD_NODENAME:-?}}: $*" >&2; }}
{times}say "task $me, start $((restarts + 1))"

# A failure is noted with its node and its cause, so that the finishing job sends this task again,
# elsewhere; unless it is of a kind (`final`) that another node does not mend.
noted=$submission/failures/$SLURM_ARRAY_TASK_ID
rm -f "$noted"
[ -n "${{1-}}" ] || rm -f "$submission/before/$SLURM_ARRAY_TASK_ID"
failed() {{
    say "failed with exit code $1: $2"
    mkdir -p "$submission/failures"
    printf '%s\\n' "${{SLURMD_NODENAME:-?}}" "$2" "${{3-}}" >"$noted"
    exit "$1"
}}
# What was said last of what went wrong, since the log was so long.
cause() {{
    local said
    said=$(tail -c "+$(($2 + 1))" "$log" 2>/dev/null | grep -E '^(evalkit|FATAL|ERROR) *: ')
    said=$(tail -n 1 <<<"$said")
    said=${{said#evalkit: }}
    echo "${{said:-exit code $1}}"
}}
{clean}{room}
# 2. Everything is looked at before work is wasted.
needed=(
{needed})
for path in "${{needed[@]}}"; do
    [ -e "$path" ] || failed 3 "$path can't be seen on this node"
done
[ -w "$run" ] || failed 3 "the run's folder can't be written to: $run"
head -c {scratch_mb}M /dev/zero 2>/dev/null >"$scratch/probe" ||
    failed 3 "scratch is full: {scratch_mb} MB can't be written to {scratch}"
rm -f "$scratch/probe"
length=$(stat -c %s "$log" 2>/dev/null || echo 0)
{check}
# 3. The shard, in the background, so that signals come through. Slurm warns before the time limit
# with USR1 and preempts with TERM; either way the batch in hand is ended and kept.
told=
"${{evalkit[@]}}" execute "$run" ${{model:+--model "$model"}} --shard "$shard" {words} &
payload=$!
trap 'told=USR1; new=1; say "the time limit is near"; kill -USR1 "$payload" 2>/dev/null' USR1
trap 'told=TERM; new=1; say "told to stop"; kill -TERM "$payload" 2>/dev/null' TERM
{timer}while new=; wait "$payload"; code=$?; [ -n "$new" ]; do :; done

# 4. Done, to be started again, or failed.
if [ "$code" = 0 ]; then
    say "done"
    exit 0
fi
[ -n "$told" ] || failed "$code" "$(cause "$code" "$length")" "$([ "$code" = 1 ] && echo final)"
# A task that is cancelled, or put back by Slurm itself, is not running any more: leave it so.
if ! scontrol show job -o "$me" | grep -q "JobState=RUNNING"; then
    say "stopped; what is done is kept"
elif [ "$restarts" -ge {max_restarts} ]; then
    failed 75 "started {max_restarts} times and not done: submit again to go on" final
{over}else
    say "stopped; it is put back into the queue"
    trap - USR1 TERM EXIT
    {closed}rm -rf "$scratch"
    scontrol requeue "$me" && sleep 60 # Slurm ends the script meanwhile
fi
exit "$code"
"""

# The total wall time: every start is noted with its end, which for one that was killed is when its
# log was last written to.
TIMES = """begun=$(date +%s)
times=$submission/times/$me
mkdir -p "$submission/times"
[ -s "$times.open" ] && echo "$(cat "$times.open") $(stat -c %Y "$log")" >>"$times"
echo "$begun" >"$times.open"
used=0
while read -r from to; do used=$((used + to - from)); done < <(cat "$times" 2>/dev/null)
"""
TIMER = """# What is left of the total wall time.
(sleep $(({most} > used ? {most} - used : 0)) && kill -USR1 $$) 2>/dev/null &
timer=$!
trap 'kill "$timer" 2>/dev/null; rm -rf "$scratch"' EXIT
"""
CLOSED = 'echo "$begun $(date +%s)" >>"$times" && rm "$times.open"\n    '
OVER = """elif [ $((used + $(date +%s) - begun)) -ge {most} ]; then
    failed 75 "its total wall time of {shown} is used up: submit again to go on" final
"""

FINISH = """{head}{runs}
round=${{1:-0}}
say() {{ echo "evalkit: $*" >&2; }}
failed() {{ say "failed with exit code $1: $2" && exit "$1"; }}
{clean}
# 1. Shards that failed, for no reason of Slurm's, are tried again on other nodes, twice, but not
# with a cause that has come again, nor where another node does not help.
shopt -s nullglob
again=()
nodes=()
for noted in "$submission"/failures/*; do
    task=${{noted##*/}}
    mapfile -t lines <"$noted"
    before=$(sed -n 2p "$submission/before/$task" 2>/dev/null)
    say "task $task failed on ${{lines[0]}}: ${{lines[1]}}"
    if [ -z "${{lines[2]-}}" ] && [ "${{lines[1]}}" != "$before" ]; then
        again+=("$task")
        nodes+=("${{lines[0]}}")
    fi
done
if [ "${{#again[@]}}" -gt 0 ] && [ "$round" -lt {rounds} ]; then
    mkdir -p "$submission/before"
    for task in "${{again[@]}}"; do mv "$submission/failures/$task" "$submission/before/"; done
    tasks=$(printf '%s\\n' "${{again[@]}}" | sort -n | paste -sd,)
    bad=$(printf '%s\\n' "${{nodes[@]}}" | sort -u)
    others=$(sinfo -h -N -p {partition} -o %N | sort -u | grep -vxF "$bad")
    exclude=(${{others:+"--exclude=$(paste -sd, <<<"$bad")"}})
    job=$(sbatch --parsable --array="$tasks" ${{exclude[@]+"${{exclude[@]}}"}} \\
        "$submission/array.sbatch" again) || exit 3
    next=$(sbatch --parsable --dependency="afterany:$job" "$submission/finish.sbatch" \\
        $((round + 1))) || exit 3
    echo "[\\"$job\\",\\"$next\\"]" >>"$submission/jobs.jsonl"
    say "tasks $tasks failed on $(paste -sd, <<<"$bad") and are sent again: jobs $job, $next"
    exit 75
fi
{room}
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
