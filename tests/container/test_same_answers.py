"""The same image, however it is run, and its packages without it: the same answers."""

import json
import shutil
from pathlib import Path

import pytest
from places import Place
from test_light import HEAVY, verified_without

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]
PLACES = ("docker", "user", "apptainer", "podman")
HOST = Place("host")


def answers(place: Place, folder: Path, *options: str, **environment: str) -> str:
    """The answers id of an evaluation; its record is verified on the host by the light install."""
    folder.mkdir()
    folder.chmod(0o777)
    environment = {"HF_HOME": str(folder / "none"), **environment}
    out = place.evalkit(folder, "eval", *options, "--out", "results", "--offline", **environment)
    run = folder / out.splitlines()[-1]
    assert run.stat().st_uid == (folder / "results").stat().st_uid
    record = json.loads((run / "record.json").read_text())
    ran = verified_without(HEAVY, run)
    assert ran.code == 0, ran.out
    told = record["environment"]
    assert told["harness_intact"] is True
    if place.runtime is not None and place.image is not None:
        assert told["image"] == {
            "digest": place.image.digest,
            "of": place.image.of,
            "runtime": f"{place.runtime.name} {place.runtime.version}",
            "asserted_by": "launcher",
            "network": "none",
        }
        assert told["runtime"] == place.runtime.name
        assert told["lock"].startswith("cpu sha256:")
    found: str = record["ids"]["answers"]
    shutil.rmtree(folder)
    return found


@pytest.fixture(scope="session")
def demo(room: Path) -> str:
    """The demo's answers on this host."""
    return answers(HOST, room / "demo-host", *DEMO)


@pytest.fixture(scope="session")
def real(room: Path, staged: Path, tiny: Path) -> str:
    """Two real tasks' answers on this host."""
    return answers(HOST, room / "real-host", *two(staged, tiny), HF_HOME=str(staged / "hf"))


DEMO = ("--model", "demo", "--suite", "demo", "--limit", "8")


def two(staged: Path, tiny: Path) -> tuple[str, ...]:
    """The words that evaluate the two real tasks."""
    return "--model", str(tiny), "--suite", str(staged / "two.yaml")


@pytest.mark.parametrize("name", PLACES)
def test_the_demo_has_the_same_answers(
    name: str, demo: str, room: Path, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(name)
    assert answers(place, room / f"demo-{name}", *DEMO) == demo


@pytest.mark.shared
@pytest.mark.parametrize("name", PLACES)
def test_two_real_tasks_have_the_same_answers_from_a_staged_cache(
    name: str, real: str, room: Path, staged: Path, tiny: Path, request: pytest.FixtureRequest
) -> None:
    """The cache is read-only, and there is no network."""
    place: Place = request.getfixturevalue(name)
    home = str(staged / "hf")
    assert answers(place, room / f"real-{name}", *two(staged, tiny), HF_HOME=home) == real


def test_make_eval_runs_in_the_image_and_says_so(image: str, room: Path) -> None:
    """The whole way: make, the launcher, the image."""
    from places import ROOT, run

    out = room / "made"
    said = run("make", "--no-print-directory", "-C", ROOT, "demo", "LIMIT=2", f"OUT={out}",
               "OFFLINE=1", "IN=docker", f"IMAGE={image}")  # fmt: skip
    record = json.loads(Path(said.splitlines()[-1], "record.json").read_text())
    assert record["environment"]["runtime"] == "docker"
    assert record["command"]["argv"][:2] == ["evalkit", "eval"]
