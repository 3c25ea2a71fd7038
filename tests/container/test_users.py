"""As people have it: checkout in the home, results elsewhere, a model in a Hub's cache, launched by
an ordinary user with `evalkit launch`. The answers are those of a run without an image."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, USER, run
from support import MAIN

from evalkit.base.errors import Exit

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]
COMMIT = "ab" * 20
EVAL = ("eval", "--suite", "demo", "--limit", "2", "--offline", "--workers", "1")


class Someone:
    """A user with a home of his own, results on another disk, and a model in a Hub's cache."""

    def __init__(self, room: Path, tiny: Path) -> None:
        self.room = room
        self.home = room / "home of a user"
        self.out = room / "scratch disk"
        repo = self.home / ".cache" / "huggingface" / "hub" / "models--someone--tiny"
        snapshot = repo / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repo / "blobs").mkdir()
        for path in tiny.iterdir():
            shutil.copy(path, repo / "blobs" / f"b-{path.name}")
            (snapshot / path.name).symlink_to(f"../../blobs/b-{path.name}")
        (self.home / "checkout").mkdir()
        self.out.mkdir()
        self.snapshot, self.link = snapshot, self.home / "llama"
        self.link.symlink_to(snapshot)
        run("chown", "-R", f"{USER}:", self.home, self.out)
        run("chmod", "o-rwx", self.home)

    def words(self, *words: str | Path) -> list[str]:
        """evalkit's command line, as him and with nothing of our environment."""
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        own = {"HOME": self.home, "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
        own |= {"PYTHONPATH": f"{ROOT}:{packages}"}
        env = ["env", "-i", *(f"{name}={value}" for name, value in own.items())]
        return [*env, "/usr/bin/python3", "-P", "-c", MAIN, *map(str, words)]

    def does(self, *words: str | Path, before: tuple[str, ...] = (), code: int = 0) -> str:
        """Run evalkit as him, in his checkout; stdout, or all that it said where it fails."""
        folder = ["--chdir", self.home / "checkout"]
        as_him = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        return run("env", *folder, *as_him, *before, *self.words(*words), code=code)

    def record(self, said: str) -> dict[str, Any]:
        """The record of the run that a command named last."""
        found: dict[str, Any] = json.loads(Path(said.splitlines()[-1], "record.json").read_text())
        return found


@pytest.fixture(scope="module")
def someone(room: Path, tiny: Path) -> Iterator[Someone]:
    """The user."""
    yield Someone(room, tiny)


@pytest.fixture(scope="module")
def alone(someone: Someone) -> str:
    """The answers of his model without an image."""
    said = someone.does(*EVAL, "--model", someone.snapshot, "--out", someone.out / "alone")
    record = someone.record(said)
    assert record["model"]["reference"] == "someone/tiny", "not forty digits"
    assert record["model"]["revision"] == COMMIT
    assert Path(said.splitlines()[-1]).parent.name == "someone__tiny"
    return str(record["ids"]["answers"])


def test_a_link_to_a_snapshot_and_results_elsewhere_in_apptainer(
    someone: Someone, alone: str, sif: Path
) -> None:
    """Nothing is shown of the folder that it is started from, which ended every command."""
    launch = ("launch", "--in", "apptainer", "--image", sif)
    said = someone.does(*launch, *EVAL, "--model", someone.link, "--out", someone.out / "one")
    record = someone.record(said)
    assert record["ids"]["answers"] == alone
    assert record["environment"]["image"]["network"] == "none"
    assert Path(said.splitlines()[-1]).parent.name == "someone__tiny"


def test_the_hubs_cache_as_it_is_where_network_namespaces_are_forbidden(
    someone: Someone, alone: str, sif: Path
) -> None:
    """A namespace of users in which no network can be made stands for such a host."""
    forbidden = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    host = ("unshare", "--user", "--map-current-user", "--keep-caps", "bash", "-c", forbidden, "-")
    launch = ("launch", "--in", "apptainer", "--image", sif)
    words = (*EVAL, "--model", someone.snapshot, "--out", someone.out / "two")
    record = someone.record(someone.does(*launch, *words, before=host))
    assert record["ids"]["answers"] == alone
    assert record["environment"]["image"]["network"] == "open"


def test_the_program_may_be_called_singularity(
    someone: Someone, alone: str, sif: Path, room: Path
) -> None:
    """Here a link to apptainer, whose words are the same; SingularityCE itself has not been run."""
    (room / "bin").mkdir()
    (room / "bin" / "singularity").symlink_to(shutil.which("apptainer") or "apptainer")
    path = f"{room / 'bin'}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        words = (*EVAL, "--model", someone.link, "--out", someone.out / "three")
        said = someone.does("launch", "--in", "singularity", "--image", sif, *words)
    assert someone.record(said)["ids"]["answers"] == alone


def test_a_killed_launcher_leaves_no_container_and_the_run_goes_on(
    someone: Someone, alone: str, image: str
) -> None:
    """The container is called after the run, and its lock names the launcher."""
    out = someone.out / "four"
    words = ("launch", "--in", "docker", "--image", image, "eval", "--suite", "demo", "--offline",
             "--workers", "1", "--model", str(someone.link), "--out", str(out))  # fmt: skip
    process = subprocess.Popen(someone.words(*words), cwd="/var/tmp", stderr=subprocess.DEVNULL)
    try:
        _until(lambda: list(out.rglob(".lock")) and list(out.rglob("journal/*.jsonl")))
        (name,) = _containers(f"evalkit-eval-tiny-demo-{process.pid}")
        lock = json.loads(next(iter(out.rglob(".lock"))).read_text())
        assert lock["owner"]["pid"] == process.pid, "not process 1"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _until(lambda: not _containers(name))


@pytest.mark.parametrize("place", ["docker", "apptainer"])
def test_ctrl_c_in_a_terminal_stops_what_runs_in_the_image_and_says_how_to_go_on(
    someone: Someone, alone: str, image: str, sif: Path, place: str
) -> None:
    """As typed: the terminal gives it to the container's processes too."""
    out = someone.out / f"five {place}"
    words = ("launch", "--in", place, "--image", image if place == "docker" else str(sif), "eval",
             "--suite", "demo", "--offline", "--workers", "1", "--model", str(someone.link),
             "--out", str(out))  # fmt: skip
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir("/var/tmp")
        os.execvp("env", someone.words(*words))
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(_read_all(terminal)))
    reader.start()
    _until(lambda: list(out.rglob(".lock")))  # long before it is done
    os.write(terminal, b"\x03")
    _, status = os.waitpid(child, 0)
    reader.join()
    assert os.waitstatus_to_exitcode(status) == Exit.STOPPED, said
    assert "the same command continues it" in said[0]
    assert not _containers("evalkit-eval-tiny-demo")


def _read_all(terminal: int) -> str:
    """What a terminal shows until nobody writes to it any more."""
    found = b""
    with contextlib.suppress(OSError):  # how Linux says that
        while data := os.read(terminal, 1 << 16):
            found += data
    return found.decode(errors="replace")


def _containers(name: str) -> list[str]:
    """The names of running containers that start so."""
    said = run("/usr/bin/docker", "ps", "--format", "{{.Names}}", "--filter", f"name={name}")
    return said.split()


def _until(is_so: Any) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_private_run_of_somebody_elses_is_one_line_to_another_user(
    someone: Someone, alone: str, room: Path
) -> None:
    theirs = room / "private"
    shutil.copytree(next((someone.out / "alone").glob("*/demo*")), theirs / "run")
    theirs.chmod(0o700)
    said = someone.does("verify", theirs / "run", code=3)
    assert "Traceback" not in said
    assert "no right to read or write this" in said and "--group" in said
    assert "BROKEN" not in said
