"""The doctor against machines that we don't have, and once against this one."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import call

from evalkit.base.errors import EvalkitError
from evalkit.host import doctor
from evalkit.host.doctor import Finding, Host, Status
from evalkit.host.doctor.host import Cluster
from evalkit.host.launch.runtimes import Unusable

GB = 10**9


@dataclass(frozen=True)
class Stand(Host):
    """A machine that answers what a test says; by default one on which all is well."""

    said: dict[str, Any] = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        if name == "said" or name.startswith("_") or name not in GOOD:
            return object.__getattribute__(self, name)
        value = {**GOOD, **self.said}[name]

        def answer(*_: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return answer


GOOD: dict[str, Any] = {
    "gpus": "580.65.06, 9.0\n580.65.06, 9.0\n",
    "gpu_signs": [],
    "gpu_memory": [80 * GB, 80 * GB],
    "memory": 512 * GB,
    "lock": "cuda13",
    "weights": 16 * GB,
    "free": 900 * GB,
    "free_inodes": 10_000_000,
    "is_writable": True,
    "runtime": "28.2.2 has evalkit:0.1.0 sha256:abababababab",
    "clock_apart_s": 0.2,
    "clock_is_kept": True,
    "now": 1_800_000_000.0,
    "limit": None,
    "shared_memory": 8 * GB,
    "slurm": Cluster("24.05", {"gpu": ["gpu:a100:4", "2 nodes"]}, "1,000 tasks at most"),
    "namespaces": (True, True),
}


def examined(folder: Path, **said: Any) -> dict[str, Finding]:
    """What the doctor finds on a machine that answers so, of a model in `folder`, by name."""
    environment = said.pop("environment", {"HF_TOKEN": "hf_planted"})
    host = Stand(environment=environment, machine="x86_64", said=said)
    return {f.name: f for f in doctor.examine(host, Path("results"), str(folder))}


def test_a_machine_on_which_all_is_well_passes(tmp_path: Path) -> None:
    found = examined(tmp_path)
    assert {finding.status for finding in found.values()} == {Status.PASS}
    assert "the lock to use is cuda13" in found["driver"].found
    assert "hf_planted" not in "".join(map(str, found.values()))


@pytest.mark.parametrize(
    ("name", "said", "status", "words"),
    [
        ("driver", {"gpus": None}, "WARN", "no nvidia-smi"),
        ("driver", {"gpus": None, "gpu_signs": ["SLURM_JOB_GPUS=0"]}, "FAIL", "a run is refused"),
        ("driver", {"gpus": "NVIDIA-SMI has failed"}, "WARN", "has failed: have the driver"),
        ("driver", {"gpus": "535.1, 9.0"}, "PASS", "driver 535, .* the lock to use is cuda12"),
        ("installed", {"gpus": "535.1, 9.0"}, "FAIL", "make setup LOCK=cuda12"),
        ("installed", {"lock": "cpu"}, "WARN", "a host with a GPU: make setup LOCK=cuda13"),
        ("installed", {"gpus": None}, "WARN", "cuda13 lock, and no GPU here: runs are on the CPU"),
        ("installed", {"lock": "base"}, "PASS", "base lock"),
        ("installed", {"lock": None}, "WARN", "make setup"),
        ("memory", {"weights": 100 * GB}, "WARN", "needs about 120.0 GB: .*DEVICE=auto"),
        ("memory", {"weights": 200 * GB}, "FAIL", "more room in a GPU"),
        ("memory", {"gpu_memory": [], "weights": 500 * GB}, "FAIL", "no GPU; .*room in memory"),
        ("memory", {"weights": 0}, "PASS", "no weights"),
        ("results", {"is_writable": False}, "FAIL", "can't be written to: .*OUT="),
        ("results", {"free": GB // 2}, "FAIL", "0.5 GB free"),
        ("inodes", {"free_inodes": 99}, "WARN", "room for 99 files"),
        ("inodes", {"free_inodes": None}, "PASS", "does not count"),
        ("cache", {"free": 5 * GB}, "WARN", "5 GB free: set HF_HOME"),
        ("cache", {"is_writable": False}, "WARN", "OFFLINE=1"),
        ("token", {"environment": {"HF_TOKEN_PATH": "/nowhere"}}, "WARN", "need HF_TOKEN"),
        ("docker", {"runtime": Unusable("not installed")}, "WARN", "not installed"),
        ("podman", {"runtime": Unusable("it has no image x")}, "WARN", "make image"),
        ("apptainer", {"runtime": Unusable("there is no x.sif")}, "WARN", "make sif"),
        ("docker", {"runtime": Unusable("permission denied")}, "WARN", "permission denied: mend"),
        ("environment", {"environment": {"PYTHONPATH": "x"}}, "WARN", "PYTHONPATH may change"),
        ("environment", {"environment": {"LD_PRELOAD": "x"}}, "WARN", "LD_PRELOAD"),
        ("environment", {"environment": {"PYTHONUNBUFFERED": "1"}}, "PASS", "no variable"),
        ("clock", {"now": 12.0}, "FAIL", "never set"),
        ("clock", {"clock_apart_s": -90.0}, "WARN", "-90 s apart"),
        ("clock", {"clock_is_kept": False}, "WARN", "nobody keeps it"),
        ("clock", {"clock_is_kept": None}, "PASS", "within 5 s"),
        ("limits", {"limit": 256}, "WARN", "only 256 open files: ulimit -n 1024"),
        ("limits", {"limit": 4 * GB}, "WARN", "address space is limited to 4.0 GB"),
        ("slurm", {"slurm": None}, "PASS", "not here"),
        ("slurm", {}, "PASS", "24.05: partitions gpu .gpu:a100:4, 2 nodes.; 1,000 tasks"),
        ("slurm", {"slurm": EvalkitError("sinfo does not answer")}, "WARN", "does not answer"),
        ("namespaces", {"namespaces": (False, False)}, "WARN", "max_user_namespaces"),
        ("namespaces", {"namespaces": (True, False)}, "WARN", "with this host's network"),
        ("shared memory", {"shared_memory": 64 << 20}, "WARN", "0.07 GB"),
        ("shared memory", {"shared_memory": None}, "WARN", "there is none"),
    ],
)
def test_a_machine_that_lacks_something_is_told_what_and_what_to_do(
    name: str, said: dict[str, Any], status: str, words: str, tmp_path: Path
) -> None:
    line = str(examined(tmp_path, **said)[name])
    assert line.startswith(status), line
    assert re.search(words, line), line


def test_this_machine_gets_a_line_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", os.devnull)  # its client waits 9 s for an absent controller
    ran = call("doctor", "--out", tmp_path)
    assert ran.code in (0, 1)
    lines = ran.out.splitlines()
    assert len(lines) == 17
    assert all(re.match(r"(PASS|WARN|FAIL)  \w+", line) for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_failure_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: [Finding("x", Status.FAIL, "bad", "mend")])
    assert call("doctor", "--out", tmp_path).code == 1
