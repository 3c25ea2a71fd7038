"""A cluster, a user with a stage on it, and what a run gives that never saw either."""

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hub as stand_in
import pytest
from cluster import (
    MODELS,
    SIF,
    TASKS,
    Cluster,
    User,
    bring_up,
    free_port,
    image_of_tests,
    missing,
)

_COUNT = itertools.count(1)


@pytest.fixture(scope="session")
def user(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[User]:
    """A user who has staged three models and a suite from the stand-in Hub, which is gone then."""
    if reason := missing():
        pytest.skip(reason)
    bring_up()
    home = Path("/var/tmp") / f"evalkit-cluster-{free_port()}"
    user = User(home)
    try:
        served = tmp_path_factory.mktemp("served")
        user.make()
        with stand_in.serve(served, free_port()) as hub:
            for seed, name in enumerate(MODELS):
                repo = hub.models / name.replace("/", "__")
                shutil.copytree(tiny_model(seed=seed), repo)
            _stage(user, hub.url)
        yield user
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _stage(user: User, url: str) -> None:
    suite = user.home / "suite"
    user.command("mkdir", suite)
    user.command("bash", "-c", f"printf 'name: small\\ntasks: {TASKS}\\n' >{suite}/small.yaml")
    user.evalkit("lock", suite / "small.yaml", HF_ENDPOINT=url, HF_HOME=f"{user.home}/throwaway")
    named = [word for name in MODELS for word in ("--model", name)]
    user.evalkit(
        "stage", *named, "--suite", suite / "small.yaml", "--to", user.home / "staged",
        HF_ENDPOINT=url, TMPDIR="/tmp",
    )  # fmt: skip


@pytest.fixture(scope="session")
def alone(user: User) -> Callable[[str], str]:
    """The answers id of a model's native run, without Slurm and without shards."""

    @cache
    def answers(name: str) -> str:
        out = user.home / "alone"
        user.evalkit(
            "eval", "--model", name, "--suite", user.home / "suite/small.yaml", "--limit", "12",
            "--out", out, "--offline", "--workers", "1", HF_HOME=f"{user.home}/staged/hf",
        )  # fmt: skip
        return str(Cluster(user, (), out).records()[name]["ids"]["answers"])

    return answers


@pytest.fixture(scope="session")
def sif(user: User) -> Path:
    """The image where the user can read it: evalkit.sif, or one of the image that `make test-image`
    leaves."""
    made = user.home / "evalkit.sif"
    if SIF.is_file():
        subprocess.run(["install", "-o", "evaluser", SIF, made], check=True)
    elif not image_of_tests(made):
        pytest.skip("there is no evalkit.sif (make image sif) and no image (make test-image)")
    return made


@pytest.fixture(params=["sif", pytest.param("none", marks=pytest.mark.cluster_full)])
def cluster(request: pytest.FixtureRequest, user: User) -> Iterator[Cluster]:
    """The cluster with nothing on it, and a results folder of its own."""
    inside = ("--in", "none")
    if request.param == "sif":
        inside = ("--sif", str(request.getfixturevalue("sif")))
    out = user.home / f"results{next(_COUNT)}"
    yield Cluster(user, inside, out)
    subprocess.run(["scancel", "-u", "evaluser"])
    Cluster(user, inside, out).wait()
