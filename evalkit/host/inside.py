"""The start inside evalkit's image: refuses Python settings of the host, and takes the launcher's
secrets.

The image sets `EVALKIT_PREFIX`; elsewhere nothing happens here. A variable or package of the host
would change answers under the image's name.
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
SECRETS = "EVALKIT_SECRETS"  # a file of variables that must not be on a command line
# What the image sets; any other value is the host's.
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
    """Check that only the image is in use, and take the secrets; outside of an image do nothing.
    Raises EvalkitError (3) that names what the host leaked in."""
    if PREFIX not in os.environ:
        return
    leaked = leaks(os.environ, sys.path)
    if leaked:
        raise EvalkitError(
            f"something of the host leaked into the image: {leaked[0]}",
            fix="start it with `evalkit launch`, which passes nothing on that is not named",
            code=Exit.MISSING,
        )
    _take_secrets()
    del os.environ[PREFIX]  # child processes get their environment from this one


def is_gone() -> bool:
    """Return whether this process was started in an image that is gone."""
    try:
        return PREFIX in os.environ and not Path(os.environ[PREFIX]).is_dir()
    except OSError:  # the process of its file system is dead
        return True


def leaks(environment: Mapping[str, str], path: Iterable[str]) -> list[str]:
    """Return in words what Python uses that is not the image's. `path`: sys.path."""
    own = OWN | {"PYTHONPYCACHEPREFIX": f"{environment[PREFIX]}/bytecode"}
    leaked = [
        f"the variable {name}"
        for name, value in sorted(environment.items())
        if name.startswith(STEERING) and own.get(name) != value
    ]
    leaked += [f"{name} is not set" for name in own if name not in environment]
    places = [sys.prefix, f"{sys.base_prefix}/lib"]
    leaked += [
        f"{entry or 'the working folder'} on Python's path"
        for entry in path
        if not any(Path(entry).is_relative_to(place) for place in places)
    ]
    if Path(sys.prefix) != Path(environment[PREFIX]):
        leaked.append(f"the Python in {sys.prefix}")
    return leaked


def _take_secrets() -> None:
    name = os.environ.pop(SECRETS, "")
    if name:
        with suppress(FileNotFoundError):  # the runtime has started the container again
            os.environ |= json.loads(Path(name).read_bytes())
            Path(name).unlink()
