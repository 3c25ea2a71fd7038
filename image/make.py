"""Makes the image on this host: `make image`, `make sif`, `make image-load`, `make image-test`.

The image is made of the commit that is checked out and of nothing else: what is not committed is
not in it, and two builds of a commit hold the same files (`make image-inventory`). It uses the
standard library only, and gives no build any privilege.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIF = Path(os.environ.get("SIF") or ROOT / "evalkit.sif")
SELFTEST = "/opt/evalkit/image/selftest.py"
SCRATCH = "/var/cache/evalkit"
# Every kernel reads gzip; its slowest level takes four times as long to save a twentieth.
SQUASH = "-comp gzip -Xcompression-level 2"
sys.path[:0] = [str(ROOT), str(ROOT / "requirements")]

import setup  # noqa: E402  # requirements/setup.py

import evalkit  # noqa: E402
from evalkit.base.machine import gpus  # noqa: E402

IMAGE = os.environ.get("IMAGE") or f"evalkit:{evalkit.__version__}"
DOCKER = os.environ.get("DOCKER") or "docker"
NO_IMAGE = f"""evalkit image: there is no {IMAGE} here, or no docker to use. Make the SIF of
  an archive from a machine that has it:   docker save --output evalkit.tar {IMAGE}
                                           make sif FROM=evalkit.tar
  or of a registry's image by its digest:  make sif FROM=registry.example/evalkit@sha256:...
or build the image here first:             make image"""


def say(line: str) -> None:
    """A line for people."""
    print(f"evalkit image: {line}", file=sys.stderr, flush=True)


def run(*command: str | Path, quiet: bool = False, **more: str) -> str:
    """Run a command, its output on stderr (or returned, if quiet); ends with it where it fails."""
    out = subprocess.PIPE if quiet else sys.stderr
    try:
        ran = subprocess.run(
            list(map(str, command)), stdout=out, text=True, env={**os.environ, **more}
        )
    except FileNotFoundError:
        sys.exit(f"evalkit image: there is no {command[0]} here")
    if ran.returncode:
        sys.exit(f"evalkit image: {command[0]} {command[1]} failed with {ran.returncode}")
    return (ran.stdout or "").strip()


def git(*command: str) -> str:
    """What git says of this checkout."""
    return run("git", "-C", ROOT, *command, quiet=True)


def build() -> None:
    """Build the image with LOCK's packages from the commit that is checked out."""
    wanted = os.environ.get("LOCK", "")
    here = gpus.pick_lock(gpus.ask_for_lock(), platform.machine())
    choice = setup.choose(wanted, {}) if wanted else here
    if choice.lock == "base":
        sys.exit("evalkit image: LOCK=base runs no model: choose cpu, cuda12 or cuda13")
    commit, date = git("rev-parse", "HEAD"), git("log", "-1", "--format=%ct")
    say(f"{IMAGE}, {choice.lock} lock ({choice.why}), commit {commit[:9]}")
    if git("status", "--porcelain", "-uno"):
        say("changes that are not committed are not in it")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evalkit-build-") as folder:
        archive = Path(folder, "source.tar")
        source = Path(folder, "source")
        source.mkdir()
        git("archive", "--format=tar", f"--output={archive}", "HEAD")
        run("tar", "-xf", archive, "-C", source)  # tarfile's safe way is not in every Python 3.11
        buildkit = has_buildkit()
        if not buildkit:
            say(f"this {DOCKER} has no BuildKit: its old builder is used, and nothing is cached")
            recipe = source / "Dockerfile"
            recipe.write_text(without_mounts(recipe.read_text()))
        options = os.environ.get("BUILD_OPTIONS", "").split()
        for name, value in arguments(choice.lock, commit, date).items():
            options += ["--build-arg", f"{name}={value}"]
        tags = ["--tag", IMAGE]
        tags += [] if os.environ.get("IMAGE") else ["--tag", f"{IMAGE}-{choice.lock}"]
        run(DOCKER, "build", *options, *tags, source, DOCKER_BUILDKIT=str(int(buildkit)))
    size = int(run(DOCKER, "image", "inspect", "--format", "{{.Size}}", IMAGE, quiet=True))
    digest = run(DOCKER, "image", "inspect", "--format", "{{.Id}}", IMAGE, quiet=True)
    say(f"{IMAGE} is {digest}, {size / 1e9:.2f} GB, after {time.monotonic() - started:.0f} s")


def has_buildkit() -> bool:
    """Whether `build` takes mounts: Docker's client since 23 needs buildx for that."""
    if Path(DOCKER).name == "podman" or answers(DOCKER, "buildx", "version"):
        return True
    version = run(DOCKER, "version", "--format", "{{.Client.Version}}", quiet=True)
    return int(version.partition(".")[0] or 0) < 23


