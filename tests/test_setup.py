"""Set-up, the locks and the Makefile: what can be told without installing anything."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evalkit.base.machine.gpus import LOCKS as OFFERED
from evalkit.base.machine.gpus import pick_lock

ROOT = Path(__file__).resolve().parent.parent
# But for the one wheel of smollm2, which is fetched and not installed.
LOCKS = sorted({*(ROOT / "requirements").glob("*.lock")} - {ROOT / "requirements" / "smollm2.lock"})
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):", MAKEFILE, re.M)
each_lock = pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load("setup")
locking = load("lock")


def pins(lock: Path) -> dict[str, set[str]]:
    """Each package of a lock and its versions."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", lock.read_text(), re.M):
        found.setdefault(name, set()).add(version)
    return found


# The choice of a lock


@pytest.mark.parametrize(
    ("gpus", "machine", "lock", "why"),
    [
        (None, "x86_64", "cpu", "no nvidia-smi"),
        ("", "x86_64", "cpu", "it says: nothing"),
        ("NVIDIA-SMI has failed because\nit could not", "x86_64", "cpu", "NVIDIA-SMI has failed"),
        ("580.65.06, 9.0\n", "x86_64", "cuda13", "driver 580, compute capability 9.0"),
        ("590.10, 12.0\n590.10, 12.0\n", "aarch64", "cuda13", "12.0"),
        ("579.99, 9.0\n", "x86_64", "cuda12", "driver 579"),
        ("525.60.13, 8.0\n", "x86_64", "cuda12", "driver 525"),
        ("535.183.01, 9.0\n", "aarch64", "cpu", "x86_64 only, not aarch64"),
        ("580.65.06, 7.0\n", "x86_64", "cuda12", "compute capability 7.0"),
        ("580.65.06, 9.0\n580.65.06, 7.0\n", "x86_64", "cuda12", "capability 7.0"),
        ("580.65.06, 6.1\n", "x86_64", "cpu", "too old"),
        ("470.82.01, 8.0\n", "x86_64", "cpu", "too old"),
    ],
)
def test_the_lock_follows_the_oldest_gpu(
    gpus: str | None, machine: str, lock: str, why: str
) -> None:
    choice = pick_lock(gpus, machine)
    assert choice.lock == lock
    assert why in choice.why
    assert "\n" not in choice.why


def test_a_lock_asked_for_wins_over_the_one_of_before_and_that_over_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evalkit.base.machine.gpus.ask_for_lock", lambda: "580.65.06, 9.0")
    monkeypatch.setenv("IN", "none")
    assert setup.choose("base", {"lock": "cpu"}).lock == "base"
    assert setup.choose("", {"lock": "cpu"}).lock == "cpu"
    assert setup.choose("", {}).lock == "cuda13"


def test_a_host_whose_runs_are_in_an_image_gets_the_light_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IN", "docker")
    assert setup.choose("", {}).lock == "base"
    assert setup.choose("cpu", {}).lock == "cpu"
    assert setup.choose("", {"lock": "cuda13"}).lock == "cuda13"


def test_an_unknown_lock_is_refused_with_the_choices() -> None:
    with pytest.raises(SystemExit, match="base, cpu, cuda12, cuda13"):
        setup.choose("gpu", {})


