"""Runs on a real Slurm cluster with no network: whatever happens to their jobs, the answers are
those of a run that never saw a cluster."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from cluster import MODELS, Cluster, User, slurm

from evalkit.base import canon
from evalkit.host.cluster import submission
from evalkit.judge.verify import verify

pytestmark = pytest.mark.cluster


def check(cluster: Cluster, alone: Callable[[str], str], models: int = 1) -> None:
    """Each model's record is there, verifies, has the same answers and says where it ran."""
    records = cluster.records()
    assert set(records) == set(MODELS[:models]), cluster.logs()
    for name, record in records.items():
        assert record["ids"]["answers"] == alone(name)
        told = [segment["slurm"] for segment in record["segments"] if segment["batches"]]
        assert all("SLURM_ARRAY_TASK_ID" in ids for ids in told), told
        if "--sif" in cluster.inside:
            assert record["environment"]["runtime"] == "apptainer"
    for path in cluster.out.glob("someone__*/*/record.json"):
        report = verify(path.parent)
        assert report.consistent, report.lines()


def restarts(cluster: Cluster) -> int:
    """How often a task was started again, by its log."""
    return cluster.logs().count(", start 2") + cluster.logs().count(", start 3")


def test_three_models_survive_being_preempted_twice(
    cluster: Cluster, alone: Callable[[str], str]
) -> None:
    """One submission, one array of six tasks, one table at the end."""
    folder = cluster.submit("--shards", "2", models=3).folder
    for _ in range(2):
        before = cluster.answered()
        cluster.wait(lambda before=before: cluster.answered() > before and cluster.running() == 2)
        cluster.preempt()
    cluster.wait()
    check(cluster, alone, models=3)
    assert restarts(cluster) >= 2
    compared = (folder / "logs" / "finish.log").read_text()
    assert all(name in compared for name in MODELS) and "McNemar" in compared


def test_a_dead_node_and_another_number_of_shards_change_nothing(
    cluster: Cluster, alone: Callable[[str], str]
) -> None:
    """A slurmd is killed and comes back; then the jobs are cancelled and sent again, cut anew."""
    folder = cluster.submit("--shards", "6").folder
    (array, _), *_ = submission.read(folder).jobs
    subprocess.run(["scontrol", "hold", array], check=True)
    cluster.submit("--shards", "4", code=2)
    subprocess.run(["scontrol", "release", array], check=True)
    cluster.wait(lambda: cluster.answered() > 0 and cluster.running() == 2)
    slurm("kill-node", "n2")
    try:
        cluster.wait(lambda: cluster.is_down("n2"))
    finally:
        slurm("start-node", "n2")
    subprocess.run(["scancel", "-u", "evaluser"], check=True)
    cluster.wait()
    assert not cluster.records()
    again = cluster.submit("--shards", "4")
    assert again.folder == folder
    cluster.wait()
    check(cluster, alone)
    assert "nothing to send: finished" in cluster.submit("--shards", "4").err


@pytest.mark.cluster_full
def test_a_time_limit_shorter_than_a_shard_is_lived_with(cluster: Cluster) -> None:
    """Slurm warns, the batch in hand is kept, the task goes back into the queue, and on."""
    many = ("--limit", "250", "--level", "none")  # level none computes every prompt whole
    cluster.submit("--shards", "1", *many, "--time", "3", "--grace", "30")
    cluster.wait()
    records = cluster.records()
    assert len(records) == 1, cluster.logs()
    (record,) = records.values()
    assert "the time limit is near" in cluster.logs()
    stretches = [segment for segment in record["segments"] if segment["batches"]]
    assert len(stretches) > 1
    assert "DUE TO TIME LIMIT" not in cluster.logs()


def test_what_a_node_lacks_stops_it_before_work_is_wasted(cluster: Cluster, user: User) -> None:
    """Each in one clear line, tried on the other node too, and the finishing job says it."""
    stage = user.home / "spoilt"
    shutil.copytree(cluster.stage, stage, symlinks=True)
    subprocess.run(["chown", "-R", "evaluser", stage], check=True)
    folder = cluster.submit("--shards", "1", "--dry-run", stage=stage).folder
    weights = next(stage.rglob("model.safetensors")).resolve()
    data = weights.read_bytes()
    lines = {}
    for name, spoil in {
        "altered": lambda: weights.write_bytes(data[:-1]),
        "missing": lambda: stage.rename(stage.with_name("elsewhere")),
    }.items():
        spoil()
        lines[name] = _said(cluster, folder)
    stage.with_name("elsewhere").rename(stage)
    weights.write_bytes(data)
    (run,) = cluster.out.glob("someone__*/small*")
    run.chmod(0o500)
    lines["unwritable"] = _said(cluster, folder)
    run.chmod(0o700)
    with _tiny_scratch(folder, user) as script:
        lines["scratch"] = _said(cluster, folder, script)
    assert "model.safetensors in the stage is not what was staged" in lines["altered"]
    assert "can't be seen on this node" in lines["missing"]
    assert "the run's folder can't be written to" in lines["unwritable"]
    assert "scratch is full" in lines["scratch"]
    assert not cluster.answered()
    canon.read_json(folder / "submission.json")
    shutil.rmtree(stage)


