"""The stand-in Hub for tests: real benchmark data over the Hub's HTTP API, on loopback.

Its program and data lie beside the repository, in ../shared/hub, and are not part of it: where they
are missing, the tests that need them are skipped. Besides that data it serves folders of our own,
whose repos a test can make and change (a repo's commit is a digest of its files).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "hub"
MISSING = "" if (SHARED / "hubserver.py").is_file() else f"there is no {SHARED.name} in ../shared"


@dataclass(frozen=True)
class Hub:
    """A running server: its address, and the folders whose repos (`<org>__<name>`) are ours."""

    url: str
    datasets: Path
    models: Path

    def repo(self, name: str, files: dict[str, str], kind: str = "datasets") -> Path:
        """Make `name` hold exactly these texts, as one commit: another if they are others."""
        folder = (self.datasets if kind == "datasets" else self.models) / name.replace("/", "__")
        shutil.rmtree(folder, ignore_errors=True)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder


@contextmanager
def serve(folder: Path, port: int) -> Iterator[Hub]:
    """Run the server on `port` until the block ends; its own repos lie in `folder`."""
    hub = Hub(f"http://127.0.0.1:{port}", folder / "datasets", folder / "models")
    for own in (hub.datasets, hub.models):
        own.mkdir(parents=True)
    ready = folder / "port"
    process = subprocess.Popen(
        [
            sys.executable, os.fspath(SHARED / "hubserver.py"),
            "--datasets", SHARED / "datasets", "--datasets", hub.datasets, "--models", hub.models,
            "--port", str(port), "--port-file", ready,
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not ready.is_file():
            assert process.poll() is None, f"the stand-in Hub ended with {process.returncode}"
            assert time.monotonic() < deadline, "the stand-in Hub does not answer"
            time.sleep(0.05)
        yield hub
    finally:
        process.terminate()
        process.wait(10)
