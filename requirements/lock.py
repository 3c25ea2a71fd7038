"""Makes every lock in this folder: exact versions with hashes, for Python 3.11 to 3.14.

`make lock` runs it. uv, put into a throw-away environment, resolves pyproject.toml and the `.in`
files for every platform at once. The CUDA 13 lock comes first and the others follow its versions;
the CPU lock is that lock with PyTorch's CPU build (cpu-torch.txt) and without the CUDA libraries,
so the two never drift apart. The quant lock holds only what comes on top of either. Versions that
stand in a lock stay while they fit; to take the newest of everything, remove requirements/*.lock
first. No lock names an index: where packages come from is the business of the machine that
installs. The lock of the tests' server follows no other.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "requirements"
UV = "uv==0.13.9"
PYTHON = "3.11"  # the oldest supported; one version of a package for all Pythons, not one for each
RUN = ["pyproject.toml", "--extra", "lora"]  # all that can run a model
SOURCES = {  # in this order: each one's versions bind those after it
    "cuda13": [*RUN, "requirements/cuda13.in"],
    "cuda12": [*RUN, "requirements/cuda12.in"],
    "quant": ["requirements/quant.in"],
    "base": ["pyproject.toml"],
    "build": ["requirements/build.in"],
    "dev": ["requirements/dev.in"],
    "browser": ["requirements/browser.in"],
}
SERVED = ["requirements/served.in", "--overrides", "requirements/served-overrides.txt"]
# What differs from one torch build to the next; nvidia-ml-py only asks a driver, if there is one.
CUDA = re.compile(r"(nvidia(?!-ml-py)|cuda|triton|torch)\b")


def main() -> None:
    """Write all the locks."""
    with tempfile.TemporaryDirectory() as folder:
        uv = install_uv(Path(folder))
        for name, sources in SOURCES.items():
            made = compile_lock(uv, name, sources, Path(folder))
            write(name, beyond(made) if name == "quant" else made, sources)
        served = cpu_lock(compile_lock(uv, "served", SERVED, Path(folder)))
    write("cpu", cpu_lock(read("cuda13")), [*SOURCES["cuda13"], "requirements/cpu-torch.txt"])
    write("served", served, [*SERVED, "requirements/cpu-torch.txt"])


def install_uv(folder: Path) -> Path:
    """Put uv into an environment under `folder` and return its path."""
    venv.create(folder / "uv", with_pip=True)
    programs = folder / "uv" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", UV], check=True)
    return programs / "uv"


def compile_lock(uv: Path, name: str, sources: list[str], folder: Path) -> list[str]:
    """Resolve `sources` into the requirements of the lock `name`, sorted, hashes included."""
    output = folder / f"{name}.lock"
    lock = HERE / f"{name}.lock"
    output.write_text(lock.read_text() if lock.exists() else "")  # uv keeps what fits
    command = [str(uv), "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON]
    command += ["--fork-strategy", "fewest", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--output-file", str(output), *sources]
    earlier = list(SOURCES)[: list(SOURCES).index(name)] if name in SOURCES else []
    bound = {block.split(" ")[0] for other in earlier for block in read(other)}
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(sorted(pin for pin in bound if not CUDA.match(pin))))
    command += ["--constraint", str(constraints)]
    environment = {**os.environ, "UV_NO_PROGRESS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return blocks(output.read_text())


def beyond(requirements: list[str]) -> list[str]:
    """What stands on top of either CUDA lock: neither a package of theirs nor CUDA's."""
    theirs = {block.split("==")[0] for name in ("cuda13", "cuda12") for block in read(name)}
    found = [block for block in requirements if not CUDA.match(block)]
    return [block for block in found if block.split("==")[0] not in theirs]


def cpu_lock(cuda13: list[str]) -> list[str]:
    """The CUDA 13 lock's requirements with PyTorch's CPU build and without CUDA's libraries."""
    torch = blocks((HERE / "cpu-torch.txt").read_text())
    return sorted([block for block in cuda13 if not CUDA.match(block)] + torch)


def blocks(text: str) -> list[str]:
    """The requirements in a lock's text, each with its continuation lines; comments dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [block.rstrip() for block in re.findall(r"^\S.*(?:\n[ \t].*)*", "\n".join(lines), re.M)]


def read(name: str) -> list[str]:
    """The requirements in the lock `name`."""
    return blocks((HERE / f"{name}.lock").read_text())


def write(name: str, requirements: list[str], sources: list[str]) -> None:
    """Write the lock `name`, its first line saying how it is made."""
    files = " ".join(source for source in sources if not source.startswith("--"))
    head = f"# Made by `make lock` from {files.replace(' lora ', ' (lora) ')}; do not edit.\n"
    (HERE / f"{name}.lock").write_text(head + "\n".join(requirements) + "\n")
    print(f"requirements/{name}.lock: {len(requirements)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
