"""A real server on this machine, which speaks OpenAI's completions protocol: vLLM's CPU build.

It has an environment of its own beside the one that runs the tests, made from
requirements/served.lock on first use (a minute and 3 GB), because it needs other versions. It
listens on the loopback only and is stopped with the tests.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements" / "served.lock"
VENV = Path(sys.prefix) / "served"
START_S = 240
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # GB; no pinning
    "OMP_NUM_THREADS": "1",
}


def environment() -> Path:
    """The server's Python; the test is skipped with the reason where it can't be had."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("vLLM's CPU build is for Linux on x86_64")
    stamp = VENV / "evalkit-lock.sha256"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        _install()
        stamp.write_text(wanted)
    return VENV / "bin" / "python"


def _install() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    command = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-compile", "--require-hashes", "-r", LOCK]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # where pip as configured has no CPU build of torch
        index = ["--extra-index-url", _setup_index()]
        done = subprocess.run([*command, *index], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line]
        pytest.skip(f"vLLM's CPU build did not install: {(said or ['pip failed'])[-1]}")


def _setup_index() -> str:
    """PyTorch's index of CPU wheels, as set-up has it."""
    spec = importlib.util.spec_from_file_location("setup", ROOT / "requirements" / "setup.py")
    assert spec and spec.loader
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return str(setup.CPU_INDEX)


@contextmanager
def serve(model: Path, name: str, log: Path) -> Iterator[str]:
    """Serve a model in float32 under a name; the address of its completions."""
    python = environment()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager"]
    with log.open("w") as lines:
        process = subprocess.Popen(
            list(map(str, command)), stdout=lines, stderr=lines, env={**os.environ, **ENVIRONMENT},
            cwd=log.parent, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", health: str, log: Path) -> None:
    started = time.monotonic()
    while time.monotonic() - started < START_S:
        assert process.poll() is None, f"the server stopped:\n{log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"the server did not start in {START_S} s:\n{log.read_text()[-2000:]}")
