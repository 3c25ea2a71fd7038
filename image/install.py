"""Within the image's build: puts one lock's packages, then evalkit itself, into /opt/evalkit.

`install.py packages LOCK`, then `install.py evalkit LOCK`: two steps, so that a change of evalkit
does not fetch a lock's gigabytes again; each step, and `install.py settle` after all that is added
later, leaves everything readable for everybody and dated SOURCE_DATE_EPOCH. It runs with the Python
that has pip, which stays outside. Every package is checked against the lock's hashes; nothing is
compiled, so that what is installed is what each package's RECORD says and nothing else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
PREFIX = Path("/opt/evalkit")
sys.path.insert(0, str(SOURCE / "requirements"))

import setup  # noqa: E402  # requirements/setup.py, which does the same for a .venv

setup.PYTHON = Path(sys.executable)  # the one with pip: it asks it whether it finds a torch


def pip(*arguments: str | Path) -> None:
    """`pip install` into PREFIX, with the lock's build tools and no others."""
    command = [sys.executable, "-m", "pip", "--python", PREFIX / "bin" / "python", "install"]
    command += ["--no-deps", "--no-input", "--no-compile", "--no-build-isolation", "--use-pep517"]
    command += ["--disable-pip-version-check", "--root-user-action", "ignore", "--quiet"]
    subprocess.run([*map(str, command), *map(str, arguments)], check=True)


def packages(lock: str) -> None:
    """Make the environment, with the packages of the lock."""
    requirements = SOURCE / "requirements"
    subprocess.run(["python3", "-m", "venv", "--without-pip", PREFIX], check=True)
    pip("--require-hashes", "-r", requirements / "build.lock")
    index = setup.cpu_index() if lock == "cpu" else []
    pip("--require-hashes", *index, "-r", requirements / f"{lock}.lock")


def evalkit(lock: str) -> None:
    """Install evalkit, and leave the note by which a record knows the lock."""
    pip("--no-index", SOURCE)
    note = {"lock": lock, "done": setup.wanted_parts(lock, dev=False)}
    (PREFIX / setup.STAMP.name).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")


def settle() -> None:
    """Mode and time of what is not settled yet; the rest is left alone, since a layer's file that
    is touched is copied whole into the next layer."""
    time = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in [*PREFIX.rglob("*"), PREFIX]:
        status = path.lstat()
        mode = status.st_mode & 0o7755 | 0o444 | (0o111 if path.is_dir() else 0)
        if not path.is_symlink() and mode != status.st_mode & 0o7777:
            path.chmod(mode)
        if int(status.st_mtime) != time:
            os.utime(path, (time, time), follow_symlinks=False)


if __name__ == "__main__":
    steps = {"packages": packages, "evalkit": evalkit}
    if sys.argv[1] in steps:
        steps[sys.argv[1]](sys.argv[2])
    settle()
