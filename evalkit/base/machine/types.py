"""What a record says of software and hardware, as types. schemas/record.schema.json is the source;
`tests/test_record_types.py` compares the types with it.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict, final


@final
class Unknown(TypedDict):
    """A value that can't be known, and why."""

    unknown: str


Text = str | Unknown
Flag = bool | Unknown


class Hardware(TypedDict):
    """A device to compute on: the names of its GPUs (none for a CPU), and the versions of the
    software that chooses their kernels, None where there is none."""

    device: str
    gpu: list[str] | Unknown
    cuda: Text | None
    driver: Text | None
    cublas: Text | None
    cudnn: Text | None


# The hardware that stretches of a run must share for equal bits: a processor, or the parts of GPUs.
Machine = str | Mapping[str, object]


class Stretch(TypedDict):
    """Where a stretch of a run begins: the host, its hardware and Slurm's ids."""

    host: str
    hardware: Machine
    slurm: dict[str, str] | None


class Versions(TypedDict):
    """The versions of the software that the run id covers."""

    evalkit: str
    torch: Text
    transformers: Text
    tokenizers: Text


@final
class Image(TypedDict):
    """The container image that a run was executed in, as its launcher asserts."""

    digest: str
    of: str
    runtime: str
    asserted_by: str
    network: NotRequired[str]


class Environment(TypedDict):
    """The software and hardware that a run was executed with."""

    versions: Versions
    packages: dict[str, str]
    image: Image | Unknown
    lock: Text
    harness_intact: Flag
    python: Text
    os: Text
    cpu: Text
    gpu: list[str] | Unknown
    driver: Text
    cuda: Text
    runtime: Text
    cublas: NotRequired[Text]
    cudnn: NotRequired[Text]
    cleared: NotRequired[dict[str, str]]


class Code(TypedDict):
    """The commit of evalkit's own source."""

    commit: Text
    dirty: Flag
