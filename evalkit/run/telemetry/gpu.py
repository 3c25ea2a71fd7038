"""The NVIDIA GPUs that this process may use, as the driver's library NVML shows them.

NVML counts GPUs as `nvidia-smi` does, whatever CUDA shows to this process, so CUDA_VISIBLE_DEVICES
is read here. A driver can hang; all questions go through `Patience`.
"""

import os
import time
from collections.abc import Callable
from typing import Any, TypedDict

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.run.telemetry.threads import Patience

START_S = 2.0  # how long the start of a run waits for the driver
ANSWER_S = 0.4  # how long a reading of the energy counters does
SAMPLE_S = 5.0  # how long a sample does, which holds nobody up
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


class GpuSample(TypedDict):
    """What the driver shows of a GPU at a time; None for what it does not."""

    index: int
    name: str
    utilisation: float | None
    watts: float | None
    celsius: int | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None


class Gpus:
    """The visible GPUs; none where there is no driver, or no nvidia-ml-py to ask it with."""

    def __init__(self) -> None:
        self._found: list[_Gpu] = []
        self._absent = "the package nvidia-ml-py is not installed"
        try:
            import pynvml
        except ImportError:
            return
        self._driver = Patience("the NVIDIA driver", pynvml.NVMLError)
        try:
            self._driver.ask(lambda: self._find(pynvml), START_S)
        except EvalkitError as error:
            self._absent = error.what

    def _find(self, nvml: Any) -> None:
        """Find them; a driver that takes longer than we wait for it is heard all the same."""
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise EvalkitError(f"no NVIDIA driver: {error}") from None
        handles = _visible(nvml, _handles(nvml))
        if not handles:
            raise EvalkitError("no GPU is visible to this process")
        self._found = [_Gpu(nvml, handle) for handle in handles]

    def sample(self) -> list[GpuSample]:
        """What each shows now; EvalkitError where the driver fails or hangs."""
        if not self._found:
            return []
        return self._driver.ask(lambda: [gpu.sample() for gpu in self._found], SAMPLE_S)

    def joules(self) -> float:
        """Energy of all since they were found; EvalkitError says why it can't be told."""
        if not self._found:
            raise EvalkitError(self._absent)
        return self._driver.ask(self._sum, ANSWER_S)

    def _sum(self) -> float:
        return canon.total(gpu.joules() for gpu in self._found)


def _handles(nvml: Any) -> list[Any]:
    """Every GPU that this process may open, in the driver's order."""
    handles = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NO_PERMISSION:  # a batch system gave it to another
                raise
    return handles


def _visible(nvml: Any, handles: list[Any]) -> list[Any]:
    """Return the GPUs that CUDA shows to this process: as CUDA has it, the first name in
    CUDA_VISIBLE_DEVICES that fits none ends the list."""
    if VISIBLE not in os.environ:
        return handles
    names = [name.strip() for name in os.environ[VISIBLE].split(",")]
    uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    places: list[int] = []
    for name in names:
        if name.startswith("MIG-"):
            raise EvalkitError("a part of a GPU (MIG) has no meter of its own")
        fits = [at for at, uuid in enumerate(uuids) if _fits(name, at, uuid)]
        if len(fits) != 1:
            break
        places += fits
    numbered = any(name.isdecimal() for name in names) and len(set(places)) < len(handles)
    if numbered and os.environ.get(ORDER) != "PCI_BUS_ID" and not _are_alike(nvml, handles):
        raise EvalkitError(
            f"{VISIBLE} numbers unlike GPUs, and only with {ORDER}=PCI_BUS_ID as the driver does"
        )
    return [handles[at] for at in sorted(set(places))]


def _fits(name: str, place: int, uuid: str) -> bool:
    return name == str(place) or (name.startswith("GPU-") and uuid.startswith(name))


def _are_alike(nvml: Any, handles: list[Any]) -> bool:
    """Whether the GPUs are of one kind; else CUDA counts from the fastest on."""
    return len({nvml.nvmlDeviceGetName(handle) for handle in handles}) == 1


class _Gpu:
    """One GPU. Its energy is its counter's (Volta and later), else its power summed over time."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._index, self._name = nvml.nvmlDeviceGetIndex(handle), nvml.nvmlDeviceGetName(handle)
        self._first_mj: int | None = self._told(nvml.nvmlDeviceGetTotalEnergyConsumption)
        self._summed = 0.0
        self._watts_then: float | None = None
        self._then = time.monotonic()

    def _told(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What an NVML call returns, or None where this GPU or driver doesn't tell it."""
        nvml = self._nvml
        try:
            return call(self._handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_NO_PERMISSION,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            ):
                return None
            raise

    def sample(self) -> GpuSample:
        nvml = self._nvml
        busy = self._told(nvml.nvmlDeviceGetUtilizationRates)
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo)
        return {
            "index": self._index,
            "name": self._name,
            "utilisation": busy.gpu / 100 if busy else None,
            "watts": self._watts(),
            "celsius": self._told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "memory_used_bytes": memory.used if memory else None,
            "memory_total_bytes": memory.total if memory else None,
        }

    def _watts(self) -> float | None:
        """Power now, and on the way its sum over time (trapezoids) since the last call."""
        milliwatts = self._told(self._nvml.nvmlDeviceGetPowerUsage)
        watts, now = None if milliwatts is None else milliwatts / 1000, time.monotonic()
        if watts is not None and self._watts_then is not None:
            self._summed += (watts + self._watts_then) / 2 * (now - self._then)
        self._watts_then, self._then = watts, now
        return watts

    def joules(self) -> float:
        """Energy since this was made; EvalkitError where it tells neither energy nor power."""
        if self._first_mj is not None:
            energy_mj: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            return (energy_mj - self._first_mj) / 1000
        if self._watts() is None:
            raise EvalkitError(f"GPU {self._index} tells neither its energy nor its power")
        return self._summed
