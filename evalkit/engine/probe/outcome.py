"""The outcome of a worker's start-up checks, kept on this host: one that has passed for the same
weights, numerics and code on the same kind of hardware need not be made again."""

import os

import torch

from evalkit.base import canon, kept
from evalkit.base.machine import stamp
from evalkit.base.machine.steering import KERNELS
from evalkit.engine.core import Engine
from evalkit.engine.hardware.device import hardware
from evalkit.inputs.models.model import Model

PASSED = "passed"


def key_of(engine: Engine, model: Model, adapter: dict[str, str] | None, device: str) -> str:
    """Digest of all that the outcome of the checks follows from: the weights, the numerics and the
    level, the code, its versions and what chooses its kernels: the device and the environment.
    `adapter`: its files' digests, `device`: as it was asked for."""
    return canon.digest(
        {
            "model": model.sha256(),
            "adapter": adapter,
            "numerics": engine.numerics.to_json(),
            "level": engine.level,
            "code": kept.code(),
            "versions": stamp.versions(),
            "hardware": stamp.segment_start(hardware(device))["hardware"],
            "device": [device, torch.version.cuda, torch.backends.cpu.get_cpu_capability()],
            "environment": {n: v for n, v in os.environ.items() if n.startswith(KERNELS)},
        }
    )


def passed_before(key: str) -> bool:
    """Whether a check of this key has passed on a host of this kind."""
    return kept.read("probed").get(key) == PASSED


def remember(key: str) -> None:
    """Keep that a check of this key has passed; one that fails is never kept."""
    kept.write("probed", kept.read("probed") | {key: PASSED})
