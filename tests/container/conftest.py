"""The image, built once for all of these tests and run in every way that this host has."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import places
import pytest
import support
from places import TAG, USER, Place, run

NEEDED = 12  # GB of disk: the image in three runtimes' stores, its archive and its SIF


@pytest.fixture(scope="session", autouse=True)
def engines() -> None:
    """Docker and Apptainer, started where they are not."""
    if reason := places.missing():
        pytest.skip(reason)
    free = shutil.disk_usage("/var/tmp").free / 1e9
    if free < NEEDED:
        pytest.fail(f"these tests need {NEEDED} GB in /var/tmp, which has {free:.1f} GB left")
    run("bash", places.MACHINE, "all")


@pytest.fixture(scope="session")
def image(engines: None) -> str:
    """The image of the commit that is checked out, with the CPU lock; the last one's goes."""
    docker = places.BUILD["DOCKER"]
    before = run(docker, "images", "--quiet", TAG).strip()
    places.make("image")
    if before and before != run(docker, "images", "--quiet", TAG).strip():
        subprocess.run([docker, "rmi", before], capture_output=True)  # in use elsewhere: it stays
    return TAG


@pytest.fixture(scope="session")
def room() -> Iterator[Path]:
    """A folder that every user of this host can read, for the session."""
    folder = Path(tempfile.mkdtemp(prefix="evalkit-image-tests-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def archive(image: str, room: Path) -> Path:
    """The image's archive, as a site without a registry gets it."""
    path = room / "evalkit.tar"
    run(places.BUILD["DOCKER"], "save", "--output", path, image)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="session")
def sif(archive: Path, room: Path) -> Path:
    """A SIF of that archive, built by a user without any rights."""
    folder = room / "sif"
    folder.mkdir()
    shutil.copy(places.ROOT / "apptainer.def", folder)
    shutil.chown(folder, USER)
    build = ["apptainer", "build", "--notest", "--build-arg", f"FROM={archive}"]
    build += ["--mksquashfs-args", "-comp gzip -Xcompression-level 1"]
    build += [folder / "evalkit.sif", folder / "apptainer.def"]
    run("runuser", "-u", USER, "--", "env", f"APPTAINER_TMPDIR={folder}", *build)
    return folder / "evalkit.sif"


@pytest.fixture(scope="session")
def docker(image: str) -> Place:
    """The image in Docker, as root."""
    return places.found("docker", image)


@pytest.fixture(scope="session")
def user(image: str) -> Place:
    """The image in Docker, as another user."""
    return places.found("docker", image, USER)


@pytest.fixture(scope="session")
def apptainer(sif: Path) -> Place:
    """The image in Apptainer, as that user."""
    return places.found("apptainer", os.fspath(sif), USER)


@pytest.fixture(scope="session")
def podman(archive: Path, room: Path) -> Iterator[Place]:
    """The image in Podman, with limits and a runtime that any host allows; skips where it can't
    run even so."""
    if shutil.which("podman") is None:
        pytest.skip("there is no podman here")
    (room / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        '[engine]\nruntime = "runc"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", os.fspath(room / "containers.conf"))
        run("podman", "load", "--input", archive)
        tried = subprocess.run(
            ["podman", "run", "--rm", "--network", "none", TAG, "--version"],
            capture_output=True, text=True,
        )  # fmt: skip
        if tried.returncode:
            pytest.skip(f"podman can't run here: {tried.stderr.strip().splitlines()[-1]}")
        yield places.found("podman", TAG)
        run("podman", "rmi", TAG)


@pytest.fixture(scope="session")
def staged(hub: Any, room: Path, tiny: Path) -> Path:
    """A folder with a suite of two real tasks, its lock and the Hub's cache, all of it fetched:
    what a login node leaves for nodes without a network."""
    folder = room / "staged"
    folder.mkdir()
    home = folder / "hf"
    path = folder / "two.yaml"
    path.write_text("name: two\ntasks: [arc_challenge, hellaswag]\nlimit: 3\n")
    support.lock_part("core", "two", ["arc_challenge", "hellaswag"], folder / "two.lock.yaml")
    ran = support.spawn(
        "plan", "--model", tiny, "--suite", path, "--out", folder / "planned",
        env={"HF_HOME": os.fspath(home)},
    )  # fmt: skip
    assert ran.code == 0, ran.err
    run("chmod", "-R", "a+rX", folder)
    return folder


@pytest.fixture(scope="session")
def tiny(room: Path) -> Path:
    """A tiny Llama that every user can read."""
    import models

    folder = models.tiny(room / "tiny", "llama")
    run("chmod", "-R", "a+rX", folder)
    return folder
