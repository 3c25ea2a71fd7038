"""What a cluster wants to be told with every job: partition, account, modules, what is bound.

One list of settings (`SETTINGS`): options of `evalkit submit`, variables of make in capitals, and
keys of a site file, `~/.config/evalkit/site.toml` or the one given with --site. A file may hold
several sites, a table each, of which the one for this host's name is taken. The command line's
words come before the file's.
"""

import os
import re
import shlex
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, one_of

HOSTS = "hosts"  # of a table in a site file: patterns of the names of its login nodes
# Every setting, and what it says.
SETTINGS = {
    "partition": "sbatch's --partition, for the shards.",
    "account": "sbatch's --account.",
    "qos": "sbatch's --qos, for the shards.",
    "constraint": "sbatch's --constraint, for the shards.",
    "gres": "sbatch's --gres, for a shard: gpu:1, gpu:a100:1 or none.",
    "gpus_per_node": "sbatch's --gpus-per-node, if the cluster wants that in place of --gres.",
    "time": "sbatch's --time: the limit of one start of a shard.",
    "mem": "sbatch's --mem.",
    "cpus": "sbatch's --cpus-per-task.",
    "sbatch": "Other options of sbatch for the shards, as one text.",
    "max_walltime": "Longest time of a shard over all its starts.",
    "finish_partition": "Partition of the finishing job, which asks for no GPU.",
    "finish_qos": "QOS of the finishing job.",
    "finish_time": "Time limit of the finishing job.",
    "finish_mem": "Memory of the finishing job.",
    "finish_constraint": "Constraint of the finishing job.",
    "finish_sbatch": "Other options of sbatch for the finishing job.",
    "modules": "Modules to load.",
    "binds": "Folders to show to the image besides those of the runs.",
    "scratch": "Folder on the nodes for temporary files.",
}
# Options of sbatch that the scripts need as they are.
OWN = ("array", "dependency", "error", "export", "job-name", "nodes", "no-requeue", "ntasks",
       "open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait",
       "wrap")  # fmt: skip
