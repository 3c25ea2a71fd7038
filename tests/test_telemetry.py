"""Telemetry: what the meters tell, and that none of it can raise into a run or hold it up.

The machine is a made-up /proc and /sys, the driver a made-up pynvml in `sys.modules`.
"""

import errno
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.run import telemetry
from evalkit.run.telemetry import gpu, host, threads

RANGE_UJ = 262_143_328_850  # a common package's: 262 kJ
UNSUPPORTED, FORBIDDEN, NO_LIBRARY, LOST = 3, 4, 12, 15  # NVML's numbers
NOTHING = {"cpu": None, "gpu": None}


class Nvml(ModuleType):
    """A driver with GPUs of the given names; a GPU's handle is its place.

    Functions named in `fails` raise the error of that number, those in `hangs` wait for `awake`.
    """

    NVML_ERROR_NOT_SUPPORTED = UNSUPPORTED
    NVML_ERROR_NO_PERMISSION = FORBIDDEN
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def __init__(self, *names: str) -> None:
        super().__init__("pynvml")
        self.fails: dict[str, int] = {}
        self.hangs: set[str] = set()
        self.forbidden: set[int] = set()
        self.awake = threading.Event()
        self.energy_mj = [1_000_000 * (place + 1) for place in range(len(names))]
        self._tell("nvmlInit", lambda: None)
        self._tell("nvmlDeviceGetCount", lambda: len(names))
        self._tell("nvmlDeviceGetHandleByIndex", self._handle)
        self._tell("nvmlDeviceGetIndex", lambda handle: handle)
        self._tell("nvmlDeviceGetName", lambda handle: names[handle])
        self._tell("nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}aaa-bbb")
        self._tell("nvmlDeviceGetUtilizationRates", lambda _: SimpleNamespace(gpu=75, memory=5))
        self._tell("nvmlDeviceGetPowerUsage", lambda handle: 100_000 * (handle + 1))
        self._tell("nvmlDeviceGetTemperature", lambda handle, _: 40 + handle)
        self._tell("nvmlDeviceGetMemoryInfo", lambda _: SimpleNamespace(used=3, total=80, free=77))
        self._tell("nvmlDeviceGetTotalEnergyConsumption", lambda handle: self.energy_mj[handle])

    def _handle(self, index: int) -> int:
        if index in self.forbidden:
            raise self.NVMLError(FORBIDDEN)
        return index

    def _tell(self, name: str, value: Callable[..., Any]) -> None:
        def call(*arguments: Any) -> Any:
            if name in self.hangs:
                self.awake.wait(30)
            if name in self.fails:
                raise self.NVMLError(self.fails[name])
            return value(*arguments)

        setattr(self, name, call)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: no pynvml, unless a test brings its own."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Nvml]]:
    """Installs an Nvml with GPUs of the given names; wakes it up when the test is over."""
    made: list[Nvml] = []

    def install(*names: str) -> Nvml:
        made.append(Nvml(*names))
        monkeypatch.setitem(sys.modules, "pynvml", made[-1])
        return made[-1]

    yield install
    for nvml in made:
        nvml.awake.set()


def put(root: Path, **files: object) -> None:
    """Write files below a root; `__` stands for `/` in their names."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def rapl(root: Path, number: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    """Make a RAPL domain; the path of its counter."""
    folder = root / f"sys/class/powercap/intel-rapl:{number}"
    put(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=range_uj)
    return folder / "energy_uj"


def lines(path: Path) -> list[dict[str, Any]]:
    """A telemetry file's samples; each of its lines is canonical JSON."""
    found = path.read_text().splitlines()
    assert [canon.dumps(canon.loads(line)) for line in found] == found
    return [canon.loads(line) for line in found]


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that a thread does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


class Slow(telemetry.Meter):
    """A meter that takes its time."""

    seconds = 0.0

    def sample(self) -> dict[str, Any]:
        time.sleep(self.seconds)
        return super().sample()


# The host's meters


