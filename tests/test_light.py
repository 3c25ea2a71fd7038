"""What is light stays light: looking at a record needs no torch, no lm-eval and no network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support
from support import ROOT, spawn

HEAVY = ("torch", "transformers", "lm_eval", "datasets", "huggingface_hub", "safetensors",
         "tokenizers", "accelerate", "pandas", "pyarrow")  # fmt: skip
# After the command line: what it imported of the heavy packages, on stderr's last line.
TELL = """
import atexit, sys
def tell(): print("IMPORTED", *sorted({{*{heavy!r}}} & {{*sys.modules}}), file=sys.stderr)
atexit.register(tell)
"""
ABSENT = "import sys\nfor name in {names!r}: sys.modules[name] = None"
NO_NETWORK = """
import socket
def refuse(*_, **__): raise AssertionError("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def imported(*arguments: str | Path, code: int = 0) -> set[str]:
    """The heavy packages that a command line imports."""
    ran = spawn(*arguments, before=TELL.format(heavy=HEAVY))
    assert ran.code == code, ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("IMPORTED")
    return set(last.split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["verify", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported(*arguments) == set()


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported("status", support.finished(tmp_path)) == set()


def test_verify_never_imports_torch(tmp_path: Path) -> None:
    """It may import lm-eval, to score with the tasks themselves."""
    found = imported("verify", support.finished(tmp_path))
    assert not found & {"torch", "transformers", "accelerate", "safetensors"}


def test_an_unknown_run_or_model_is_refused_without_torch(tmp_path: Path) -> None:
    assert "torch" not in imported("status", tmp_path, code=3)
    assert "torch" not in imported("eval", "--suite", "demo", code=2)


def verified_without(names: tuple[str, ...], folder: Path) -> support.Ran:
    """Verify a run where some packages can't be imported and no connection can be made."""
    return spawn("verify", folder, before=ABSENT.format(names=names) + NO_NETWORK)


def test_a_record_is_verified_without_the_heavy_packages(tmp_path: Path) -> None:
    """The checks that need lm-eval say so; multiple choice is scored again without it."""
    ran = verified_without(HEAVY, support.finished(tmp_path)).done()
    assert ran.out.splitlines()[-1].startswith("CONSISTENT")
    assert "SKIP" in ran.out


def test_a_false_score_is_found_without_the_heavy_packages(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    path = folder / "results.json"
    path.write_text(re.sub(r'("acc,none": 0\.)\d', r"\g<1>9", path.read_text(), count=1))
    ran = verified_without(HEAVY, folder)
    assert ran.code == 1 and "BROKEN" in ran.out.splitlines()[-1]


def test_running_in_a_light_install_says_what_to_install(tmp_path: Path) -> None:
    before = ABSENT.format(names=HEAVY)
    ran = spawn("eval", *support.DEMO, "--out", tmp_path, before=before)
    ran.refused(3, "is not in this light install", "`evalkit launch eval ...`", "make setup")


@pytest.mark.oracle
def test_a_real_light_install_verifies_a_record(tmp_path: Path) -> None:
    """A virtual environment with the base lock's packages, checked by their hashes, alone."""
    requirements = ROOT / "requirements"
    checkout = tmp_path / "checkout"
    for name in ("evalkit", "schemas", "suites", "requirements"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, checkout / name)
    assert (requirements / "base.lock").is_file()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "requirements/setup.py", "base"],
        cwd=checkout, env=clean, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    python = checkout / ".venv" / "bin" / "python"
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {entry["name"].lower().replace("-", "_") for entry in json.loads(listed.stdout)}
    assert not names & set(HEAVY)
    ran = subprocess.run(
        [checkout / ".venv" / "bin" / "evalkit", "verify", support.finished(tmp_path)],
        cwd=tmp_path, env=clean, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("CONSISTENT")


@pytest.mark.parametrize("command", ["report", "export"])
def test_results_are_looked_at_without_the_heavy_packages(command: str, tmp_path: Path) -> None:
    """And without a network: a report needs the record alone."""
    folder = support.finished(tmp_path)
    more = ("--to", "csv") if command == "export" else ()
    ran = spawn(command, folder, *more, before=ABSENT.format(names=HEAVY) + NO_NETWORK).done()
    assert ran.out.strip()
