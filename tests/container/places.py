"""Where the container tests run things: the engine, the image, and a command line in each place."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import support

from evalkit.host.launch import runtimes
from evalkit.host.launch import work as works
from evalkit.host.launch.command import EMPTY, Image, Runtime, Work, command_line

ROOT = support.ROOT
MACHINE = ROOT.parent / "shared" / "machine" / "containers.sh"
BASE = "evalkit-test-base:bookworm"  # what MACHINE makes in place of the public base image
TAG = "evalkit-tests:image"
USER = "evaluser"  # whom MACHINE makes: somebody who is not root
PYTHON = "/opt/evalkit/bin/python3"
BUILD = {
    "DOCKER": "/usr/bin/docker",
    "BASE_IMAGE": BASE,
    "LOCK": "cpu",
    "IMAGE": TAG,
    "SNAPSHOT": "",
    "BUILD_OPTIONS": "--network host",
}


def missing() -> str:
    """Why the tests can't be run here; empty where they can."""
    if not MACHINE.is_file():
        return "there is no ../shared/machine/containers.sh to start the engines with"
    if os.getuid() != 0 or platform.machine() != "x86_64":
        return "the engines are started by root, on x86-64"
    return ""


def run(*command: str | Path, code: int = 0, **more: str) -> str:
    """A command's stdout, or all that it said where it returns another code than expected."""
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **more}
    )
    shown = f"{shlex.join(map(str, command))}\n{ran.stdout[-6000:]}\n{ran.stderr[-6000:]}"
    assert ran.returncode == code, f"exit code {ran.returncode}\n{shown}"
    return ran.stdout if code == 0 else ran.stdout + ran.stderr


def make(command: str, **more: str) -> str:
    """One of the Makefile's targets that deal with the image."""
    return run("make", "-C", ROOT, command, **{**BUILD, **more})


@dataclass(frozen=True)
class Place:
    """A runtime with the image, as one of this host's users; the host itself without a runtime."""

    name: str
    runtime: Runtime | None = None
    image: Image | None = None
    user: str = "root"

    def words(self, work: Work) -> list[str]:
        """The command line, as that user starts it."""
        if self.runtime is None:
            return [sys.executable, "-P", "-c", support.MAIN, *work.arguments]
        as_user = replace(work, user=f"{ids(self.user)[0]}:{ids(self.user)[1]}")
        found = command_line(self.runtime, self.image, as_user)
        if self.runtime.name != "apptainer":
            return found
        return ["runuser", "-u", self.user, "--", *found]

    def evalkit(self, folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run evalkit in `folder`; its stdout."""
        return self._run(folder, arguments, lambda words: words, code, environment)

    def python(self, folder: Path, program: str, *arguments: str, **environment: str) -> str:
        """Run a Python program where evalkit's own command line would run; its stdout."""
        return self._run(folder, arguments, lambda words: self._instead(words, program), 0,
                         environment)  # fmt: skip

    def _run(
        self,
        folder: Path,
        arguments: Sequence[str],
        change: Callable[[list[str]], list[str]],
        code: int,
        environment: dict[str, str],
    ) -> str:
        scratch = folder / f"scratch-{self.name}"
        (scratch / EMPTY).mkdir(parents=True, exist_ok=True)
        before = Path.cwd()
        os.chdir(folder)
        try:
            work = works.of(arguments, {**os.environ, **environment}, scratch)
            for path in (scratch, *map(Path, work.writable)):
                shutil.chown(path, *ids(self.user))
            return run(*change(self.words(work)), code=code, **environment)
        finally:
            os.chdir(before)
            shutil.rmtree(scratch)

    def _instead(self, words: Sequence[str], program: str) -> list[str]:
        """The same container with another program in it."""
        assert self.runtime is not None and self.image is not None
        at = words.index(self.image.reference)
        if self.runtime.name == "apptainer":
            start = [word if word != "run" else "exec" for word in words[: at + 1]]
            return [*start, PYTHON, "-c", program]
        return [*words[:at], "--entrypoint", PYTHON, self.image.reference, "-c", program]


def ids(user: str) -> tuple[int, int]:
    """A user's number and group."""
    import pwd

    found = pwd.getpwnam(user)
    return found.pw_uid, found.pw_gid


def found(name: str, reference: str, user: str = "root") -> Place:
    """A place, from what the launcher finds of its runtime and image on this host."""
    image, _ = runtimes.image(name, reference)
    return Place(f"{name}-{user}", runtimes.runtime(name), image, user)
