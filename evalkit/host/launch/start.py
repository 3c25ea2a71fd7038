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

from evalkit.base import canon, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.host.inside import SECRETS
from evalkit.host.launch import work as works
from evalkit.host.launch.command import SCRATCH, command_line
from evalkit.host.launch.runtimes import Place
from evalkit.inputs import hub

# What is only for downloads and servers; proxies' addresses may hold passwords.
TOLD = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "OPENAI_API_KEY", "http_proxy",
        "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
RUNTIME_FAILED = (125, 126, 127, 255)  # what no command of evalkit's returns


def start(place: Place, arguments: Sequence[str]) -> int:
    """Run evalkit's `arguments` in `place`; the exit code. Does not return on the host itself."""
    if place.runtime is None or place.image is None:
        os.execv(sys.executable, [sys.executable, "-P", sys.argv[0], *arguments])
    scratch = Path(tempfile.mkdtemp(prefix="evalkit-scratch-"))
    try:
        work = works.of(arguments, os.environ, scratch)
        secrets = found_secrets(os.environ) if work.online else {}
        if secrets:
            hidden = (SECRETS, f"{SCRATCH}/secrets.json")
            canon.write_json(scratch / "secrets.json", secrets)
            (scratch / "secrets.json").chmod(0o600)
            work = replace(work, environment=(*work.environment, hidden))
        code = _attend(command_line(place.runtime, place.image, work))
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


def _attend(command: Sequence[str]) -> int:
    """Run a command, hand signals on to it, and return its exit code."""
    process = subprocess.Popen(command)

    def hand_on(number: int, _: Any) -> None:
        if number != signal.SIGINT:  # the terminal sends that one to both
            process.send_signal(number)

    for number in stopping.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    return process.wait()