# The stamp


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that set-up takes for the repository, with an environment that is done."""
    for name in ("ROOT", "VENV", "PYTHON", "STAMP"):
        place = tmp_path / getattr(setup, name).relative_to(ROOT)
        monkeypatch.setattr(setup, name, place)
    setup.PYTHON.parent.mkdir(parents=True)
    setup.PYTHON.touch()
    return tmp_path


def stamp(checkout: Path, **changes: Any) -> dict[str, Any]:
    done = {"packages": "p", "evalkit": "e"}
    return {"lock": "cpu", "root": str(checkout), "done": done, **changes}


def test_a_finished_set_up_has_nothing_to_do(checkout: Path) -> None:
    setup.write_stamp(stamp(checkout))
    wanted = {"packages": "p", "evalkit": "e"}
    assert setup.missing_parts(setup.read_stamp(), "cpu", wanted) == []
    assert sorted(setup.STAMP.parent.iterdir()) == [setup.VENV / "bin", setup.STAMP]


@pytest.mark.parametrize(
    ("before", "wanted", "missing"),
    [
        ({}, {}, ["packages", "evalkit"]),
        ({"done": {}}, {}, ["packages", "evalkit"]),
        ({"lock": "base"}, {}, ["packages", "evalkit"]),
        ({"root": "/elsewhere"}, {}, ["packages", "evalkit"]),
        ({}, {"packages": "new"}, ["packages", "evalkit"]),
        ({}, {"evalkit": "new"}, ["evalkit"]),
        ({}, {"dev": "d"}, ["dev"]),
    ],
    ids=["first", "interrupted", "lock", "moved", "packages", "evalkit", "dev"],
)
def test_only_what_changed_is_installed_and_new_packages_start_anew(
    checkout: Path, before: dict[str, Any], wanted: dict[str, str], missing: list[str]
) -> None:
    known = stamp(checkout, **before) if before or wanted else {}
    parts = {"packages": "p", "evalkit": "e", **wanted}
    assert setup.missing_parts(known, "cpu", parts) == missing


def test_a_lost_interpreter_is_noticed(checkout: Path) -> None:
    setup.PYTHON.unlink()
    parts = {"packages": "p", "evalkit": "e"}
    assert setup.missing_parts(stamp(checkout), "cpu", parts) == ["packages", "evalkit"]


def test_the_parts_change_with_the_lock_and_only_with_their_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "HERE", tmp_path)
    (tmp_path / "evalkit").mkdir()
    for name in ("build.lock", "cpu.lock", "base.lock", "pyproject.toml", "evalkit/__init__.py"):
        (tmp_path / name).write_text(name)
    before = setup.wanted_parts("cpu", dev=False)
    assert setup.wanted_parts("base", dev=False)["packages"] != before["packages"]
    (tmp_path / "pyproject.toml").write_text("changed")
    after = setup.wanted_parts("cpu", dev=False)
    assert after["packages"] == before["packages"]
    assert after["evalkit"] != before["evalkit"]


def test_an_environment_that_set_up_did_not_make_is_left_alone(checkout: Path) -> None:
    with pytest.raises(SystemExit, match="move it away"):
        setup.read_stamp()
    assert setup.PYTHON.exists()


def test_an_environment_that_is_made_anew_keeps_its_stamp_until_it_is_done(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: None)
    setup.write_stamp(stamp(checkout, done={}))
    setup.make_environment()
    assert list(setup.VENV.iterdir()) == [setup.STAMP]
    assert json.loads(setup.STAMP.read_text())["lock"] == "cpu"


@pytest.mark.oracle  # where other environments are made
def test_an_environment_can_be_made_anew_by_its_own_python(tmp_path: Path) -> None:
    """With an activated .venv, `python3` is in the folder that set-up empties first."""
    own = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own], check=True)
    code = (
        f"import runpy; s = runpy.run_path({os.fspath(ROOT / 'requirements' / 'setup.py')!r});"
        f"make = s['make_environment']; make.__globals__['VENV'] = s['Path']({os.fspath(own)!r});"
        "make()"
    )
    subprocess.run([own / "bin" / "python", "-c", code], check=True)
    subprocess.run([own / "bin" / "python", "-m", "pip", "--version"], check=True)


# The locks


def test_every_lock_that_set_up_offers_is_there() -> None:
    assert {path.stem for path in LOCKS} == {*OFFERED, "build", "dev", "quant", "browser", "served"}


@each_lock
def test_a_lock_says_how_it_is_made_and_pins_everything_by_hash(lock: Path) -> None:
    text = lock.read_text()
    assert text.startswith("# Made by `make lock` ")
    blocks = locking.blocks(text)
    assert len(blocks) > (1 if lock.stem in ("browser", "quant") else 5)
    for block in blocks:
        first, *hashes = block.split(" \\\n")
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s;]+( ; .+)?", first), first
        assert hashes, first
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first


@each_lock
def test_a_lock_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.M)


def test_one_package_has_one_version_in_all_locks_but_for_torch() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, found in pins(lock).items() if lock.stem != "served" else ():
            if not locking.CUDA.match(name):
                versions.setdefault(name, set()).update(found)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_cpu_lock_has_pytorchs_cpu_build_and_nothing_of_cuda() -> None:
    lock = ROOT / "requirements" / "cpu.lock"
    found = pins(lock)
    assert found["torch"] == {"2.13.0", "2.13.0+cpu"}
    assert [name for name in found if re.match(r"nvidia(?!-ml-py)|cuda|triton", name)] == []
    kept = locking.blocks((ROOT / "requirements" / "cpu-torch.txt").read_text())
    assert set(kept) <= set(locking.blocks(lock.read_text()))
    assert locking.cpu_lock(locking.read("cuda13")) == locking.blocks(lock.read_text())


def test_the_cuda_locks_have_the_cuda_they_are_named_for() -> None:
    cuda12, cuda13 = (pins(ROOT / "requirements" / f"{name}.lock") for name in ("cuda12", "cuda13"))
    assert (cuda12["torch"], cuda13["torch"]) == ({"2.10.0"}, {"2.13.0"})
    assert all(version.startswith("12.8.") for version in cuda12["nvidia-cuda-runtime-cu12"])
    assert all(version.startswith("13.0.") for version in cuda13["nvidia-cuda-runtime"])


def test_the_quant_lock_stands_on_top_of_either_cuda_lock_and_touches_neither() -> None:
    quant = pins(ROOT / "requirements" / "quant.lock")
    assert {"bitsandbytes", "compressed-tensors"} <= set(quant)
    for name in ("cuda12", "cuda13"):
        assert not set(quant) & set(pins(ROOT / "requirements" / f"{name}.lock"))
    assert not [name for name in quant if locking.CUDA.match(name)]


def test_quantised_checkpoints_packages_are_kept_once_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QUANT", raising=False)
    assert not setup.wants_quant({}) and setup.wants_quant({"done": {"quant": "q"}})
    monkeypatch.setenv("QUANT", "1")
    assert setup.wants_quant({})
    assert list(setup.wanted_parts("cuda13", True, True)) == ["packages", "evalkit", "quant", "dev"]
    monkeypatch.setenv("QUANT", "0")
    assert not setup.wants_quant({"done": {"quant": "q"}})


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {"base": project["dependencies"]}
    for lock in ("cpu", "cuda12", "cuda13"):
        asked[lock] = [*asked["base"], *extras["score"], *extras["run"]]
    for lock, requirements in asked.items():
        found = pins(ROOT / "requirements" / f"{lock}.lock")
        for requirement in requirements:
            name = re.split(r"[\[<>=]", requirement)[0].replace("_", "-")
            assert name == "evalkit-lm" or name in found, f"{requirement} is not in {lock}.lock"
            if "==" in requirement:
                assert found[name] == {requirement.split("==")[1]}


# The Makefile


def make(
    *arguments: str, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True
    )


def test_make_alone_lists_every_target_and_the_variables_in_force() -> None:
    listed = make(MODEL="a model", OUT="there").stdout
    assert re.findall(r"^  make ([a-z-]+) +\S", listed, re.M) == TARGETS
    assert "MODEL=a model " in listed
    assert "OUT=there " in listed
    assert "SUITE=core " in listed


def test_every_target_is_phony_and_documented() -> None:
    database = subprocess.run(
        ["make", "-C", ROOT, "--print-data-base", "--question", "help"],
        capture_output=True, text=True,
    )  # fmt: skip
    phony = re.search(r"^\.PHONY: (.+)$", database.stdout, re.M)
    assert phony and sorted(phony[1].split()) == sorted(TARGETS)
    assert len(re.findall(r"^[a-z-]+:[^#\n]* ## .+$", MAKEFILE, re.M)) == len(TARGETS)


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A folder with our Makefile, whose evalkit prints its arguments as JSON."""
    (tmp_path / "Makefile").write_text(MAKEFILE)
    program = tmp_path / ".venv" / "bin" / "evalkit"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "variables", "arguments"),
    [
        ("eval", {}, "eval,--suite,core,--out,results"),
        (
            "eval",
            {"MODEL": '/models/it\'s "mine"; `x`', "REVISION": "a b", "LIMIT": "8", "OFFLINE": "1"},
            'eval,--model,/models/it\'s "mine"; `x`,--revision,a b,--suite,core,--out,results'
            ",--offline,--limit,8",
        ),
        (
            "demo",
            {"MODEL": "other", "OFFLINE": "0", "DTYPE": "float32", "DEVICE": "cpu", "SEED": "7"},
            "eval,--model,other,--suite,demo,--out,results,--dtype,float32,--device,cpu,--seed,7",
        ),
        ("demo", {}, "eval,--model,demo,--suite,demo,--out,results"),
        (
            "eval",
            {
                "LEVEL": "prefix",
                "PROFILE": "precise",
                "ADAPTER": "my lora",
                "ENGINE": "lm-eval:vllm",
                "ENGINE_ARGS": "model=* base_url=http://127.0.0.1:8000/v1?a=`x`&b=;c",
            },
            "eval,--suite,core,--out,results,--level,prefix,--profile,precise,--adapter,my lora"
            ",--engine,lm-eval:vllm,--engine-arg,model=*"
            ",--engine-arg,base_url=http://127.0.0.1:8000/v1?a=`x`&b=;c",
        ),
        ("verify", {"RUN": "results/a run"}, "verify,results/a run"),
        ("verify", {}, "verify"),
        ("status", {"RUN": "r"}, "status,r"),
        ("suite-lock", {"SUITE": "my suite.yaml"}, "lock,my suite.yaml"),
    ],
)
def test_variables_reach_the_command_as_they_were_given(
    echo: Path, target: str, variables: dict[str, str], arguments: str
) -> None:
    named = [f"{name}={value}" for name, value in variables.items()]
    for ran in (
        make(target, "PYTHON=true", *named, folder=echo),
        make(target, "PYTHON=true", folder=echo, **variables),
    ):
        assert ran.returncode == 0, ran.stderr
        words = json.loads(ran.stdout)
        if words[0] == "launch":
            assert words[:5] == ["launch", "--in", "", "--image", ""]
            words = words[5:]
        assert words == arguments.split(",")


def test_continuous_integration_calls_make_targets_only() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    tiers = re.search(r"^for tier in (.+); do$", script, re.M)
    assert tiers and set(tiers[1].split()) <= set(TARGETS)
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0
