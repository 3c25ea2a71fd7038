"""Finds what a command line of evalkit needs of this host: the folders that it names, what links in
them lead to, and the Hub's caches.

A folder or file that it names is read-only; results, and the run that a command works on, can be
written. The Hub's cache is read-only unless something may be downloaded; the token in it stays out.
"""

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from evalkit.base import canon, private
from evalkit.base.errors import EvalkitError
from evalkit.host.launch.command import SCRATCH, Work
from evalkit.inputs import hub, rows
from evalkit.inputs import suite as suites
from evalkit.inputs.models.builtin import smollm2

OUT, SUITE, TO = "--out", "--suite", "--to"
MODELS = ("--model", "--adapter")  # options whose folders may be full of links
MAKING = ("eval", "plan")  # they make runs in a results folder
JUDGING = ("verify", "status", "compare", "report", "doctor")  # they use no network
# Variables that are passed on. None of them holds a secret.
PASSED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NO_COLOR", "COLUMNS", "TERM", "TZ",
          "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN",
          "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT",
          "SLURM_RESTART_COUNT", "SLURM_JOB_PARTITION")  # fmt: skip
# Folders of the image: a folder of the host that covers one would change the image.
TAKEN = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt/evalkit", "proc", "run", "sbin", "sys",
         "usr", SCRATCH[1:])  # fmt: skip


def of(arguments: Sequence[str], environment: Mapping[str, str], scratch: Path) -> Work:
    """Return what `arguments` (evalkit's, without the word evalkit) need; make the results folder.
    EvalkitError where a folder would cover one of the image's, and in the folder /."""
    _check_here()
    if arguments[0] == "lock":
        arguments = [arguments[0], *map(_shipped, arguments[1:])]
    online = is_online(arguments, environment)
    arguments = _shared(_as_they_lie(arguments))
    readable, writable = _named(arguments)
    variables = [(name, environment[name]) for name in PASSED if name in environment]
    variables += [(private.GROUP, group)] if (group := os.environ.get(private.GROUP, "")) else []
    if _options(arguments).get("--model") == smollm2.NAME:  # fetched here: the image has no pip
        file = _absolute(smollm2.file(offline=not online))
        readable.add(file)
        variables.append((smollm2.PLACE, os.fspath(file)))
    if not online:
        variables += hub.OFFLINE.items()
    folders = _hub_folders(environment, online=online)
    variables += [(name, os.fspath(folder)) for name, folder in folders.items()]
    (writable if online else readable).update(folders.values())
    readable |= elsewhere(_options(arguments).get("--model", ""), environment)
    for path in sorted(readable | writable):
        _check(path)
    return Work(
        arguments=tuple(arguments),
        folder=os.fspath(Path.cwd()),
        scratch=os.fspath(scratch),
        user=f"{os.getuid()}:{os.getgid()}",
        hostname=socket.gethostname(),
        readable=tuple(map(os.fspath, sorted(readable - writable))),
        writable=tuple(map(os.fspath, sorted(writable))),
        environment=tuple(variables),
        online=online,
        gpus=any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")),
        terminal=all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)),
        name=_name(arguments),
        group=group,
    )


def _hub_folders(environment: Mapping[str, str], *, online: bool) -> dict[str, Path]:
    """Return the Hub's caches that exist, by variable; make them where something may be fetched."""
    folders = caches(environment)
    for folder in folders.values() if online else ():
        canon.make_folder(folder)
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def _name(arguments: Sequence[str]) -> str:
    options = _options(arguments)
    run = next((word for word in arguments[1:] if (Path(word) / "run.json").is_file()), "")
    model = options.get("--model", "")
    repo = hub.snapshot(Path(model)) if model else None
    named = [run] if run else [repo[0] if repo else model, options.get(SUITE, "")]
    names = (Path(word).name.removesuffix(".yaml") for word in named if word)
    parts = ["evalkit", arguments[0], *names]
    text = re.sub(r"[^\w.-]", "-", "-".join(parts), flags=re.ASCII)
    return f"{text}-{os.getpid()}"


def _shared(arguments: list[str]) -> list[str]:
    """Return the command line without its group, whose name the image does not know; new files here
    belong to that group from now on."""
    group = _options(arguments).get("--group")
    if not group:
        return arguments
    private.share(group)
    kept = [word for word in arguments if not word.startswith("--group=")]
    at = kept.index("--group") if "--group" in kept else len(kept)
    return [*kept[:at], *kept[at + 2 :]]


def _as_they_lie(arguments: Sequence[str]) -> list[str]:
    """Return the command line with models by their real paths: links lead nowhere inside."""
    words, before = [], ""
    for word in arguments:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_named = (before in MODELS or option in MODELS) and value and Path(value).exists()
        before = word
        if is_named and real(Path(value)) != _absolute(value):
            word = option + equals + os.fspath(real(Path(value)))
        words.append(word)
    return words