def answers(*command: str) -> bool:
    """Whether a command is there and ends well."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def without_mounts(recipe: str) -> str:
    """A Dockerfile for the builder that knows no mounts: they only save time and space."""
    return re.sub(r"--mount=\S+\s+(?:\\\n\s*)?", "", recipe)


def arguments(lock: str, commit: str, date: str) -> dict[str, str]:
    """What the Dockerfile's ARGs are given; the base only where BASE_IMAGE names another."""
    requirements = ROOT / "requirements"
    base = os.environ.get("BASE_IMAGE", "")
    given = {"BASE_IMAGE": base} if base else {}
    given |= {"SNAPSHOT": os.environ["SNAPSHOT"]} if "SNAPSHOT" in os.environ else {}
    base = base or re.findall(r"^ARG BASE_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)[0]
    digest = base.partition("@")[2]
    if not digest and not answers(DOCKER, "image", "inspect", base):
        sys.exit(f"evalkit image: {base} is not here: name it with its digest, or pull it first")
    return given | {
        "LOCK": lock,
        "COMMIT": commit,
        "VERSION": evalkit.__version__,
        "SOURCE_DATE_EPOCH": date,
        "CREATED": datetime.fromtimestamp(int(date), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "LOCK_DIGEST": "sha256:"
        + setup.digest(requirements / "build.lock", requirements / f"{lock}.lock"),
        "BASE_NAME": base.partition("@")[0],
        "BASE_DIGEST": digest
        or run(DOCKER, "image", "inspect", "--format", "{{.Id}}", base, quiet=True),
    }


def sif() -> None:
    """Make evalkit.sif of FROM: a registry's image by its digest, an image's archive, or the local
    image without it."""
    source = os.environ.get("FROM", "")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evalkit-sif-") as folder:
        if shutil.which("apptainer") is None:
            sys.exit("evalkit image: a SIF is made by apptainer, which is not here")
        if not source:
            source = os.fspath(Path(folder, "evalkit.tar"))
            if not answers(DOCKER, "image", "inspect", IMAGE):
                sys.exit(NO_IMAGE)
            run(DOCKER, "save", "--output", source, IMAGE)
        kind = "docker-archive" if Path(source).is_file() else "docker"
        if kind == "docker" and "@sha256:" not in source:
            sys.exit(f"evalkit image: FROM={source} is neither an archive nor an image by digest")
        given = ["--build-arg", f"BOOTSTRAP={kind}", "--build-arg", f"FROM={source}"]
        made = Path(folder, "evalkit.sif")
        run(
            "apptainer",
            "build",
            "--notest",
            "--mksquashfs-args",
            SQUASH,
            *given,
            made,
            ROOT / "apptainer.def",
        )
        part = SIF.with_suffix(".part")
        shutil.copy(made, part)
    part.chmod(0o644)
    part.replace(SIF)
    size = SIF.stat().st_size / 1e9
    say(f"{SIF.name} is {size:.2f} GB, after {time.monotonic() - started:.0f} s")
    test()


def load() -> None:
    """Take over an image from FILE, where there is no registry: its archive, or a SIF."""
    file = Path(os.environ.get("FILE") or sys.exit("usage: make image-load FILE=image.tar"))
    if not file.is_file():
        sys.exit(f"evalkit image: there is no {file}")
    if file.suffix == ".sif":
        run("apptainer", "inspect", file)
        part = SIF.with_suffix(".part")
        shutil.copy(file, part)
        part.replace(SIF)
        return say(f"{file} is now {SIF.name}")
    for runtime in (DOCKER, "podman"):
        if shutil.which(runtime):
            return say(run(runtime, "load", "--input", file, quiet=True))
    os.environ["FROM"] = os.fspath(file)
    return sif()


def test() -> None:
    """Run the image's own self-test with every runtime that has the image."""
    ran = 0
    with tempfile.TemporaryDirectory(prefix="evalkit-scratch-") as scratch:
        mount = f"type=bind,source={scratch},destination={SCRATCH}"
        user = f"{os.getuid()}:{os.getgid()}"
        for runtime in ("docker", "podman"):
            if has_image(runtime):
                say(f"self-test in {runtime}, {IMAGE}")
                run(runtime, "run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL",
                    "--security-opt", "no-new-privileges", "--user", user, "--mount", mount,
                    "--entrypoint", "python3", IMAGE, SELFTEST)  # fmt: skip
                ran += 1
        if shutil.which("apptainer") and SIF.is_file():
            say(f"self-test in apptainer, {SIF.name}")
            run("apptainer", "test", "--containall", "--cleanenv", "--no-home", "--no-privs",
                "--mount", mount, SIF)  # fmt: skip
            ran += 1
    if not ran:
        sys.exit("evalkit image: no runtime here has the image: make image, make sif")


def has_image(runtime: str) -> bool:
    """Whether a runtime is here, works, and has the image."""
    if shutil.which(runtime) is None:
        return False
    ran = subprocess.run([runtime, "image", "inspect", IMAGE], capture_output=True, text=True)
    return ran.returncode == 0 and bool(json.loads(ran.stdout))


if __name__ == "__main__":
    {"build": build, "sif": sif, "load": load, "test": test}[sys.argv[1]]()
