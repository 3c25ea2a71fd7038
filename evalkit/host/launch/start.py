"""Starts a command line in its place and stays until it has ended.

Secrets go in by a file in the scratch folder, read by the image and deleted at once, only where
something may be downloaded. Signals are handed on; what the command returns is returned.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalkit.base import canon, lease, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.host.inside import SECRETS
from evalkit.host.launch import runtimes
from evalkit.host.launch import work as works
from evalkit.host.launch.command import EMPTY, SCRATCH, command_line
from evalkit.host.launch.runtimes import Place
from evalkit.inputs import hub

# What is only for downloads and servers; proxies' addresses may hold passwords.
TOLD = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "OPENAI_API_KEY", "http_proxy",
        "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
PR_SET_PDEATHSIG = 1  # of prctl(2)
RUNTIME_FAILED = (125, 126, 127, 255)  # what no command of evalkit's returns


def start(place: Place, arguments: Sequence[str]) -> int:
    """Run evalkit's `arguments` in `place`; the exit code. Does not return on the host itself."""
    if place.runtime is None or place.image is None:
        os.execv(sys.executable, [sys.executable, "-P", sys.argv[0], *arguments])
    scratch = Path(tempfile.mkdtemp(prefix="evalkit-scratch-"))
    try:
        canon.make_folder(scratch / EMPTY)
        work = works.of(arguments, os.environ, scratch)
        found = place.runtime if work.online else runtimes.isolated(place.runtime, place.image)
        if not (work.online or found.isolates):
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
        code = _attend(command_line(found, place.image, work))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if code in RUNTIME_FAILED:
        raise EvalkitError(
            f"{place.runtime.name} did not start the image", fix="it said why above",
            code=Exit.MISSING,
        )  # fmt: skip
    return code


def found_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a download may need that nobody else may see; the Hub's token also from its file."""
    found = {name: environment[name] for name in TOLD if environment.get(name)}
    token = hub.token_path(environment)
    if "HF_TOKEN" not in found and token.is_file():
        found["HF_TOKEN"] = token.read_text().strip()
    return found


def _end_with_parent() -> None:
    """Let this process, which is to become the runtime's, be told to stop when its parent dies: a
    launcher that is killed leaves no container working."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _attend(command: Sequence[str]) -> int:
    """Run a command, hand signals on to it, and return its exit code."""
    process = subprocess.Popen(command, preexec_fn=_end_with_parent)

    def hand_on(number: int, _: Any) -> None:
        if number != signal.SIGINT:  # the terminal sends that one to both
            process.send_signal(number)

    for number in stopping.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    return process.wait()
