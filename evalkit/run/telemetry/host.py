"""The host's own meters, read from /proc and /sys: load, heat and energy of the CPU, memory.

Where a file is missing or says nothing (another system than Linux, a container, a virtual machine)
the value is None.
"""

import threading
import time
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError

PACKAGE_WATTS = 1000  # more than any processor package takes
CHIPS = {"coretemp", "k10temp", "zenpower", "cpu_thermal"}  # hwmon's names of CPU thermometers
ZONES = {"x86_pkg_temp", "cpu-thermal", "cpu_thermal"}  # and those of thermal zones

Point = tuple[float, float]


def memory(root: Path) -> dict[str, int | None]:
    """The host's memory; what the kernel could free at once does not count as used."""
    lines = _text(root / "proc/meminfo").splitlines()
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    try:
        total, free = (int(sizes[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (KeyError, IndexError, ValueError):
        return {"used_bytes": None, "total_bytes": None}
    return {"used_bytes": (total - free) * 1024, "total_bytes": total * 1024}


class Cpu:
    """All processors together: load from /proc/stat, heat from hwmon, energy from RAPL."""

    def __init__(self, root: Path) -> None:
        self._stat = root / "proc/stat"
        self._thermometers = _thermometers(root / "sys/class")
        self._rapl = _Rapl(root / "sys/class/powercap")
        self._ticks_then = self._ticks()
        self._energy_then = self._energy()

    def joules(self) -> float:
        """Energy since this was made; EvalkitError says why it can't be told."""
        return self._rapl.joules()

    def sample(self) -> dict[str, float | None]:
        """Load and power since the last sample, heat now."""
        ticks_then, self._ticks_then = self._ticks_then, self._ticks()
        energy_then, self._energy_then = self._energy_then, self._energy()
        load, watts = _slope(ticks_then, self._ticks_then), _slope(energy_then, self._energy_then)
        heat = [reading for path in self._thermometers for reading in _integers(path)]
        return {
            "utilisation": None if load is None else round(min(max(load, 0.0), 1.0), 4),
            "watts": None if watts is None else round(watts, 3),
            "celsius": max(heat) / 1000 if heat else None,
        }

    def _ticks(self) -> Point | None:
        """All cores' clock ticks since the host started: (all, busy)."""
        ticks = _integers(self._stat)[:8]  # two more are parts of the first two
        idle = sum(ticks[3:5])  # idle, and idle with a disk at work
        return (sum(ticks), sum(ticks) - idle) if ticks else None

    def _energy(self) -> Point | None:
        """(seconds, joules)."""
        try:
            return time.monotonic(), self.joules()
        except EvalkitError:
            return None


def _slope(then: Point | None, now: Point | None) -> float | None:
    """How fast the second value grows with the first; None where nothing shows it."""
    if then is None or now is None or now[0] <= then[0]:
        return None
    return (now[1] - then[1]) / (now[0] - then[0])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _integers(path: Path) -> list[int]:
    words = _text(path).split("\n", 1)[0].split()
    return [int(word) for word in words if word.removeprefix("-").isdecimal()]


def _thermometers(folder: Path) -> list[Path]:
    """The processors' temperatures, one file for each: asking every core would wake it up."""
    names = sorted(folder.glob("hwmon/hwmon*/name"))
    types = sorted(folder.glob("thermal/thermal_zone*/type"))
    chips = [path.with_name("temp1_input") for path in names if _text(path) in CHIPS]
    return chips or [path.with_name("temp") for path in types if _text(path) in ZONES]


class _Rapl:
    """The energy counters of all processor packages (RAPL: Intel's word, AMD has them as well)."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._packages: list[Package] = []
        self._absent = "the kernel shows no RAPL counters"
        paths = sorted(folder.glob("intel-rapl:*"))
        try:  # a whole package's domains only: cores and such are parts of one
            packages = [path for path in paths if _text(path / "name").startswith("package-")]
            self._packages = [Package(path) for path in packages]
        except PermissionError:
            self._absent = "RAPL counters are readable by root only"
        except (OSError, ValueError) as error:
            self._absent = f"RAPL counters can't be read: {error}"

    def joules(self) -> float:
        if not self._packages:
            raise EvalkitError(self._absent)
        try:
            with self._lock:
                return canon.total(package.joules() for package in self._packages)
        except (OSError, ValueError) as error:
            raise EvalkitError(f"RAPL counters can't be read: {error}") from None


class Package:
    """One package's counter, which starts again at 0 beyond its range."""

    def __init__(self, domain: Path) -> None:
        self._path = domain / "energy_uj"
        self._range_uj = int((domain / "max_energy_range_uj").read_text())
        self._last_uj, self._last_s = self._read()
        self._sum_uj = 0

    def _read(self) -> tuple[int, float]:
        return int(self._path.read_text()), time.monotonic()

    def joules(self) -> float:
        """Energy since this was made; from the first pause on that hides a round, EvalkitError."""
        now_uj, now_s = self._read()
        if (now_s - self._last_s) * PACKAGE_WATTS * 1e6 > self._range_uj:
            raise EvalkitError("RAPL counters were not read for so long that they may have wrapped")
        self._sum_uj += (now_uj - self._last_uj) % self._range_uj
        self._last_uj, self._last_s = now_uj, now_s
        return self._sum_uj / 1e6