def elsewhere(model: str, environment: Mapping[str, str]) -> set[Path]:
    """Return what the Hub's cache has of a model outside of itself: it may consist of links."""
    cache = caches(environment)["HF_HUB_CACHE"]
    kept = cache / f"models--{model.replace('/', '--')}"
    if model.count("/") != 1 or not kept.is_dir():
        return set()
    linked = linked_from(kept) | {*_steps(kept)}
    return {path for path in linked if not path.resolve().is_relative_to(cache.resolve())}


def is_online(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a command line may have to download something."""
    is_offline = any(
        environment.get(name, "0").lower() in ("1", "true", "yes", "on") for name in hub.OFFLINE
    )
    return not (is_offline or "--offline" in arguments or arguments[0] in JUDGING)


def caches(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the Hub's caches on this host, by the variables that name them."""
    home = hub.home(environment)
    return {
        name: _absolute(environment.get(name) or home / folder)
        for name, folder in (("HF_HUB_CACHE", "hub"), ("HF_DATASETS_CACHE", "datasets"))
    }


def _named(arguments: Sequence[str]) -> tuple[set[Path], set[Path]]:
    """Return the files and folders that a command line may read, and those that it may write."""
    command, options = arguments[0], _options(arguments)
    out = options.get(OUT) or ("results" if command in MAKING else "")
    out = options.get(TO, "") if command == "stage" else out
    readable: set[Path] = set()
    writable: set[Path] = set()
    if out:
        canon.make_folder(Path(out))
        writable.add(_absolute(out))
    for word in dict.fromkeys([*arguments[1:], *options.values()]):
        path = _absolute(word)
        if not word or word == out or not path.exists():
            continue
        if (path / "run.json").is_file() and command not in JUDGING:
            writable.add(path.parent.parent)  # the audit log is its results folder's
        elif path.suffix == ".yaml" and command == "lock":
            writable.add(path.parent)  # the lock goes beside the suite
        elif word == options.get(SUITE) and path.is_dir():
            continue  # a shipped suite's name, and a folder that happens to have it
        else:
            readable |= suite_files(path) if word == options.get(SUITE) else {path}
            readable |= linked_from(path) if word in map(options.get, MODELS) else set()
    return readable, writable


def _shipped(word: str) -> str:
    """Return a shipped suite's file in this checkout: a command must not write the image's copy."""
    path = suites.FOLDER / f"{word}.yaml"
    return os.fspath(path) if path.is_file() else word


def _absolute(path: str | Path) -> Path:
    """Return an absolute path with its links kept, so that it is the path that the user knows."""
    return Path(os.path.normpath(Path.cwd() / path))


def _options(arguments: Sequence[str]) -> dict[str, str]:
    pairs = {name: value for name, value in pairwise(arguments) if name.startswith("--")}
    words = [word.partition("=") for word in arguments if word.startswith("--") and "=" in word]
    return pairs | {name: value for name, _, value in words}


def suite_files(path: Path) -> set[Path]:
    """Return a suite's file, its lock with its single rows, and its folder of tasks."""
    suite = suites.load(os.fspath(path))
    files = [path, suite.lock_path, rows.beside(suite.lock_path)]
    files += [suite.include_path] if suite.include_path else []
    return {file for file in files if file.exists()}


def real(path: Path) -> Path:
    """Return where a folder lies on the disk; a file keeps its name, which may have a meaning."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def linked_from(path: Path) -> set[Path]:
    """Return the folders and files outside of a folder that links in it lead to, each step by the
    name in the link and by its own. A file has none: a mount follows its links.

    A snapshot in the Hub's cache is a folder of links to files beside it. On clusters the cache
    itself, a folder above it or a file is often a link as well, and one link leads to another. The
    kernel follows a link step by step, so every step has to be in the image.
    """
    if not path.is_dir():
        return set()
    linked: set[Path] = set()
    inside = path.resolve()
    pending = [inside]
    while pending:
        for folder, folders, files in os.walk(pending.pop()):
            for entry in (Path(folder, name) for name in (*folders, *files)):
                outside = [s for s in _steps(entry) if not s.resolve().is_relative_to(inside)]
                if outside and entry.is_dir() and outside[-1] not in linked:
                    pending.append(outside[-1])
                linked |= {*outside}
    return {path for path in linked if not any(parent in linked for parent in path.parents)}


def _steps(path: Path) -> list[Path]:
    """Return each folder that a link leads to, step by step, under each of its names."""
    steps: list[Path] = []
    seen: set[Path] = set()
    while path.is_symlink() and path not in seen and path.exists():
        seen.add(path)
        path = Path(os.path.normpath(path.parent / path.readlink()))
        shown = path if path.is_dir() else path.parent
        steps += [shown, shown.resolve()]
        path = path.parent.resolve() / path.name
    return steps


def _check_here() -> None:
    if Path.cwd() == Path("/"):
        # with a bytecode tree, Python 3.11 can't import torch 2.10's made-up modules there
        raise EvalkitError("an image can't be started from the folder /", fix="cd to another one")


def _check(path: Path) -> None:
    for taken in TAKEN:
        if path.is_relative_to(f"/{taken}") or Path(f"/{taken}").is_relative_to(path):
            raise EvalkitError(
                f"{path} can't be shown to the image, which has /{taken} for its own",
                fix="move it, or run without an image (IN=none)",
            )