def _said(cluster: Cluster, folder: Path, script: Path | None = None) -> str:
    """What a task said that was sent by hand, as a user might, and how it ended."""
    log = folder / "logs" / "0.log"
    log.unlink(missing_ok=True)
    cluster.user.command("sbatch", "--array=0", script or folder / "array.sbatch")
    cluster.wait()
    said = log.read_text()
    assert "failed with exit code" in said and "loading" not in said
    return said


@contextmanager
def _tiny_scratch(folder: Path, user: User) -> Iterator[Path]:
    """The array's script where the scratch folder lies on a disk of one megabyte."""
    small = user.home / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", small], check=True)
    try:
        text = (folder / "array.sbatch").read_text().replace("${TMPDIR:-/tmp}", str(small))
        path = folder / "small.sbatch"
        path.write_text(text)
        path.chmod(0o644)
        yield path
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
        small.rmdir()


def test_a_shard_that_fails_is_sent_again_elsewhere_and_once_for_the_same_cause(
    cluster: Cluster,
) -> None:
    """What can't be seen on one node nor on the other is not tried a third time, and said."""
    folder = cluster.submit("--shards", "2", "--dry-run").folder
    weights = [path.resolve() for path in cluster.stage.rglob("model.safetensors")]
    assert weights
    text = (folder / "array.sbatch").read_text()
    (folder / "array.sbatch").write_text(text.replace("needed=(", "needed=(\n    /not/there"))
    job = cluster.user.command("sbatch", "--parsable", "--array=0-1", folder / "array.sbatch")
    after = f"--dependency=afterany:{job.out.strip()}"
    cluster.user.command("sbatch", after, folder / "finish.sbatch")
    cluster.wait()
    log = (folder / "logs" / "0.log").read_text()
    assert log.count("/not/there can't be seen on this node") == 2
    finish = (folder / "logs" / "finish.log").read_text()
    assert finish.count("are sent again") == 1
    assert "batches have no answer yet" in finish
    assert "/not/there can't be seen on this node (on n" in finish
    assert not cluster.records()
    support.call("status", folder).done()


def test_a_module_that_is_not_there_stops_every_task_once_with_its_reason(cluster: Cluster) -> None:
    """No task is sent a third time, and the reason stands where people look."""
    folder = cluster.submit("--shards", "2", "--modules", "not/there").folder
    cluster.wait()
    log = (folder / "logs" / "0.log").read_text()
    assert log.count("failed with exit code 3: ") == 2
    finish = (folder / "logs" / "finish.log").read_text()
    assert finish.count("are sent again") == 1
    assert "task 0 failed on n" in finish
    told = support.call("status", folder, "--logs").done().out
    assert "this node has no command module (on n" in told or "module load not/there" in told
    assert not cluster.records()


def test_what_slurm_would_refuse_is_refused_before_it_is_planned(cluster: Cluster) -> None:
    """Not a second of planning: the queue never sees it either."""
    for words, said in (
        (("--partition", "gup"), "there is no partition 'gup'"),
        (("--time", "2"), "leaves no time to work"),
        (("--sbatch", "--exclude=n99"), "sbatch refused: "),
        (("--binds", "/not/there"), "/not/there is to be bound and is not here"),
    ):
        ran = cluster.submit(*words, code=2 if "--time" in words or "gup" in words else 3)
        assert said in ran.err and "planning" not in ran.err
    assert not list(cluster.out.glob("*/*/plan.json"))


def test_a_submission_is_cancelled_by_its_name_and_goes_on_by_the_same_command(
    cluster: Cluster, alone: Callable[[str], str]
) -> None:
    """In a folder with spaces, with a total wall time and options of sbatch's own."""
    cluster.out = cluster.out.with_name(f"{cluster.out.name} of mine")
    words = ("--shards", "2", "--max-walltime", "60", "--sbatch", "--comment='of mine' --nice=1")
    folder = cluster.submit(*words).folder
    said = cluster.user.evalkit("cancel", folder).out
    assert "cancelled: " in said and "nothing" not in said
    cluster.wait()
    cluster.submit(*words)
    cluster.wait()
    check(cluster, alone)
