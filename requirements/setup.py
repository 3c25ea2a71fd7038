"""Makes `.venv`, with exactly the packages of one lock and evalkit itself, ready to use.

`make setup` runs it, and every other target runs it first: when `.venv` is as it should be, that
costs nothing. It picks the lock by the GPU driver it finds, says which and why, and keeps to that
choice later, since the machine that sets up is often a login node without a GPU; LOCK=base, cpu,
cuda12 or cuda13 overrides it, and QUANT=1 adds what quantised checkpoints need. Every package is
checked against the lock's hashes and nothing else is installed. An interrupted set-up starts again;
what was downloaded stays in pip's cache. It uses the standard library only, and refuses to touch a
`.venv` that it did not make.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# 1. A Python that the locks are made for. An older one (from 3.6 on) gets this far and no further,
# so what it can't parse must not stand anywhere in this file.
OLDEST, NEWEST = (3, 11), (3, 14)
TEST = f"import sys; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"


def use_supported_python() -> None:
    """Start again under a Python that the locks are made for, or say that there is none."""
    for name in ("python3.13", "python3.12", "python3.11", "python3.14"):
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", TEST], stderr=subprocess.DEVNULL) == 0:
            os.execv(path, [path, *sys.argv])
    sys.exit(
        f"evalkit set-up: {sys.executable} is Python {platform.python_version()}, and 3.11 to 3.14 "
        "is needed: install one, or name it: make setup PYTHON=/path/to/python3.12"
    )


if not OLDEST <= sys.version_info[:2] <= NEWEST:
    use_supported_python()

# 2. From here on, that Python.
ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Not the Python that runs this: with an activated .venv that is the one which is made anew.
BASE = getattr(sys, "_base_executable", sys.executable)
STAMP = VENV / "evalkit-setup.json"
LOG = VENV / "evalkit-setup.log"
IMPORTS = {  # what a lock is for
    "base": "import click, cryptography, jsonschema, numpy, rich.progress, rich.table, yaml",
    "run": "import accelerate, datasets, jsonschema, lm_eval.evaluator, rich.progress, torch\n"
    "from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast",
}
# lm-eval parses 14,000 files for its index of tasks, once for each version of it.
INDEX = """from lm_eval.tasks import TaskManager
from evalkit.run import evaluate as run
from evalkit.harness import index
with index.kept_index():
    TaskManager()"""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# Of evalkit itself only modules that need the standard library alone.
sys.path.append(str(ROOT))
if TYPE_CHECKING:
    from evalkit.base.machine.gpus import Choice


def choose(wanted: str, before: dict[str, Any]) -> "Choice":
    """The lock asked for, else the one that `.venv` was set up with, else the light one where runs
    are in an image, else the one that fits the GPUs."""
    from evalkit.base.machine.gpus import LOCKS, Choice, ask_for_lock, pick_lock

    if wanted and wanted not in LOCKS:
        raise SystemExit(f"evalkit set-up: LOCK={wanted}: choose one of {', '.join(LOCKS)}")
    if wanted == "cuda12" and platform.machine() != "x86_64":
        raise SystemExit("evalkit set-up: LOCK=cuda12: its torch is for x86_64 only")
    if wanted:
        return Choice(wanted, "LOCK says so")
    if before.get("lock") in LOCKS:
        return Choice(before["lock"], "as before; LOCK=... changes it")
    where = in_image()
    if where:
        return Choice("base", f"runs are {where}")
    return pick_lock(ask_for_lock(), platform.machine())


def in_image() -> str:
    """Where runs will be when it is in an image, in words: IN's place, else one that has it."""
    wanted = os.environ.get("IN", "")
    if wanted:
        return "" if wanted == "none" else f"in {wanted}: IN says so"
    from evalkit.base.errors import EvalkitError
    from evalkit.host.launch import runtimes

    try:
        place = runtimes.choose("", os.environ.get("IMAGE", ""))
    except EvalkitError:  # the command that follows says what is wrong with IMAGE
        return ""
    return place.words if place.runtime else ""


def digest(*paths: Path) -> str:
    """One sha256 over the files' contents, in order."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def wanted_parts(lock: str, dev: bool, quant: bool = False) -> dict[str, str]:
    """What `.venv` should hold, as the stamp says it: a digest for each part."""
    parts = {
        "packages": digest(HERE / "build.lock", HERE / f"{lock}.lock"),
        "evalkit": digest(ROOT / "pyproject.toml", ROOT / "evalkit" / "__init__.py"),
    }
    if quant:
        parts["quant"] = digest(HERE / "quant.lock")
    return {**parts, "dev": digest(HERE / "dev.lock")} if dev else parts


def wants_quant(stamp: dict[str, Any]) -> bool:
    """Whether quantised checkpoints' packages are asked for, or there as before."""
    asked = os.environ.get("QUANT", "").lower()
    return "quant" in stamp.get("done", {}) if not asked else asked not in ("0", "no", "false")


def read_stamp() -> dict[str, Any]:
    """What set-up left in `.venv`; empty where there is no `.venv`."""
    if STAMP.is_file():
        stamp: dict[str, Any] = json.loads(STAMP.read_text() or "{}")
        return stamp
    if VENV.is_symlink() or (VENV.exists() and any(VENV.iterdir())):
        raise SystemExit(f"evalkit set-up: {VENV} is not of its making: move it away, try again")
    return {}


def write_stamp(stamp: dict[str, Any]) -> None:
    """Replace the stamp, whole or not at all."""
    new = STAMP.with_suffix(".new")
    new.write_text(json.dumps(stamp, indent=2, sort_keys=True) + "\n")
    new.replace(STAMP)


