"""Finds what this host has to run the image, and chooses one.

It asks each runtime whether it works and has the image, and downloads nothing. It needs the
standard library only, so that set-up can use it before anything is installed.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import evalkit
from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.base.machine import stamp
from evalkit.host.launch.command import OF_SIFS, PLACES, Image, Runtime

ANSWERS_S = 20  # a runtime that takes longer to answer does not work
REVISION = "org.opencontainers.image.revision"
ENFORCED = Path(
    "/sys/fs/selinux/enforce"
)  # 1: a container sees only files that are labelled for it


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command line runs, and the same in words; without a runtime on the host itself."""

    runtime: Runtime | None
    image: Image | None
    words: str


class Unusable(Exception):
    """The reason why a runtime can't run the image, as half a sentence."""


def choose(wanted: str = "", reference: str = "") -> Place:
    """Return the wanted place, else the first runtime that works and has the image, else the host.

    `reference`: an image's name, or a SIF's path; by default evalkit's image of this version. An
    image of another commit than this checkout's is used only where the user wants it.
    Raises EvalkitError (3) where the wanted place can't be used.
    """
    if wanted and wanted not in PLACES:
        raise EvalkitError(f"unknown place '{wanted}' to run in", fix=one_of(wanted, list(PLACES)))
    if wanted == "none":
        return Place(None, None, "on this host, as asked for")
    reasons = []
    for name in [wanted] if wanted else PLACES[:-1]:
        try:
            return _place(name, reference, wanted=bool(wanted or reference))
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
    """Return one of `PLACES` if it works here; raise Unusable if it does not."""
    if shutil.which(name) is None:
        raise Unusable("not installed")
    if name in OF_SIFS:
        return Runtime(name, _ask(name, "--version").split()[-1], rootless=os.getuid() != 0)
    if name == "podman":
        info = json.loads(_ask(name, "info", "--format", "json"))
        rootless = info["host"]["security"]["rootless"]
        return Runtime(name, info["version"]["Version"], rootless, labels=_labels())
    info = json.loads(_ask(name, "info", "--format", "{{json .}}"))
    if info.get("ServerErrors"):
        raise Unusable(str(info["ServerErrors"][0]).strip().splitlines()[0])
    options = " ".join(info["SecurityOptions"] or [])
    labels = "name=selinux" in options and _labels()
    return Runtime(name, info["ServerVersion"], "name=rootless" in options, labels=labels)


def _labels() -> bool:
    """Return whether SELinux is in force here."""
    return ENFORCED.is_file() and ENFORCED.read_text().strip() == "1"


def isolated(runtime: Runtime, image: Image) -> Runtime:
    """Return the runtime with `isolates` as it is here: a host may forbid network namespaces, as
    with `user.max_net_namespaces=0`, and then a SIF starts with the host's network only."""
    if runtime.name not in OF_SIFS:
        return runtime
    words = (runtime.name, "--quiet", "exec", "--net", "--network", "none", image.reference)
    try:
        _ask(*words, "/bin/true")
    except Unusable:
        return replace(runtime, isolates=False)
    return runtime


def image(name: str, reference: str) -> tuple[Image, str]:
    """Return an image that the runtime `name` has here, and the commit in its label. Raises
    Unusable where it does not have the image."""
    if name in OF_SIFS:
        return _sif(name, Path(reference))
    try:
        (details,) = json.loads(_ask(name, "image", "inspect", reference))
    except Unusable:
        raise Unusable(f"it has no image {reference}") from None
    revision = ((details.get("Config") or {}).get("Labels") or {}).get(REVISION, "")
    for pushed in details.get("RepoDigests") or []:
        if not pushed.startswith("localhost/"):  # podman's prefix for images from no registry
            return Image(reference, pushed.partition("@")[2], "manifest"), revision
    digest = details["Id"].removeprefix("sha256:")
    return Image(reference, f"sha256:{digest}", "config"), revision


def _sif(name: str, path: Path) -> tuple[Image, str]:
    if not path.is_file():
        raise Unusable(f"there is no {path}")
    details = json.loads(_ask(name, "inspect", "--json", str(path)))
    revision = details["data"]["attributes"]["labels"].get(REVISION, "")
    where = os.fspath(path.absolute())
    return Image(where, f"sha256:{canon.sha256_file(path)}", "sif"), revision


def _place(name: str, reference: str, *, wanted: bool) -> Place:
    is_sif = reference.endswith(".sif")
    if reference and is_sif != (name in OF_SIFS):
        raise Unusable("it runs a SIF" if name in OF_SIFS else "it runs no SIF")
    default = "evalkit.sif" if name in OF_SIFS else f"evalkit:{evalkit.__version__}"
    chosen = runtime(name)
    taken, revision = image(name, reference or default)
    unlike = _unlike(revision)
    if unlike and not wanted:
        raise Unusable(f"{Path(taken.reference).name} {unlike}")
    shown = f"in {name} {chosen.version}, {Path(taken.reference).name} {taken.digest[:19]}"
    return Place(chosen, taken, f"{shown}, which {unlike}" if unlike else shown)


def _unlike(revision: str) -> str:
    """Return how an image's evalkit differs from this checkout, as half a sentence."""
    code = stamp.code()
    if isinstance(code["commit"], dict):
        return ""  # no checkout: only evalkit's version can be compared
    if code["commit"] != revision:
        return f"is of commit {revision[:9] or 'unknown'}, not of this checkout's"
    return "does not have this checkout's changes" if code["dirty"] else ""


def _ask(*command: str) -> str:
    """Return what a runtime prints; raise Unusable with its last line where it fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_S)
    except subprocess.TimeoutExpired:
        raise Unusable(f"it does not answer within {ANSWERS_S} s") from None
    except OSError as error:
        raise Unusable(f"it can't be started: {error.strerror}") from None
    if ran.returncode:
        raise Unusable((ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1])
    return ran.stdout
