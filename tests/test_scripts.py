"""The batch scripts run by bash, with stand-ins for evalkit and Slurm: what reaches evalkit, what
stops a shard and with which cause, and what the finishing job sends again."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.host.cluster import script, watch
from evalkit.host.cluster.script import Recipe
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Member, Submission

MODULE = """
module() {{ # as Lmod's, which knows nothing of set -u
    [ -z "$NOT_SET_BY_ANYBODY" ] || return 9
    {body}
}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A submission of two shards whose folders have spaces in their names."""
    out = tmp_path / "us er" / "results"
    run = out / "m" / "suite-1"
    run.mkdir(parents=True)
    sent = Submission(out / "submissions" / "suite-0123", (Member(run, None),), 2)
    (sent.folder / "logs").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "sinfo", "sbatch"):
        program(tmp_path, name, f'echo {name} "$@" >>"{tmp_path}/asked"; echo 77')
    evalkit = program(tmp_path, "evalkit", f'echo "$@" >>"{tmp_path}/told"; env >"{tmp_path}/env"')
    return Recipe(
        sent, "m.suite", (str(evalkit),), {"HF_HUB_OFFLINE": "1"}, (out,), Site(), None, None, "",
        120, path=f"{tmp_path}/bin:{script.PATH}",
    )  # fmt: skip


def program(folder: Path, name: str, text: str) -> Path:
    """A stand-in for a program."""
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def ran(text: str, recipe: Recipe, *words: str, task: int = 0, **env: str) -> tuple[int, str]:
    """Run a script as Slurm would; its exit code and its log."""
    finishing = "finish.sbatch" in text and "--shard" not in text
    log = recipe.submission.folder / "logs" / ("finish.log" if finishing else f"{task}.log")
    path = recipe.submission.folder / "sent"
    path.write_text(text)
    slurm = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": str(task), "SLURMD_NODENAME": "n1",
             "SLURM_JOB_PARTITION": "main"}  # fmt: skip
    with log.open("ab") as out:
        done = subprocess.run(
            ["bash", path, *words], stdout=out, stderr=out, timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **slurm, **env},
        )  # fmt: skip
    return done.returncode, log.read_text()


def test_nothing_of_the_login_shells_environment_reaches_evalkit(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Slurm reads it even with --export=NONE."""
    leaked = {"PYTHONPATH": "/tmp", "LD_PRELOAD": "", "RANK": "3", "HF_TOKEN": "hf_planted",
              "BASH_FUNC_head%%": "() { echo stolen; }", "OMP_NUM_THREADS": "7"}  # fmt: skip
    code, log = ran(script.array(recipe), recipe, CUDA_VISIBLE_DEVICES="1", **leaked)
    assert code == 0, log
    there = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert not there.keys() & leaked.keys()
    assert there["CUDA_VISIBLE_DEVICES"] == "1" and there["HF_HUB_OFFLINE"] == "1"
    assert "--shard 1/2 --offline --grace 120" in (tmp_path / "told").read_text()
    assert "stolen" not in log


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('echo "Lmod has detected the following error: unknown: $2" >&2; return 1', "unknown: gpu"),
        ('echo "ERROR:105: Unable to locate a modulefile for $2" >&2', "Unable to locate"),
    ],
    ids=["lmod", "an old one that returns 0"],
)
def test_a_module_that_is_not_there_stops_the_shard_with_what_it_said(
    body: str, words: str, recipe: Recipe, tmp_path: Path
) -> None:
    init = tmp_path / "init"
    init.mkdir()
    (init / "bash").write_text(MODULE.format(body=body))
    mine = replace(recipe, site=Site(modules=("gpu/1",)))
    code, log = ran(script.array(mine), mine, LMOD_PKG=str(tmp_path))
    assert code == 3
    assert "failed with exit code 3: module load gpu/1: " in log and words in log
    assert not (tmp_path / "told").exists()


