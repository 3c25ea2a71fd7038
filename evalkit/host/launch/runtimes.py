"""What this host has to run the image with, and which of it is taken.

Asks each runtime whether it works and has the image; fetches nothing. It needs the standard library
only, so that set-up can ask it before anything is installed.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import evalkit
from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.base.machine import stamp
from evalkit.host.launch.command import OF_SIFS, PLACES, Image, Runtime

ANSWERS_S = 20  # a runtime that has not answered by then does not work
REVISION = "org.opencontainers.image.revision"
ENFORCED = Path("/sys/fs/selinux/enforce")  # 1: no container sees what is not labelled for it


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command line runs, and that in words; on the host itself without a runtime."""

    runtime: Runtime | None
    image: Image | None
    words: str


class Unusable(Exception):
    """Why a runtime can't run the image, as half a sentence."""


def choose(wanted: str = "", reference: str = "") -> Place:
    """The place asked for, else the first runtime that works and has the image, else the host.

    `reference`: an image's name, or a SIF's path; by default evalkit's own of this version. One
    that was built from another commit than this checkout is only taken when it is asked for.
    Raises EvalkitError (3) where the place asked for can't be had.
    """
    if wanted and wanted not in PLACES:
        raise EvalkitError(f"unknown place '{wanted}' to run in", fix=one_of(wanted, list(PLACES)))
    if wanted == "none":
        return Place(None, None, "on this host, as asked for")
    reasons = []
    for name in [wanted] if wanted else PLACES[:-1]:
        try:
            return _place(name, reference, asked=bool(wanted or reference))
        except Unusable as reason:
            reasons.append(f"{name}: {reason}")
    if wanted or reference:
        raise EvalkitError(
            f"the image can't be run with {'; '.join(reasons)}",
            fix="`evalkit doctor` says what is here; `make image`, `make sif` or `make image-load`"
            " make an image, IN=none runs without one",
            code=Exit.MISSING,
        )
    return Place(None, None, f"on this host ({'; '.join(reasons)})")


def runtime(name: str) -> Runtime:
    """One of `PLACES`, when it works here; raises Unusable where it does not."""
    if shutil.which(name) is None:
        raise Unusable("not installed")
    if name in OF_SIFS:
        return Runtime(name, _ask(name, "--version").split()[-1], rootless=os.getuid() != 0)
    if name == "podman":
        told = json.loads(_ask(name, "info", "--format", "json"))
        rootless = told["host"]["security"]["rootless"]
        return Runtime(name, told["version"]["Version"], rootless, labels=_labels())
    told = json.loads(_ask(name, "info", "--format", "{{json .}}"))
    if told.get("ServerErrors"):
        raise Unusable(str(told["ServerErrors"][0]).strip().splitlines()[0])
    options = " ".join(told["SecurityOptions"] or [])
    labels = "name=selinux" in options and _labels()
    return Runtime(name, told["ServerVersion"], "name=rootless" in options, labels=labels)


def _labels() -> bool:
    """Whether SELinux is in force here."""
    return ENFORCED.is_file() and ENFORCED.read_text().strip() == "1"


def isolated(found: Runtime, image: Image) -> Runtime:
    """The runtime as this host lets it be: a host may forbid network namespaces, as with
    `user.max_net_namespaces=0`, and then a SIF starts with the host's network or not at all."""
    if found.name not in OF_SIFS:
        return found
    words = (found.name, "--quiet", "exec", "--net", "--network", "none", image.reference)
    try:
        _ask(*words, "/bin/true")
    except Unusable:
        return replace(found, isolates=False)
    return found


def image(name: str, reference: str) -> tuple[Image, str]:
    """An image that the runtime `name` has here, and the commit that it says it was built from.

    Raises Unusable where it does not have it.
    """
    if name in OF_SIFS:
        return _sif(name, Path(reference))
    try:
        (told,) = json.loads(_ask(name, "image", "inspect", reference))
    except Unusable:
        raise Unusable(f"it has no image {reference}") from None
    revision = ((told.get("Config") or {}).get("Labels") or {}).get(REVISION, "")
    for pushed in told.get("RepoDigests") or []:
        if not pushed.startswith("localhost/"):  # podman's word for what came from no registry
            return Image(reference, pushed.partition("@")[2], "manifest"), revision
    digest = told["Id"].removeprefix("sha256:")
    return Image(reference, f"sha256:{digest}", "config"), revision


def _sif(name: str, path: Path) -> tuple[Image, str]:
    if not path.is_file():
        raise Unusable(f"there is no {path}")
    labels: dict[str, Any] = json.loads(_ask(name, "inspect", "--json", str(path)))
    revision = labels["data"]["attributes"]["labels"].get(REVISION, "")
    where = os.fspath(path.absolute())
    return Image(where, f"sha256:{canon.sha256_file(path)}", "sif"), revision


def _place(name: str, reference: str, *, asked: bool) -> Place:
    is_sif = reference.endswith(".sif")
    if reference and is_sif != (name in OF_SIFS):
        raise Unusable("it runs a SIF" if name in OF_SIFS else "it runs no SIF")
    default = "evalkit.sif" if name in OF_SIFS else f"evalkit:{evalkit.__version__}"
    found = runtime(name)
    taken, revision = image(name, reference or default)
    unlike = _unlike(revision)
    if unlike and not asked:
        raise Unusable(f"{Path(taken.reference).name} {unlike}")
    shown = f"in {name} {found.version}, {Path(taken.reference).name} {taken.digest[:19]}"
    return Place(found, taken, f"{shown}, which {unlike}" if unlike else shown)


def _unlike(revision: str) -> str:
    """How an image's evalkit is not this checkout's, as half a sentence; empty where it is."""
    code = stamp.code()
    if isinstance(code["commit"], dict):
        return ""  # no checkout: evalkit's version is all there is to compare
    if code["commit"] != revision:
        return f"is of commit {revision[:9] or 'unknown'}, not of this checkout's"
    return "does not have this checkout's changes" if code["dirty"] else ""


def _ask(*command: str) -> str:
    """What a runtime prints; Unusable with its last words where it fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_S)
    except subprocess.TimeoutExpired:
        raise Unusable(f"it does not answer within {ANSWERS_S} s") from None
    except OSError as error:
        raise Unusable(f"it can't be started: {error.strerror}") from None
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise Unusable(said)
    return ran.stdout
