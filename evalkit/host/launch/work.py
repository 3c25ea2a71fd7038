"""What a command line of evalkit's needs of this host: the folders that it names, and little else.

A folder or file that is named is given read-only; results, and the run that a command works on, can
be written to. The Hub's cache is read-only where nothing is to be downloaded, and never comes with
the token that may lie in it.
"""

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.host.launch import links
from evalkit.host.launch.command import SCRATCH, Work
from evalkit.inputs import hub, rows
from evalkit.inputs import suite as suites
from evalkit.inputs.models.builtin import smollm2

OUT, SUITE, TO = "--out", "--suite", "--to"
MODELS = ("--model", "--adapter")  # options whose folders may be full of links
MAKING = ("eval", "plan")  # they make runs in a results folder
JUDGING = ("verify", "status", "compare", "report", "doctor")  # they ask no network for anything
# What is handed on under its own name where it is set. No value of these is a secret.
PASSED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NO_COLOR", "COLUMNS", "TERM", "TZ",
          "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN",
          "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT",
          "SLURM_RESTART_COUNT", "SLURM_JOB_PARTITION")  # fmt: skip
# What the image has for its own: a folder of the host's that covers it would change the image.
TAKEN = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt/evalkit", "proc", "run", "sbin", "sys",
         "usr", SCRATCH[1:])  # fmt: skip


def of(arguments: Sequence[str], environment: Mapping[str, str], scratch: Path) -> Work:
    """What `arguments` (evalkit's, without the word evalkit) need; makes the results folder.

    EvalkitError where a folder lies at a place that the image has for its own, and in the folder /.
    """
    _check_here()
    if arguments[0] == "lock":
        arguments = [arguments[0], *map(_shipped, arguments[1:])]
    online = is_online(arguments, environment)
    arguments = _shared(_as_they_lie(arguments))
    readable, writable = _named(arguments)
    variables = [(name, environment[name]) for name in PASSED if name in environment]
    variables += [(canon.GROUP, os.environ[canon.GROUP])] if os.environ.get(canon.GROUP) else []
    if _options(arguments).get("--model") == smollm2.NAME:  # fetched here: the image has no pip
        file = _absolute(smollm2.file(offline=not online))
        readable.add(file)
        variables.append((smollm2.PLACE, os.fspath(file)))
    if not online:
        variables += hub.OFFLINE.items()
    there = _there(environment, online=online)
    variables += [(name, os.fspath(folder)) for name, folder in there.items()]
    (writable if online else readable).update(there.values())
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
        group=os.environ.get(canon.GROUP, ""),
    )


def _there(environment: Mapping[str, str], *, online: bool) -> dict[str, Path]:
    """Those of the Hub's caches that are there, by the variables that name them; all of them where
    something may be fetched."""
    found = caches(environment)
    for folder in found.values() if online else ():
        canon.make_folder(folder)
    return {name: folder for name, folder in found.items() if folder.is_dir()}


def _name(arguments: Sequence[str]) -> str:
    """What the container is called: the command and the run, or the model and the suite."""
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
    """The command line without its group, whose name the image does not know: what is made here is
    shared from now on, and the image is told the group's number."""
    group = _options(arguments).get("--group")
    if not group:
        return arguments
    canon.share(group)
    kept = [word for word in arguments if not word.startswith("--group=")]
    at = kept.index("--group") if "--group" in kept else len(kept)
    return [*kept[:at], *kept[at + 2 :]]


def _as_they_lie(arguments: Sequence[str]) -> list[str]:
    """The command line with a model's folder named by where it lies on the disk: relative links in
    it lead nowhere from the place of a link to it, which is no link in the image."""
    found, before = [], ""
    for word in arguments:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_named = (before in MODELS or option in MODELS) and value and Path(value).exists()
        before = word
        if is_named and links.real(Path(value)) != _absolute(value):
            word = option + equals + os.fspath(links.real(Path(value)))
        found.append(word)
    return found


def elsewhere(model: str, environment: Mapping[str, str]) -> set[Path]:
    """What the Hub's cache has of a model that lies elsewhere: a cache may be made of links."""
    cache = caches(environment)["HF_HUB_CACHE"]
    kept = cache / f"models--{model.replace('/', '--')}"
    if model.count("/") != 1 or not kept.is_dir():
        return set()
    found = links.behind(kept) | {*links.steps(kept)}
    return {path for path in found if not path.resolve().is_relative_to(cache.resolve())}


def is_online(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command line may have to download something."""
    said = any(
        environment.get(name, "0").lower() in ("1", "true", "yes", "on") for name in hub.OFFLINE
    )
    return not (said or "--offline" in arguments or arguments[0] in JUDGING)


def caches(environment: Mapping[str, str]) -> dict[str, Path]:
    """The Hub's caches on this host, by the variables that name them."""
    home = hub.home(environment)
    return {
        name: _absolute(environment.get(name) or home / folder)
        for name, folder in (("HF_HUB_CACHE", "hub"), ("HF_DATASETS_CACHE", "datasets"))
    }


def _named(arguments: Sequence[str]) -> tuple[set[Path], set[Path]]:
    """What a command line names of this host: what it may read, and what it may write to."""
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
        else:
            readable |= suite_files(path) if word == options.get(SUITE) else {path}
            readable |= links.behind(path) if word in map(options.get, MODELS) else set()
    return readable, writable


def _shipped(word: str) -> str:
    """A shipped suite's name as its file in this checkout: the image's own copy stays as it is."""
    path = suites.FOLDER / f"{word}.yaml"
    return os.fspath(path) if path.is_file() else word


def _absolute(path: str | Path) -> Path:
    """A path as the image is to know it: links in it are kept, so that it stays the user's."""
    return Path(os.path.normpath(Path.cwd() / path))


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """The values of a command line's options, both ways of writing them."""
    found = dict(pair for pair in pairwise(arguments) if pair[0].startswith("--"))
    written = [word.partition("=") for word in arguments if word.startswith("--") and "=" in word]
    return found | {name: value for name, _, value in written}


def suite_files(path: Path) -> set[Path]:
    """A suite's file, its lock with its single rows, and its folder of tasks."""
    suite = suites.load(os.fspath(path))
    files = [path, suite.lock_path, rows.beside(suite.lock_path)]
    files += [suite.include_path] if suite.include_path else []
    return {file for file in files if file.exists()}


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
