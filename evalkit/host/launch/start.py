"""Starts a command line in its place, waits for its end, passes signals on and returns its exit
code.

Only where something may be downloaded, secrets are passed: in a file of the scratch folder, which
the image reads and deletes at once.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from evalkit.base import canon, lease, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.host.inside import SECRETS
from evalkit.host.launch import runtimes
from evalkit.host.launch import work as works
from evalkit.host.launch.command import EMPTY, SCRATCH, command_line
from evalkit.host.launch.runtimes import Place
from evalkit.inputs import hub

# Variables for downloads and servers; addresses of proxies may hold passwords.
SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "OPENAI_API_KEY", "http_proxy",
        "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
_SCRATCH = "evalkit-scratch-"
_YOUNG_S = 60.0  # a younger one may be another launcher's that has not locked it yet
PR_SET_PDEATHSIG = 1  # of prctl(2)
RUNTIME_FAILED = (125, 126, 127, 255)  # exit codes that no command of evalkit has


def start(place: Place, arguments: Sequence[str]) -> int:
    """Run evalkit's `arguments` in `place`; return the exit code. On the host, never return."""
    if place.runtime is None or place.image is None:
        os.execv(sys.executable, [sys.executable, "-P", sys.argv[0], *arguments])
    remove_abandoned(Path(tempfile.gettempdir()))
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    held = lock_scratch(scratch)
    try:
        canon.make_folder(scratch / EMPTY)
        work = works.of(arguments, os.environ, scratch)
        runtime = place.runtime if work.online else runtimes.isolated(place.runtime, place.image)
        if not (work.online or runtime.isolates):
            print("evalkit: this host forbids network namespaces: the image runs with its network",
                  file=sys.stderr)  # fmt: skip
        launched = (lease.LAUNCHER, lease.launched())
        work = replace(work, environment=(*work.environment, launched))
        secrets = found_secrets(os.environ) if work.online else {}
        if secrets:
            hidden = (SECRETS, f"{SCRATCH}/secrets.json")
            canon.write_json(scratch / "secrets.json", secrets)
            (scratch / "secrets.json").chmod(0o600)
            work = replace(work, environment=(*work.environment, hidden))
        code = run_command(command_line(runtime, place.image, work))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)
    if code in RUNTIME_FAILED:
        raise EvalkitError(
            f"{place.runtime.name} did not start the image", fix="it said why above",
            code=Exit.MISSING,
        )  # fmt: skip
    return code


def lock_scratch(scratch: Path) -> int:
    """A handle that holds a scratch folder's lock; BlockingIOError where another one does."""
    handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def remove_abandoned(place: Path) -> None:
    """Remove this user's scratch folders whose launchers were killed: nobody holds their locks."""
    for path in place.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            found = path.lstat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG_S:
                held = lock_scratch(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)


def found_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that a download may need; the Hub's token also from its file."""
    secrets = {name: environment[name] for name in SECRET if environment.get(name)}
    token = hub.token_path(environment)
    if "HF_TOKEN" not in secrets and token.is_file():
        secrets["HF_TOKEN"] = token.read_text().strip()
    return secrets


def _end_with_parent() -> None:
    """Have the kernel stop this process, which becomes the runtime, when the launcher dies."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_command(command: Sequence[str]) -> int:
    """Run a command, pass signals on to it, and return its exit code."""
    process = subprocess.Popen(command, preexec_fn=_end_with_parent)

    def pass_on(number: int, _: object) -> None:
        if number != signal.SIGINT:  # the terminal sends that one to both
            process.send_signal(number)

    for number in stopping.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    return process.wait()