OWN_LETTERS = {"a": "array", "d": "dependency", "e": "error", "J": "job-name", "N": "nodes",
               "n": "ntasks", "o": "output", "W": "wait"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster's settings, as `SETTINGS` says. `scratch` may name variables of the node,
    `$TMPDIR`."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = ""
    gpus_per_node: str = ""
    time: str = ""
    mem: str = ""
    cpus: str = ""
    sbatch: str = ""
    max_walltime: str = ""
    finish_partition: str = ""
    finish_qos: str = ""
    finish_time: str = ""
    finish_mem: str = ""
    finish_constraint: str = ""
    finish_sbatch: str = ""
    modules: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    scratch: str = "${TMPDIR:-/tmp}"

    def options(self) -> list[str]:
        """The options of sbatch for the shards."""
        names = [*SETTINGS][: [*SETTINGS].index("cpus")]
        said = {name.replace("_", "-"): getattr(self, name) for name in names}
        return _options(said | {"cpus-per-task": self.cpus}, self.sbatch, "sbatch")

    def finishing(self) -> list[str]:
        """The options of sbatch for the finishing job: what it is not told of its own it takes over
        from the shards, but for what a GPU's job alone needs."""
        elsewhere = bool(self.finish_partition)
        said = {
            "partition": self.finish_partition or self.partition,
            "account": self.account,
            "qos": self.finish_qos or ("" if elsewhere else self.qos),
            "constraint": self.finish_constraint,
            "time": self.finish_time or self.time,
            "mem": self.finish_mem or self.mem,
            "cpus-per-task": self.cpus,
        }
        return _options(said, self.finish_sbatch, "finish_sbatch")

    def wants_gpu(self) -> bool | None:
        """Whether the shards ask for a GPU; None where it is said that they want none."""
        if self.gres == "none":
            return None
        words = shlex.split(self.sbatch)
        asked = any(re.match(r"(--gpus|-G|--gres=\S*gpu|--tres-per-\w+=\S*gpu)", w) for w in words)
        return asked or bool(self.gpus_per_node) or "gpu" in self.gres

    def with_gpus(self, count: int) -> "Site":
        """The same with so many GPUs a shard, of the type that was asked for."""
        if self.gpus_per_node:
            kind = self.gpus_per_node.rpartition(":")[0]
            return replace(self, gpus_per_node=f"{kind}:{count}" if kind else str(count))
        wanted = [part for part in self.gres.split(",") if part and part != "none"]
        kinds = [re.match(r"gpu(:[^:\d][^:]*)?", part) for part in wanted]
        found = [f"{kind[0]}:{count}" if kind else part
                 for kind, part in zip(kinds, wanted, strict=True)]  # fmt: skip
        found += [] if any(kinds) else [f"gpu:{count}"]
        return replace(self, gres=",".join(found))

    def with_words(self, given: Mapping[str, str | None]) -> "Site":
        """The same where `given`, words of a command line, says nothing else."""
        told: dict[str, Any] = {name: value for name, value in given.items() if value}
        for name in ("modules", "binds"):
            if name in told:
                told[name] = tuple(shlex.split(told[name]))
        return replace(self, **told)


def _options(said: Mapping[str, str], further: str, setting: str) -> list[str]:
    found = [f"--{name}={value}" for name, value in said.items() if value]
    try:
        words = shlex.split(further)
    except ValueError as error:
        raise EvalkitError(f"{setting} is no list of options: {error}", where=further) from None
    for word in words:
        name = word[2:].partition("=")[0] if word.startswith("--") else OWN_LETTERS.get(word[1:2])
        if word.startswith("-") and name in OWN:
            raise EvalkitError(
                f"{setting} can't say {word}: evalkit's scripts need --{name} as it is",
                fix="leave it out; `evalkit submit --help` lists what has an option of its own",
            )
    return [*found, *words]


def default_path() -> Path:
    """Where a user's site file lies."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "evalkit" / "site.toml"


def read(wanted: str | None = None, host: str = "") -> Site:
    """The settings of a site file, or of the user's own where there is one. `wanted`: a file, or a
    site's name in the user's own; `host`: this host's name, by which one of several is chosen.

    Raises EvalkitError for a file that says what no setting is, and where none of its sites is
    for this host.
    """
    is_file = wanted and ("/" in wanted or wanted.endswith(".toml") or Path(wanted).is_file())
    path = Path(wanted) if wanted and is_file else default_path()
    if not wanted and not path.is_file():
        return Site()
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        what = f"can't read the site file: {error.strerror}"
        raise EvalkitError(what, where=str(path), code=Exit.MISSING) from None
    except ValueError as error:
        raise EvalkitError(f"the site file is no TOML: {error}", where=str(path)) from None
    sites = {name: value for name, value in told.items() if isinstance(value, dict)}
    common = {name: value for name, value in told.items() if name not in sites}
    chosen = _chosen(sites, "" if is_file else wanted or "", host or socket.getfqdn(), path)
    checked: dict[str, Any] = {
        name: _value(name, value, path) for name, value in {**common, **chosen}.items()
    }
    return Site(**checked)


def _chosen(sites: dict[str, Any], name: str, host: str, path: Path) -> dict[str, Any]:
    """The settings of the site of that name, or of the one for this host."""
    if name and name not in sites:
        raise EvalkitError(f"no site '{name}'", where=str(path), fix=one_of(name, [*sites]))
    for each, settings in sites.items():
        hosts = settings.get(HOSTS, [each])
        if not isinstance(hosts, list) or not all(isinstance(word, str) for word in hosts):
            raise EvalkitError(f"'{HOSTS}' of {each} must be a list of texts", where=str(path))
        short = host.partition(".")[0]
        if name == each or (not name and any(fnmatch(h, p) for h in (host, short) for p in hosts)):
            return {key: value for key, value in settings.items() if key != HOSTS}
    if sites:
        raise EvalkitError(
            f"none of the sites {', '.join(sites)} is for this host, {host}", where=str(path),
            fix="--site NAME, or add its name to a site's `hosts`",
        )  # fmt: skip
    return {}


def _value(name: str, value: Any, path: Path) -> str | tuple[str, ...]:
    known = {field.name: field.default for field in fields(Site)}
    if name not in known:
        raise EvalkitError(f"unknown setting '{name}'", where=str(path), fix=one_of(name, [*known]))
    if isinstance(known[name], tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise EvalkitError(f"'{name}' must be a list of texts", where=str(path))
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise EvalkitError(f"'{name}' must be a text", where=str(path))
    return str(value)


def seconds(time: str) -> int | None:
    """The seconds of a time limit as Slurm reads it (minutes, minutes:seconds, hours:minutes:
    seconds, days-hours[:minutes[:seconds]]); None where it is none, or no limit."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in parts) or not (days.isdecimal() or not dash):
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, secs = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, secs = numbers
    else:
        hours, minutes, secs = 0, *(*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs
