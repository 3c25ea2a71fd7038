"""Staging against the stand-in Hub: what a run without network needs, and no secret."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import gguf_files
import hub as stand_in
import pytest
from support import call, spawn, start

from evalkit.base import canon

TOKEN = "hf_thisIsASecretTokenOfATest"
CARD = "---\nlicense: apache-2.0\n---\nA tiny model.\n"
MODEL, DATA = "someone/tiny", "someone/sums"
TASK = f"""
task: sums
dataset_path: {DATA}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, hub: stand_in.Hub) -> Path:
    """A suite of one small task whose data lie on the stand-in Hub, locked."""
    folder = tmp_path_factory.mktemp("suite")
    asked = [{"question": f"{a} + 1 =", "answer": str(a + 1)} for a in range(20)]
    lines = "".join(json.dumps(each) + "\n" for each in asked)
    card = "---\nlicense: cc-by-sa-4.0\n---\nSums.\n"
    hub.repo(DATA, {"test.jsonl": lines, "README.md": card})
    (folder / "tasks").mkdir()
    (folder / "tasks" / "sums.yaml").write_text(TASK)
    path = folder / "small.yaml"
    path.write_text("name: small\ntasks: [sums]\ninclude_path: tasks\n")
    call("lock", path).done()
    return path


@pytest.fixture(scope="module")
def staged(
    tmp_path_factory: pytest.TempPathFactory,
    hub: stand_in.Hub,
    suite: Path,
    tiny_model: Callable[..., Path],
) -> tuple[Path, str]:
    """A stage with a model of the Hub's, and what staging said."""
    repo = hub.models / MODEL.replace("/", "__")
    shutil.copytree(tiny_model(), repo)
    (repo / "README.md").write_text(CARD)
    to = tmp_path_factory.mktemp("stage") / "staged"
    options = ("--model", MODEL, "--suite", suite, "--to", to)
    ran = spawn("stage", *options, env={"HF_TOKEN": TOKEN}).done()
    assert ran.folder == to
    return to, ran.err


@pytest.fixture
def stage(staged: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the stage, to be spoilt."""
    shutil.copytree(staged[0], tmp_path / "staged", symlinks=True)
    return tmp_path / "staged"


def test_sizes_come_before_and_licences_are_said(staged: tuple[Path, str]) -> None:
    lines = staged[1].splitlines()
    (model,) = [line for line in lines if line.startswith(f"model    {MODEL}: ")]
    assert re.search(r": \d+\.\d [kM]B$", model)
    (data,) = [line for line in lines if line.startswith(f"dataset  {DATA} at ")]
    assert "licence cc-by-sa-4.0" in data and re.search(r"at most \d+ B", data)
    first = next(index for index, line in enumerate(lines) if '"phase"' in line)
    assert lines.index(model) < first and lines.index(data) < first
    assert any(f"model    {MODEL} at " in line and "licence apache-2.0" in line for line in lines)
    assert any('"phase":"fetch"' in line for line in lines)


def test_the_manifest_has_every_file_and_the_token_is_nowhere(staged: tuple[Path, str]) -> None:
    folder = staged[0]
    body = json.loads((folder / "stage.json").read_text())
    assert re.fullmatch("[0-9a-f]{40}", body["models"][MODEL]["revision"])
    assert body["models"][MODEL]["licence"] == "apache-2.0"
    for name, entry in body["files"].items():
        assert canon.sha256_file(folder / name) == entry["sha256"]
    names = {Path(name).name for name in body["files"]}
    assert {"model.safetensors", "config.json", "dataset_info.json"} <= names
    for path in folder.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in staged[1]


def test_a_stage_is_checked_without_anything_heavy(staged: tuple[Path, str]) -> None:
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    ran = spawn("stage", "--to", staged[0], "--check", before=tell).done()
    said, modules = ran.err.splitlines()[0], set(ran.err.splitlines()[-1].split())
    assert said.startswith("stage ok: ")
    assert not modules & {"torch", "lm_eval", "datasets", "huggingface_hub", "transformers"}


def test_a_staged_file_that_is_altered_or_gone_is_named(stage: Path) -> None:
    check = ("stage", "--to", stage, "--check")
    weights = next(stage.rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)
    call(*check, "--full").refused(1, "model.safetensors in the stage is not what was staged")
    weights.resolve().write_bytes(data[:-1])
    call(*check).refused(1, "model.safetensors")
    config = next((stage / "hf" / "hub").rglob("config.json"))
    config.resolve().write_bytes(b"[" + config.read_bytes()[1:])
    call(*check).refused(1, "config.json and 1 more files")
    weights.resolve().unlink()
    call(*check).refused(3, "the stage lacks model.safetensors")
    (stage / "stage.json").unlink()
    call(*check).refused(3, "there is no stage here")


@pytest.mark.faults
def test_a_run_needs_the_stage_only(staged: tuple[Path, str], suite: Path, tmp_path: Path) -> None:
    """With the Hub gone, nothing in the cache, and a stage that can't be written to."""
    clean = {"HF_HOME": str(staged[0] / "hf"), "HF_ENDPOINT": "http://127.0.0.1:1"}
    options = ("--model", MODEL, "--suite", suite, "--limit", "2", "--out", tmp_path, "--offline")
    run = spawn("plan", *options, env=clean).done().folder
    assert (run / "plan.json").is_file()


@pytest.mark.faults
@pytest.mark.usefixtures("staged")  # which puts the model on the Hub
def test_staging_that_is_cut_off_goes_on(hub: stand_in.Hub, suite: Path, tmp_path: Path) -> None:
    """Killed while it fetches, the same command fetches the rest: no file twice."""
    options = ("--model", MODEL, "--suite", suite, "--to", tmp_path)
    process = start("stage", *options)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "hf").rglob("*.arrow")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    call("stage", "--to", tmp_path, "--check").refused(3, "not whole yet")
    kept = {path: path.stat().st_ino for path in tmp_path.rglob("blobs/*") if len(path.name) >= 40}
    kept = {path: inode for path, inode in kept.items() if path.suffix != ".incomplete"}
    assert kept
    spawn("stage", *options).done()
    assert {path: path.stat().st_ino for path in kept} == kept
    call("stage", "--to", tmp_path, "--check", "--full").done()


@pytest.mark.faults  # two processes that import everything
def test_a_model_in_a_folder_or_a_file_stays_there_and_a_stage_becomes_one_file(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    ours, to, file = tmp_path / "mine", tmp_path / "staged", tmp_path / "staged.sqsh"
    shutil.copytree(tiny_model(), ours)
    packed = gguf_files.write(tiny_model(), tmp_path / "packed.gguf", "Q4_0")
    pack = ("--squashfs", file) if shutil.which("mksquashfs") else ()
    chosen = ("--model", ours, "--model", packed)
    ran = spawn("stage", *chosen, "--suite", "demo", "--to", to, *pack).done()
    body = json.loads((to / "stage.json").read_text())
    assert body["models"][os.fspath(ours)]["folder"] == os.fspath(ours)
    file_ = body["models"][os.fspath(packed)]
    assert (file_["folder"], [*file_["files"]]) == (os.fspath(tmp_path), [packed.name])
    call("stage", "--to", to, "--check", "--full").done()
    (ours / "config.json").write_text("{}")
    call("stage", "--to", to, "--check").refused(1, "config.json")
    if not pack:
        pytest.skip("mksquashfs is not installed (squashfs-tools): nothing was packed")
    assert canon.sha256_file(file) in ran.err
    listed = subprocess.run(["unsquashfs", "-l", file], capture_output=True, text=True, check=True)
    assert "squashfs-root/stage.json" in listed.stdout
