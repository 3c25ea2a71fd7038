"""A model behind links, opened from inside: in a Hub's cache as it is, by a link to it, by a folder
above it that is a link, and with a file of the cache that is itself a link to another disk."""

import os
from pathlib import Path

import pytest
from places import Place, run

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]
COMMIT = "ab" * 20
SNAPSHOT = Path("hub", "models--org--tiny", "snapshots", COMMIT)
WAYS = {
    "a snapshot": f"disk/hf/{SNAPSHOT}",
    "a link to one": "llama",
    "below a link": f"hf/{SNAPSHOT}",
    "by its name": "org/tiny",
}


@pytest.fixture(scope="session")
def home(room: Path) -> Path:
    """A home folder with all of these."""
    home = room / "linked home"
    repo = home / "disk" / "hf" / "hub" / "models--org--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (home / "another disk").mkdir()
    (home / "another disk" / "weights").write_text("weights")
    (repo / "blobs" / "f0").write_text("config")
    (repo / "blobs" / "f1").symlink_to(home / "another disk" / "weights")
    (snapshot / "config.json").symlink_to("../../blobs/f0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/f1")
    (home / "hf").symlink_to("disk/hf")
    (home / "llama").symlink_to(home / "hf" / SNAPSHOT)
    run("chmod", "-R", "a+rX", home)
    return home


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["docker", "user", "apptainer", "podman"])
def test_a_model_behind_links_is_seen_whole(
    name: str, way: str, home: Path, room: Path, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(name)
    folder = room / f"links-{name}-{way}"
    folder.mkdir(exist_ok=True)
    given = WAYS[way] if way == "by its name" else os.fspath(home / WAYS[way])
    seen = home / "hf" / SNAPSHOT if way == "by its name" else Path(given).resolve()
    files = [os.fspath(seen / each) for each in ("config.json", "model.safetensors")]
    program = f"print(*[open(file).read() for file in {files!r}])"
    words = ("eval", "--model", given, "--out", "results", "--offline")
    said = place.python(folder, program, *words, HF_HOME=os.fspath(home / "hf"))
    assert said.split() == ["config", "weights"]
