"""The benchmarks' own requests: real documents, built by lm-eval as for a run.

They come from the stand-in Hub of the tests where it lies beside the repository, else from the real
one; either way at the revisions that `core`'s lock pins. What is downloaded or made stays in a
cache folder, the stand-in's apart from the user's own.
"""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import ROOT
from evalkit.inputs import suite as suites
from evalkit.inputs.suite import Suite, SuiteTask
from evalkit.plan.requests.asking import PLAIN, Asking
from evalkit.plan.requests.request import Request
from tests import hub


def cache() -> Path:
    """Where the bench keeps what takes long to make."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "evalkit" / "bench"


@contextmanager
def served() -> Iterator[None]:
    """The Hub until the block ends. To be entered before anything imports huggingface_hub, which
    reads the environment once."""
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if hub.MISSING:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    os.environ |= {"HF_HOME": str(cache() / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    with tempfile.TemporaryDirectory() as folder, hub.serve(Path(folder), port):
        yield


def source() -> str:
    """Where the documents come from, in words."""
    return "the Hub" if hub.MISSING else "the tests' stand-in Hub"


def suite(tasks: list[SuiteTask], *, limit: int | None = None, **settings: Any) -> Suite:
    """A suite of these tasks that has no file."""
    return Suite("bench", ROOT / "bench.yaml", tuple(tasks), limit=limit, **settings)


def load(wanted: Suite) -> Any:
    """The suite's tasks as `harness.tasks` loads them, with their data."""
    from evalkit.harness import tasks
    from evalkit.harness.data import loading

    lock = suites.lock_of(suites.load("core"))
    pins = loading.Pins({name: dataset["revision"] for name, dataset in lock.datasets.items()})
    return tasks.load(wanted, pins)


def requests(loaded: Any, asking: Asking = PLAIN) -> list[Request]:
    """Every request of a loaded suite."""
    from evalkit.harness.asking import requests as building

    return building.build(loaded, asking)
