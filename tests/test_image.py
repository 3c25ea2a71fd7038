"""How the image is made: what the Dockerfile is given, and what is said where it can't be made."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """image/make.py, which runs by itself."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("image_make", ROOT / "image" / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(folder: Path, name: str, text: str) -> None:
    """A stand-in for a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_old_builder_gets_the_same_commands_without_mounts(make: ModuleType) -> None:
    before = (ROOT / "Dockerfile").read_text()
    after = make.without_mounts(before)
    assert "--mount" in before and "--mount" not in after
    assert 'RUN /tools/bin/python /source/image/install.py packages "$LOCK"\n' in after
    assert re.search(r"^RUN (\\\n\s+)?python3 /opt/evalkit/image/selftest.py", after, re.M)
    assert before.count("RUN ") == after.count("RUN ")


@pytest.mark.parametrize(
    ("client", "buildx", "has"), [("20.10.24", 1, True), ("28.2.2", 1, False), ("28.2.2", 0, True)]
)
def test_buildkit_is_used_where_this_client_has_it(
    client: str, buildx: int, has: bool, make: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program(tmp_path, "docker", f'[ "$1" = buildx ] && exit {buildx}; echo {client}')
    monkeypatch.setattr(make, "DOCKER", str(tmp_path / "docker"))
    assert make.has_buildkit() is has


def test_another_base_and_day_are_handed_on(
    make: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SNAPSHOT", raising=False)
    monkeypatch.setenv("BASE_IMAGE", "python:3.12-slim-bookworm@sha256:54c8")
    assert "SNAPSHOT" not in make.arguments("cpu", "c0ffee", "0")
    monkeypatch.setenv("SNAPSHOT", "")
    given = make.arguments("cpu", "c0ffee", "0")
    assert given["SNAPSHOT"] == "" and given["BASE_DIGEST"] == "sha256:54c8"
    assert given["BASE_IMAGE"] == "python:3.12-slim-bookworm@sha256:54c8"
    monkeypatch.setenv("BASE_IMAGE", "python:3.12")
    monkeypatch.setattr(make, "answers", lambda *_: False)
    with pytest.raises(SystemExit, match="name it with its digest, or pull it first"):
        make.arguments("cpu", "c0ffee", "0")


@pytest.mark.parametrize("docker", ["none", "no right to its socket"])
def test_a_sif_without_docker_is_told_where_it_can_come_from(docker: str, tmp_path: Path) -> None:
    bins = tmp_path / "bin"
    program(bins, "apptainer", "exit 0")
    if docker != "none":
        program(bins, "docker", "echo permission denied >&2; exit 1")
    path = f"{bins}:{Path(shutil.which('sh') or '/bin/sh').parent}"
    ran = subprocess.run(
        [sys.executable, ROOT / "image" / "make.py", "sif"], capture_output=True, text=True,
        env={"PATH": path, "DOCKER": str(bins / "docker"), "HOME": os.environ.get("HOME", "/")},
    )  # fmt: skip
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    for words in ("make sif FROM=evalkit.tar", "make sif FROM=registry.example/", "make image"):
        assert words in ran.stderr