def test_a_module_that_is_there_is_loaded_and_its_variables_stay(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(MODULE.format(body="export LOADED=$2"))
    mine = replace(recipe, site=Site(modules=("gpu/1",)))
    assert ran(script.array(mine), mine, LMOD_PKG=str(tmp_path))[0] == 0
    assert "LOADED=gpu/1" in (tmp_path / "env").read_text()


def test_the_finishing_job_sends_again_before_it_needs_anything_itself(
    recipe: Recipe, tmp_path: Path
) -> None:
    """It loads the same modules, and stopped at the one that was not there."""
    mine = replace(recipe, site=Site(modules=("gpu/1",)))
    text = script.array(mine).replace("/etc/profile.d/", "/nowhere/").replace("/usr/share/", "/no/")
    assert ran(text, mine)[0] == 3
    code, log = ran(script.finish(mine), mine)
    assert code == 75 and "task 0 failed on n1: module load gpu/1" in log


def test_a_node_without_modules_is_told(recipe: Recipe) -> None:
    mine = replace(recipe, site=Site(modules=("gpu/1",)))
    text = script.array(mine).replace("/etc/profile.d/", "/nowhere/").replace("/usr/share/", "/no/")
    code, log = ran(text, mine)
    assert code == 3 and "this node has no command module" in log


def test_a_cause_is_noted_shown_by_status_and_sent_again_once(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Sixty shards used to be sent twice more for one folder that no node can see, and the log said
    an exit code."""
    lacking = replace(recipe, needed=(Path("/not/there"),))
    folder, cause = recipe.submission.folder, "/not/there can't be seen on this node"
    for task in (0, 1):
        assert ran(script.array(lacking), recipe, task=task)[0] == 3
    assert recipe.submission.cause(1) == f"{cause} (on n1)"
    program(tmp_path, "sinfo", "echo n1; echo n2")
    code, log = ran(script.finish(recipe), recipe)
    assert code == 75 and "tasks 0,1 failed on n1 and are sent again" in log
    assert f"task 0 failed on n1: {cause}" in log
    asked = (tmp_path / "asked").read_text()
    assert f"--array=0,1 --exclude=n1 {folder}/array.sbatch again" in asked
    for task in (0, 1):
        ran(script.array(lacking), recipe, "again", task=task, SLURMD_NODENAME="n2")
    (tmp_path / "asked").unlink()
    _, log = ran(script.finish(recipe), recipe, "1")
    assert f"task 0 failed on n2: {cause}" in log.split("sent again")[1]
    assert not (tmp_path / "asked").exists(), "sent again with the same cause"
    assert "finish" in (tmp_path / "told").read_text()
    assert cause in watch._shard(
        recipe.submission, 0, watch.Progress(False, [1, 1], [1, 1], [1, 1], [0, 0]), None
    )


def test_another_cause_is_sent_again_and_a_failed_check_is_not(
    recipe: Recipe, tmp_path: Path
) -> None:
    said = "echo 'evalkit: the GPU has fallen off the bus' >&2"
    program(tmp_path, "evalkit", f"{said}; exit 3")
    assert ran(script.array(recipe), recipe)[0] == 3
    assert recipe.submission.cause(0) == "the GPU has fallen off the bus (on n1)"
    assert ran(script.finish(recipe), recipe)[0] == 75
    program(tmp_path, "evalkit", "echo 'evalkit: level tree is not its own' >&2; exit 1")
    assert ran(script.array(recipe), recipe, "again")[0] == 1
    (tmp_path / "asked").unlink()
    ran(script.finish(recipe), recipe, "1")
    assert not (tmp_path / "asked").exists(), "no other node mends this"


def test_the_walltime_over_all_starts_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    """One start was ended by itself after 43 s, one was killed, which its log's time tells."""
    mine = replace(recipe, site=Site(max_walltime="1"))
    times = mine.submission.folder / "times"
    times.mkdir()
    (times / "5_0").write_text("1000 1043\n")
    (times / "5_0.open").write_text("2000\n")
    log = mine.submission.log(0)
    log.touch()
    os.utime(log, (2015, 2015))
    program(tmp_path, "evalkit", "trap 'exit 75' USR1; for n in $(seq 200); do sleep 0.05; done")
    program(tmp_path, "scontrol", "echo JobState=RUNNING")
    code, said = ran(script.array(mine), mine)
    assert (times / "5_0").read_text() == "1000 1043\n2000 2015\n"
    assert code == 75 and "its total wall time of 1 is used up" in said


def test_a_node_that_forbids_network_namespaces_is_gone_without_and_told(
    recipe: Recipe, tmp_path: Path
) -> None:
    program(tmp_path, "apptainer", """
        case "$*" in *"exec --net"*) echo "ERROR  : no namespaces" >&2; exit 1 ;; esac
        case "$*" in *" exec "*) exit 0 ;; esac
        echo "$@" >"${0%/*}/../told"
    """)  # fmt: skip
    words = ("apptainer", "run", *script.NO_NETWORK, "--pwd", "/out", "x.sif")
    code, log = ran(script.array(mine := replace(recipe, evalkit=words, image="x.sif")), mine)
    assert code == 0 and "this node forbids network namespaces" in log
    assert "run --env EVALKIT_NETWORK=open --pwd" in (tmp_path / "told").read_text()
    program(tmp_path, "apptainer", "echo 'FATAL:   no such image' >&2; exit 255")
    code, log = ran(script.array(mine), mine)
    assert code == 3 and "the image can't be started: FATAL: no such image" in " ".join(log.split())
