"""A real Slurm cluster on this machine, and a user of it.

`slurm.sh` of ../shared/machine brings up munge, slurmctld and a slurmd a node; `containers.sh
apptainer` a rootless Apptainer and the user `evaluser`, as whom everything here is done. What can't
be had is a reason to skip, and CI says which.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hub as stand_in
import support

MACHINE = Path(__file__).resolve().parents[3] / "shared" / "machine"
USER, RUNUSER = "evaluser", shutil.which("runuser") or "runuser"
PYTHON = Path("/usr/bin/python3")  # one that this user may start: the tests' own may be root's
SIF = support.ROOT / "evalkit.sif"
IMAGE = "evalkit-tests:image"
HURRY_S = 2.0
TASKS = "[arc_challenge, mmlu_anatomy, bbh_cot_fewshot_navigate]"
MODELS = ("someone/student", "someone/pupil", "someone/teacher")


def missing() -> str:
    """Why there is no cluster here; "" where there is one."""
    if os.getuid() != 0:
        return "a cluster is brought up by root only"
    if not (MACHINE / "slurm.sh").is_file() or stand_in.MISSING:
        return "there is no ../shared/machine"
    if not PYTHON.is_file():
        return f"there is no {PYTHON}"
    return ""


def bring_up() -> None:
    """Slurm, Apptainer and the user, where they are not there already."""
    for script, word in (("containers.sh", "apptainer"), ("slurm.sh", "up")):
        subprocess.run(["bash", MACHINE / script, word], check=True, stdout=subprocess.DEVNULL)


def slurm(*words: str) -> str:
    """What `slurm.sh` says to these words."""
    script = ["bash", str(MACHINE / "slurm.sh"), *words]
    return subprocess.run(script, check=True, capture_output=True, text=True).stdout


def image_of_tests(made: Path) -> bool:
    """Make a SIF of the image that the container tests have built; whether there is one."""
    docker = "/usr/bin/docker"
    if subprocess.run([docker, "image", "inspect", IMAGE], capture_output=True).returncode:
        return False
    archive = made.with_suffix(".tar")
    subprocess.run([docker, "save", "--output", archive, IMAGE], check=True)
    quick = ("--mksquashfs-args", "-comp gzip -Xcompression-level 1")
    build = ["apptainer", "build", "--notest", "--build-arg", f"FROM={archive}", *quick]
    build += [str(made), str(support.ROOT / "apptainer.def")]
    subprocess.run(build, check=True, capture_output=True)
    archive.unlink()
    shutil.chown(made, USER)
    return True


@dataclass(frozen=True)
class User:
    """`evaluser` with a folder of his own, in which everything of his lies, and an environment."""

    home: Path

    def make(self) -> None:
        """His folder, with evalkit in it."""
        subprocess.run(["install", "-d", "-o", USER, "-m", "700", self.home], check=True)
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        self.command("bash", "-c", f"""
            {PYTHON} -m venv --without-pip {self.home}/env
            cd {self.home}/env/lib/*/site-packages
            printf '%s\\n' {support.ROOT} {packages} >evalkit.pth
            printf '#!{self.home}/env/bin/python -P\\nfrom evalkit.cli import main\\nmain()\\n' \
                >{self.home}/env/bin/evalkit
            chmod +x {self.home}/env/bin/evalkit
        """)  # fmt: skip

    def command(self, *words: str | Path, code: int | None = 0, **env: str) -> support.Ran:
        """Run a command as him; nothing of our environment comes with it."""
        clean = {"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        done = subprocess.run(
            [RUNUSER, "-u", USER, "--", *map(str, words)],
            env=clean | env, cwd=self.home, capture_output=True, text=True,
        )  # fmt: skip
        ran = support.Ran(done.returncode, done.stdout, done.stderr)
        assert code is None or ran.code == code, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def evalkit(self, *words: str | Path, code: int | None = 0, **env: str) -> support.Ran:
        """Run evalkit as him."""
        return self.command(self.home / "env/bin/evalkit", *words, code=code, **env)


@dataclass
class Cluster:
    """What a test does with the cluster: `inside` says where evalkit runs on its nodes."""

    user: User
    inside: tuple[str, ...]
    out: Path

    @property
    def suite(self) -> Path:
        """The suite's file."""
        return self.user.home / "suite" / "small.yaml"

    @property
    def stage(self) -> Path:
        """What was staged."""
        return self.user.home / "staged"

    def submit(
        self, *options: str, models: int = 1, stage: Path | None = None, code: int = 0
    ) -> support.Ran:
        """Submit models on the suite, as many documents a task as make a shard worth it."""
        named = [word for name in MODELS[:models] for word in ("--model", name)]
        limit = [] if "--limit" in options else ["--limit", "12"]
        return self.user.evalkit(
            "submit", *named, "--suite", self.suite, "--out", self.out, "--stage",
            stage or self.stage, *self.inside, "--workers", "1", "--grace", "30", *limit, *options,
            code=code, TMPDIR="/tmp",
        )  # fmt: skip

    def wait(self, until: Callable[[], bool] | None = None, timeout_s: float = 500.0) -> None:
        """Wait until the queue is empty, or something has come true; what Slurm would let wait for
        two minutes starts at once."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            jobs = _ask("squeue", "-h", "-r", "-u", USER, "-o", "%F_%K|%A|%T|%r")
            if (until and until()) or not jobs:
                assert jobs or not until or until(), "the queue is empty before it came true"
                return
            for line in jobs.splitlines():
                array, job, _, why = line.split("|")
                if why == "BeginTime":
                    name = job if array.endswith("N/A") else array
                    subprocess.run(["scontrol", "update", f"JobId={name}", "StartTime=now"])
            time.sleep(HURRY_S)
        raise AssertionError(f"not done after {timeout_s} s:\n{jobs}\n{self.logs()}")

    def answered(self) -> int:
        """How many batches have an answer, in all runs."""
        return sum(
            len(path.read_bytes().splitlines()) for path in self.out.rglob("journal/*.jsonl")
        )

    def running(self) -> int:
        """How many shards are running."""
        return len(_ask("squeue", "-h", "-r", "-u", USER, "-t", "R").splitlines())

    def is_down(self, node: str) -> bool:
        """Whether Slurm has noticed that a node is dead, and put its tasks back into the queue."""
        return _ask("sinfo", "-h", "-N", "-n", node, "-p", "main", "-o", "%T").startswith("down")

    def preempt(self) -> None:
        """Let a job of more importance take both nodes for a moment."""
        job = _ask("sbatch", "--parsable", "-p", "urgent", "-N2", "-o", "/dev/null",
                   "--wrap", "sleep 1")  # fmt: skip
        deadline = time.monotonic() + 120
        while _ask("squeue", "-h", "-j", job):
            assert time.monotonic() < deadline
            time.sleep(1)

    def logs(self) -> str:
        """What all tasks have said."""
        found = sorted(self.out.glob("submissions/*/logs/*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in found)

    def records(self) -> dict[str, Any]:
        """Each run's record, by its model."""
        found = [json.loads(path.read_text()) for path in self.out.glob("someone__*/*/record.json")]
        return {record["model"]["reference"]: record for record in found}


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if not done.returncode else ""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