def test_a_machine_without_meters_is_a_normal_one(tmp_path: Path) -> None:
    meter = telemetry.Meter(tmp_path)
    sample = meter.sample()
    assert sample.pop("time").endswith("Z")
    assert sample == {
        "cpu": {"utilisation": None, "watts": None, "celsius": None},
        "memory": {"used_bytes": None, "total_bytes": None},
        "gpus": [],
    }
    assert meter.joules() == NOTHING
    assert meter.missing == {
        "cpu": "the kernel shows no RAPL counters",
        "gpu": "the package nvidia-ml-py is not installed",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /proc")
def test_this_machine_tells_its_load_and_its_memory() -> None:
    meter = telemetry.Meter()
    time.sleep(0.05)
    sample = meter.sample()
    assert 0 <= sample["cpu"]["utilisation"] <= 1
    assert 0 < sample["memory"]["used_bytes"] < sample["memory"]["total_bytes"]
    assert set(meter.joules()) == {"cpu", "gpu"}


def test_load_is_the_busy_share_of_all_cores_since_the_last_sample(tmp_path: Path) -> None:
    """Waiting for a disk is not work; a guest's time is in `user` already."""
    put(tmp_path, proc__stat="cpu  1000 10 100 5000 50 1 2 3 400 0\ncpu0 1 2 3 4")
    meter = telemetry.Meter(tmp_path)
    put(tmp_path, proc__stat="cpu  1030 10 110 5050 60 1 2 3 430 0\ncpu0 1 2 3 4")
    assert meter.sample()["cpu"]["utilisation"] == 0.4
    assert meter.sample()["cpu"]["utilisation"] is None, "no tick has passed"
    put(tmp_path, proc__stat="cpu  1130 10 110 5050 60 1 2 3 430 0\ncpu0 1 2 3 4")
    assert meter.sample()["cpu"]["utilisation"] == 1.0


def test_memory_that_the_kernel_could_free_is_not_used(tmp_path: Path) -> None:
    put(tmp_path, proc__meminfo="MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\nHuge: 0")
    assert telemetry.Meter(tmp_path).sample()["memory"] == {
        "used_bytes": 600 * 1024,
        "total_bytes": 1000 * 1024,
    }


def test_heat_is_the_hottest_packages(tmp_path: Path) -> None:
    sensors = tmp_path / "sys/class/hwmon"
    put(sensors / "hwmon0", name="nvme", temp1_input=99000)
    put(sensors / "hwmon1", name="coretemp", temp1_input=45000, temp2_input=98000)
    put(sensors / "hwmon2", name="coretemp", temp1_input=52500)
    put(tmp_path / "sys/class/thermal/thermal_zone0", type="x86_pkg_temp", temp=70000)
    meter = telemetry.Meter(tmp_path)
    assert meter.sample()["cpu"]["celsius"] == 52.5
    (sensors / "hwmon2/temp1_input").unlink()
    assert meter.sample()["cpu"]["celsius"] == 45.0


def test_heat_comes_from_a_thermal_zone_where_there_is_no_sensor(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/thermal"
    put(zones / "thermal_zone0", type="acpitz", temp=99000)
    put(zones / "thermal_zone1", type="x86_pkg_temp", temp=61000)
    assert telemetry.Meter(tmp_path).sample()["cpu"]["celsius"] == 61.0


# The host's energy


def test_energy_is_that_of_the_packages_since_the_meter_was_made(tmp_path: Path) -> None:
    """Cores and memory are parts of a package, or not of the processor at all."""
    one, two = rapl(tmp_path, "0", "package-0", 5_000_000), rapl(tmp_path, "1", "package-1", 0)
    others = [rapl(tmp_path, number, name, 0) for number, name in
              [("0:0", "core"), ("0:1", "dram"), ("2", "psys")]]  # fmt: skip
    meter = telemetry.Meter(tmp_path)
    assert meter.joules()["cpu"] == 0.0
    one.write_text("7000000\n")
    two.write_text("500000\n")
    for other in others:
        other.write_text("900000000\n")
    assert meter.joules() == {"cpu": 2.5, "gpu": None}
    assert set(meter.missing) == {"gpu"}


def test_a_counter_that_wraps_goes_on_counting(tmp_path: Path) -> None:
    counter = rapl(tmp_path, "0", "package-0", RANGE_UJ - 1_000_000)
    meter = telemetry.Meter(tmp_path)
    counter.write_text("3000000\n")
    assert meter.joules()["cpu"] == 4.0
    counter.write_text(f"{RANGE_UJ}\n")
    counter_before = meter.joules()["cpu"]
    counter.write_text("2000000\n")
    meter.sample()
    assert meter.joules()["cpu"] == pytest.approx(counter_before + 2.0)


def test_counters_are_read_now_and_then_even_when_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a phase without telemetry that is longer than a counter's round lost whole rounds."""
    monkeypatch.setattr(telemetry, "COUNT_S", 0.01)
    monkeypatch.setattr(host, "PACKAGE_WATTS", 0.01)
    counter = rapl(tmp_path, "0", "package-0", 0, range_uj=10_000_000)
    read = threading.Event()
    package = host.Package.joules

    def joules(self: host.Package) -> float:
        found = package(self)
        read.set()
        return found

    monkeypatch.setattr(host.Package, "joules", joules)
    meter = telemetry.Meter(tmp_path)
    for energy_uj in (6_000_000, 2_000_000, 8_000_000, 4_000_000):
        counter.write_text(f"{energy_uj}\n")
        for _ in range(2):  # the first reading may have begun before the file was written
            read.clear()
            assert read.wait(10)
    assert meter.joules()["cpu"] == 24.0


def test_a_meter_that_nobody_holds_stops_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "COUNT_S", 0.01)
    rapl(tmp_path, "0", "package-0", 0)
    before = set(threading.enumerate())
    meter = telemetry.Meter(tmp_path)
    (counting,) = set(threading.enumerate()) - before
    time.sleep(0.05)  # some readings
    held = weakref.ref(meter)
    del meter
    gc.collect()
    counting.join(10)
    assert not counting.is_alive() and held() is None


def test_a_pause_that_may_hide_a_round_makes_the_energy_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a batch system stops for an hour must not report the rest of a division."""
    rapl(tmp_path, "0", "package-0", 0)
    meter = telemetry.Meter(tmp_path)
    before = meter.joules()
    with monkeypatch.context() as patch:
        patch.setattr(host, "PACKAGE_WATTS", 1e15)
        assert meter.joules()["cpu"] is None
    assert "may have wrapped" in meter.missing["cpu"]
    said = telemetry.energy(before, NOTHING, meter.missing)
    assert said["cpu"] == {"unknown": meter.missing["cpu"]}


def test_power_is_energy_over_time(tmp_path: Path) -> None:
    counter = rapl(tmp_path, "0", "package-0", 0)
    began = time.monotonic()
    meter = telemetry.Meter(tmp_path)
    time.sleep(0.1)
    counter.write_text("10000000\n")
    watts = meter.sample()["cpu"]["watts"]
    assert 10 / (time.monotonic() - began) <= watts <= 10 / 0.1


def test_counters_for_root_only_are_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = rapl(tmp_path, "0", "package-0", 0)
    read_text = Path.read_text

    def forbidden(self: Path, *arguments: Any) -> str:
        if self == counter:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return read_text(self, *arguments)

    monkeypatch.setattr(Path, "read_text", forbidden)
    meter = telemetry.Meter(tmp_path)
    assert meter.missing["cpu"] == "RAPL counters are readable by root only"
    assert meter.sample()["cpu"]["watts"] is None


def test_a_counter_that_disappears_raises_nothing(tmp_path: Path) -> None:
    counter = rapl(tmp_path, "0", "package-0", 0)
    meter = telemetry.Meter(tmp_path)
    counter.unlink()
    assert meter.joules()["cpu"] is None
    assert "can't be read" in meter.missing["cpu"]
    assert meter.sample()["cpu"]["watts"] is None


# GPUs


def test_every_gpu_is_sampled(tmp_path: Path, driver: Callable[..., Nvml]) -> None:
    driver("A100", "A100")
    one, two = telemetry.Meter(tmp_path).sample()["gpus"]
    assert one == {
        "index": 0,
        "name": "A100",
        "utilisation": 0.75,
        "watts": 100.0,
        "celsius": 40,
        "memory_used_bytes": 3,
        "memory_total_bytes": 80,
    }
    assert (two["index"], two["watts"], two["celsius"]) == (1, 200.0, 41)


@pytest.mark.parametrize(
    ("visible", "places"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        (" 2, 0", [0, 2]),
        ("1,1", [1]),
        ("0,-1,2", [0]),
        ("0,9,1", [0]),
        ("GPU-1", [1]),
        ("GPU-2aaa-bbb,GPU-0aaa", [0, 2]),
        ("GPU-", []),
        ("GPU-7", []),
        ("none", []),
    ],
)
def test_only_gpus_that_cuda_shows_to_this_process_count(
    tmp_path: Path,
    driver: Callable[..., Nvml],
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    places: list[int],
) -> None:
    nvml = driver("A100", "A100", "A100")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = telemetry.Meter(tmp_path)
    assert [found["index"] for found in meter.sample()["gpus"]] == places
    nvml.energy_mj = [energy + 1000 for energy in nvml.energy_mj]
    assert meter.joules()["gpu"] == (float(len(places)) or None)
    assert places or meter.missing["gpu"] == "no GPU is visible to this process"


def test_a_number_that_may_mean_another_gpu_counts_none(
    tmp_path: Path, driver: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA counts from the fastest GPU on, the driver by PCI bus."""
    driver("T4", "H100")

    def shown() -> list[int]:
        return [found["index"] for found in telemetry.Meter(tmp_path).sample()["gpus"]]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert shown() == []
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in telemetry.Meter(tmp_path).missing["gpu"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert shown() == [0]
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert shown() == [0, 1], "all of them, whatever their order"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert shown() == [1]


def test_a_part_of_a_gpu_has_no_meter(
    tmp_path: Path, driver: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("A100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    meter = telemetry.Meter(tmp_path)
    assert meter.sample()["gpus"] == []
    assert "MIG" in meter.missing["gpu"]


def test_another_jobs_gpu_is_passed_over(tmp_path: Path, driver: Callable[..., Nvml]) -> None:
    driver("A100", "A100").forbidden = {0}
    assert [found["index"] for found in telemetry.Meter(tmp_path).sample()["gpus"]] == [1]


def test_a_gpu_without_a_counter_has_its_power_summed_up(
    tmp_path: Path, driver: Callable[..., Nvml]
) -> None:
    driver("P100", "P100").fails = {"nvmlDeviceGetTotalEnergyConsumption": UNSUPPORTED}
    meter = telemetry.Meter(tmp_path)
    began, first = time.monotonic(), meter.joules()["gpu"]
    time.sleep(0.1)
    meter.sample()
    time.sleep(0.1)
    last = meter.joules()["gpu"]
    assert first is not None and last is not None
    assert 300 * 0.2 <= last - first <= 300 * (time.monotonic() - began)


def test_a_gpu_that_tells_neither_energy_nor_power_is_named(
    tmp_path: Path, driver: Callable[..., Nvml]
) -> None:
    nvml = driver("GRID")
    nvml.fails = {
        "nvmlDeviceGetTotalEnergyConsumption": UNSUPPORTED,
        "nvmlDeviceGetPowerUsage": UNSUPPORTED,
        "nvmlDeviceGetMemoryInfo": FORBIDDEN,
        "nvmlDeviceGetUtilizationRates": nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        "nvmlDeviceGetTemperature": UNSUPPORTED,
    }
    meter = telemetry.Meter(tmp_path)
    assert meter.joules() == NOTHING
    assert meter.missing["gpu"] == "GPU 0 tells neither its energy nor its power"
    (sample,) = meter.sample()["gpus"]
    assert {key for key, value in sample.items() if value is not None} == {"index", "name"}


def test_a_machine_without_a_driver_is_a_normal_one(
    tmp_path: Path, driver: Callable[..., Nvml]
) -> None:
    driver().fails = {"nvmlInit": NO_LIBRARY}
    meter = telemetry.Meter(tmp_path)
    assert meter.sample()["gpus"] == []
    assert meter.missing["gpu"].startswith("no NVIDIA driver")


# A driver that fails or hangs


def test_a_lost_gpu_ends_the_sampling_and_nothing_else(
    tmp_path: Path, driver: Callable[..., Nvml]
) -> None:
    nvml = driver("A100")
    meter = telemetry.Meter(tmp_path)
    before = meter.joules()
    path = tmp_path / "one.jsonl"
    with telemetry.Telemetry(path, meter, 0.01) as running:
        wait_until(lambda: path.exists() and len(lines(path)) > 0)
        nvml.fails = dict.fromkeys(
            ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"), LOST
        )
        wait_until(lambda: running.stopped_because is not None)
    assert running.stopped_because == "the NVIDIA driver fails: error 15"
    said = telemetry.energy(before, meter.joules(), meter.missing)
    assert said["gpu"] == {"unknown": "the NVIDIA driver fails: error 15"}


def test_a_driver_that_hangs_at_the_start_is_not_waited_for_but_heard_later(
    tmp_path: Path, driver: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "START_S", 0.05)
    nvml = driver("A100")
    nvml.hangs = {"nvmlInit"}
    began = time.monotonic()
    meter = telemetry.Meter(tmp_path)
    assert meter.joules()["gpu"] is None
    assert meter.sample()["gpus"] == []
    assert time.monotonic() - began < 0.5
    assert meter.missing["gpu"] == "the NVIDIA driver does not answer"
    nvml.awake.set()
    wait_until(lambda: meter.joules()["gpu"] is not None)


def test_a_driver_that_hangs_holds_a_reading_up_once_only(
    tmp_path: Path, driver: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ANSWER_S", 0.2)
    nvml = driver("A100")
    rapl(tmp_path, "0", "package-0", 0)
    meter = telemetry.Meter(tmp_path)
    nvml.hangs = {"nvmlDeviceGetTotalEnergyConsumption"}
    assert meter.joules() == {"cpu": 0.0, "gpu": None}
    began = time.monotonic()
    for _ in range(20):
        assert meter.joules() == {"cpu": 0.0, "gpu": None}
    assert time.monotonic() - began < 0.15
    assert meter.missing["gpu"] == "the NVIDIA driver does not answer"
    nvml.awake.set()
    wait_until(lambda: meter.joules()["gpu"] is not None)


def test_a_run_ends_while_the_driver_hangs_and_nothing_is_written_after_it(
    tmp_path: Path, driver: Callable[..., Nvml]
) -> None:
    """The record holds the file's digest: a line that comes later would break it."""
    nvml = driver("A100")
    meter = telemetry.Meter(tmp_path)
    path = tmp_path / "telemetry" / "one.jsonl"
    with telemetry.Telemetry(path, meter, 0.01) as running:
        wait_until(lambda: path.exists() and len(lines(path)) >= 2)
        nvml.hangs = {"nvmlDeviceGetPowerUsage"}
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert running.stopped_because == "the last sample took too long"
    text = path.read_text()
    nvml.awake.set()
    assert running.thread
    running.thread.join(10)
    assert not running.thread.is_alive()
    assert path.read_text() == text


def test_a_driver_that_hangs_in_mid_run_ends_the_sampling(
    tmp_path: Path, driver: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "SAMPLE_S", 0.05)
    nvml = driver("A100")
    meter = telemetry.Meter(tmp_path)
    nvml.hangs = {"nvmlDeviceGetPowerUsage"}
    with telemetry.Telemetry(tmp_path / "one.jsonl", meter) as running:
        wait_until(lambda: running.stopped_because is not None)
        began = time.monotonic()
    assert time.monotonic() - began < 0.1
    assert running.stopped_because == "the NVIDIA driver does not answer"


def test_one_question_waits_for_another() -> None:
    """A counter read during a slow sample must not take the driver for dead, nor must one late
    answer make it so for good."""
    patience = threads.Patience("it", ValueError)
    asked, awake = threading.Event(), threading.Event()
    with pytest.raises(EvalkitError, match="it does not answer"):
        patience.ask(lambda: awake.wait(30), 0.01)
    awake.set()
    wait_until(lambda: not patience._busy.locked())

    def slow() -> int:
        asked.set()
        time.sleep(0.1)
        return 1

    threads.start(patience.ask, slow, 5.0)
    assert asked.wait(10)
    assert patience.ask(lambda: 2, 5.0) == 2


# The file


def test_there_is_a_sample_at_the_start_and_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "telemetry" / "one.jsonl"
    with telemetry.Telemetry(path, telemetry.Meter(tmp_path)) as running:
        wait_until(lambda: path.exists() and len(lines(path)) == 1)
    assert len(lines(path)) == 2
    assert running.stopped_because is None


def test_a_run_that_is_over_at_once_has_both_samples(tmp_path: Path) -> None:
    with telemetry.Telemetry(tmp_path / "one.jsonl", telemetry.Meter(tmp_path)):
        pass
    assert len(lines(tmp_path / "one.jsonl")) == 2


def test_the_thread_ends_at_once_however_long_the_interval(tmp_path: Path) -> None:
    with telemetry.Telemetry(tmp_path / "one.jsonl", telemetry.Meter(tmp_path), 3600) as running:
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert running.thread and not running.thread.is_alive()


def test_sampling_takes_one_percent_of_the_time_at_most(tmp_path: Path) -> None:
    meter, fast = Slow(tmp_path), tmp_path / "fast.jsonl"
    with telemetry.Telemetry(fast, meter, 0.02):
        wait_until(lambda: fast.exists() and fast.read_text().count("\n") > 2)
    assert len(lines(fast)) > 2
    meter.seconds = 0.03
    with telemetry.Telemetry(tmp_path / "slow.jsonl", meter, 0.02):
        time.sleep(0.5)
    assert len(lines(tmp_path / "slow.jsonl")) == 2, "the next one was due after 3 seconds"


def test_a_runs_own_error_goes_through(tmp_path: Path) -> None:
    with (
        pytest.raises(EvalkitError, match="the run's"),
        telemetry.Telemetry(tmp_path / "one.jsonl", telemetry.Meter(tmp_path)) as running,
    ):
        raise EvalkitError("the run's")
    assert running.stopped_because is None
    assert len(lines(tmp_path / "one.jsonl")) == 2


def test_a_place_that_cannot_be_written_ends_the_sampling_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "telemetry" / "one.jsonl"
    with telemetry.Telemetry(place, telemetry.Meter(tmp_path)) as running:
        wait_until(lambda: running.stopped_because is not None)
    assert running.stopped_because == "can't make the folder: Not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_ends_the_sampling_only(tmp_path: Path) -> None:
    (tmp_path / "telemetry").mkdir(mode=0o500)
    place = tmp_path / "telemetry" / "one.jsonl"
    with telemetry.Telemetry(place, telemetry.Meter(tmp_path)) as running:
        pass
    assert running.stopped_because == "can't write one.jsonl: Permission denied"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_the_sampling_only(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").symlink_to("/dev/full")
    with telemetry.Telemetry(tmp_path / "one.jsonl", telemetry.Meter(tmp_path)) as running:
        wait_until(lambda: running.stopped_because is not None)
    assert running.stopped_because == "can't write one.jsonl: No space left on device"


def test_a_disk_that_fills_up_in_mid_run_ends_the_sampling_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = canon.Appender.append, threading.Event()

    def appended(self: canon.Appender, value: canon.Json, *, sync: bool) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, value, sync=sync)

    monkeypatch.setattr(canon.Appender, "append", appended)
    path = tmp_path / "one.jsonl"
    with telemetry.Telemetry(path, telemetry.Meter(tmp_path), 0.01) as running:
        wait_until(lambda: path.exists() and len(lines(path)) > 2)
        full.set()
        wait_until(lambda: running.stopped_because is not None)
    assert "No space left" in str(running.stopped_because)
    assert len(lines(path)) > 2


def test_a_disk_that_hangs_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake = threading.Event()
    monkeypatch.setattr(canon.Appender, "append", lambda *_, sync: awake.wait(30))
    with telemetry.Telemetry(tmp_path / "one.jsonl", telemetry.Meter(tmp_path)) as running:
        time.sleep(0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    awake.set()
    assert running.thread
    running.thread.join(10)


def test_a_machine_that_allows_no_more_threads_is_run_on_all_the_same(
    tmp_path: Path, driver: Callable[..., Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    driver("A100")
    rapl(tmp_path, "0", "package-0", 0)
    monkeypatch.setattr(threading.Thread, "start", no_more)
    meter = telemetry.Meter(tmp_path)
    assert meter.joules() == {"cpu": 0.0, "gpu": None}
    assert meter.missing["gpu"] == "can't start new thread"
    with telemetry.Telemetry(tmp_path / "one.jsonl", meter) as running:
        pass
    assert running.stopped_because == "can't start new thread"


# The record


def test_a_counter_that_was_set_back_makes_the_energy_unknown() -> None:
    """A driver loaded again gave a negative energy, which no record may hold: none was written."""
    said = telemetry.energy({"cpu": 2.0, "gpu": 9.0}, {"cpu": 3.0, "gpu": 0.5}, {})
    assert said == {"cpu": 1.0, "gpu": {"unknown": "its meter was set back meanwhile"}}


def test_energy_is_the_difference_or_the_reason_why_not() -> None:
    before, after = {"cpu": 1.5, "gpu": None}, {"cpu": 4.0004, "gpu": 8.0}
    assert telemetry.energy(before, after, {"gpu": "no NVIDIA driver"}) == {
        "cpu": 2.5,
        "gpu": {"unknown": "no NVIDIA driver"},
    }
    assert telemetry.energy(before, after, {})["gpu"] == {
        "unknown": "its meter was not read in time"
    }