def missing_parts(stamp: dict[str, Any], lock: str, wanted: dict[str, str]) -> list[str]:
    """The parts to install, in order: all of them where the packages or the place changed."""
    done = stamp.get("done", {})
    same = stamp.get("lock") == lock and stamp.get("root") == str(ROOT) and PYTHON.exists()
    if not same or done.get("packages") != wanted["packages"]:
        return list(wanted)
    return [part for part in wanted if done.get(part) != wanted[part]]


def make_environment() -> None:
    """Make `.venv` anew; only the stamp outlives it, so that an interruption leaves it ours."""
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise SystemExit(f"evalkit set-up: Python has no ensurepip: run apt install {package}")
    for child in VENV.iterdir():
        if child != STAMP:
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    subprocess.run([BASE, "-m", "venv", VENV], check=True)


def install(part: str, lock: str) -> None:
    """Install one part into `.venv`, from its lock and nothing else."""
    if part == "packages":
        make_environment()
        pip("build.lock", ["--require-hashes", "-r", HERE / "build.lock"])
        more = cpu_index() if lock == "cpu" else []
        pip(f"{lock}.lock", ["--require-hashes", *more, "-r", HERE / f"{lock}.lock"])
        import_once(IMPORTS["base" if lock == "base" else "run"])
    elif part == "quant":
        pip("quant.lock", ["--require-hashes", "-r", HERE / "quant.lock"])
    elif part == "dev":  # forced, because an earlier try may have left half a package
        pip("dev.lock", ["--require-hashes", "--force-reinstall", "-r", HERE / "dev.lock"])
        if lock != "base":  # numpy, scipy and pandas, installed again, have no bytecode any more
            import_once(IMPORTS["run"])
    else:
        pip("evalkit", ["--editable", ROOT])
        if lock != "base":
            import_once(INDEX)


def pip(what: str, arguments: list[str | Path]) -> None:
    """Run `pip install`, its output in the log and, on a terminal, its last line on view."""
    command = [str(PYTHON), "-m", "pip", "install", "--no-deps", "--no-input", "--no-compile"]
    command += ["--no-build-isolation", "--use-pep517"]  # build.lock has the tools
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
    process = subprocess.Popen(
        [*command, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    lines = []
    with LOG.open("a") as log:
        for line in process.stdout or []:
            log.write(line)
            lines.append(line)
            show(f"  {what}: {line.strip()}")
    show("")
    if process.wait():
        print("".join(lines[-8:]), end="", file=sys.stderr)
        raise SystemExit(f"evalkit set-up: {what} did not install; everything pip said: {LOG}")


def import_once(statement: str) -> None:
    """See that the packages import, and leave the bytecode of what a run will import.

    pip is told not to compile: that doubles set-up's time and adds 15,000 files to 50,000.
    """
    show("  importing everything once")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
    ran = subprocess.run(
        [str(PYTHON), "-c", statement], env=environment, capture_output=True, text=True
    )
    show("")
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise SystemExit(f"evalkit set-up: the packages are installed and do not import: {said}")


def show(line: str) -> None:
    """Replace the terminal's last line; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line[:78]}", end="", file=sys.stderr, flush=True)


def cpu_index() -> list[str]:
    """PyTorch's own index of CPU wheels, unless pip as configured finds the locked torch.

    Asking first matters where that index can't be reached: pip would try it again and again for
    every package.
    """
    locked = re.search(r"^torch==\S+\+cpu", (HERE / "cpu.lock").read_text(), re.M)
    if sys.platform != "linux" or locked is None:
        return []
    query = ["install", "--dry-run", "--quiet", "--no-deps", "--retries", "0", locked[0]]
    found = subprocess.run([str(PYTHON), "-m", "pip", *query], capture_output=True)
    return [] if found.returncode == 0 else ["--extra-index-url", CPU_INDEX]


def set_up(wanted: str, dev: bool) -> None:
    """Bring `.venv` to where it should be, one stamped part after another."""
    stamp = read_stamp()
    choice = choose(wanted, stamp)
    quant = wants_quant(stamp) and choice.lock != "base"
    parts = wanted_parts(choice.lock, dev, quant)
    missing = missing_parts(stamp, choice.lock, parts)
    say = f"evalkit set-up: {choice.lock} lock ({choice.why})"
    if not missing:
        print(f"{say}: .venv is ready", file=sys.stderr)
        return
    print(f"{say}: installing {', '.join(missing)} ...", file=sys.stderr)
    started = time.monotonic()
    VENV.mkdir(exist_ok=True)
    done = {} if "packages" in missing else stamp["done"]
    for part in missing:
        write_stamp({"lock": choice.lock, "root": str(ROOT), "done": done})
        install(part, choice.lock)
        done = {**done, part: parts[part]}
    write_stamp({"lock": choice.lock, "root": str(ROOT), "done": done})
    seconds = time.monotonic() - started
    print(f"evalkit set-up: .venv is ready after {seconds:.0f} s", file=sys.stderr)


def main() -> None:
    """`setup.py [--dev] [LOCK]`; one at a time where the file system can tell."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--dev"]
    wanted = arguments[0] if arguments else os.environ.get("LOCK", "")
    folder = os.open(HERE, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a network file system without locks
        fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        set_up(wanted, "--dev" in sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("\nevalkit set-up: interrupted; the same command goes on") from None


if __name__ == "__main__":
    main()
