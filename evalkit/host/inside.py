"""At the start inside evalkit's image: that nothing of the host is in Python's way, and the secrets
that the launcher left.

The image says that it is one (`EVALKIT_PREFIX`); elsewhere nothing happens here. What leaked in is
refused, since a package of the host's would change answers under the image's name.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine.steering import KERNELS

PREFIX = "EVALKIT_PREFIX"  # where the image has its Python environment
SECRETS = "EVALKIT_SECRETS"  # a file with variables that no command line may show
# What the image sets; any other value of these, and any other variable of these names, is not its.
OWN = {
    "PYTHONNOUSERSITE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# Variables that change what Python loads or how a kernel computes.
STEERING = ("PYTHON", "LD_PRELOAD", "LD_AUDIT", "TORCH", "PYTORCH", "TRANSFORMERS_", "LMEVAL_",
            "VIRTUAL_ENV", "CONDA_", *KERNELS)  # fmt: skip


def enter() -> None:
    """Check that only the image is in use and take the secrets over; nothing outside of an image.

    Raises EvalkitError (3) that names what leaked in.
    """
    if PREFIX not in os.environ:
        return
    found = leaks(os.environ, sys.path)
    if found:
        raise EvalkitError(
            f"something of the host leaked into the image: {found[0]}",
            fix="start it with `evalkit launch`, which passes nothing on that is not named",
            code=Exit.MISSING,
        )
    _take_secrets()
    del os.environ[PREFIX]  # processes that this one starts have what it gives them


def is_gone() -> bool:
    """Whether this was started in an image that is not there any more."""
    try:
        return PREFIX in os.environ and not Path(os.environ[PREFIX]).is_dir()
    except OSError:  # its file system's process is dead
        return True


def leaks(environment: Mapping[str, str], path: Iterable[str]) -> list[str]:
    """What is in Python's way that is not the image's, in words; `path` is sys.path."""
    own = OWN | {"PYTHONPYCACHEPREFIX": f"{environment[PREFIX]}/bytecode"}
    found = [
        f"the variable {name}"
        for name, value in sorted(environment.items())
        if name.startswith(STEERING) and own.get(name) != value
    ]
    found += [f"{name} is not set" for name in own if name not in environment]
    places = [sys.prefix, f"{sys.base_prefix}/lib"]
    found += [
        f"{entry or 'the working folder'} on Python's path"
        for entry in path
        if not any(Path(entry).is_relative_to(place) for place in places)
    ]
    if Path(sys.prefix) != Path(environment[PREFIX]):
        found.append(f"the Python in {sys.prefix}")
    return found


def _take_secrets() -> None:
    """Put the launcher's secrets into the environment and delete their file."""
    name = os.environ.pop(SECRETS, "")
    if name:
        with suppress(FileNotFoundError):  # the same run, started again after the file was read
            os.environ |= json.loads(Path(name).read_bytes())
            Path(name).unlink()
