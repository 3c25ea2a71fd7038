"""The settings of a cluster that every job needs: partition, account, modules, bound folders.

Each field of `Site` is an option of `evalkit submit`, a variable of make in capitals, and a key of
a site file: `~/.config/evalkit/site.toml`, or the one given with --site. A file may hold several
sites, a table each; the one for this host's name is used. The command line overrides the file.
"""

import os
import re
import shlex
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, one_of

HOSTS = "hosts"  # in a site's table: patterns for the names of its login nodes
# Options of sbatch that the scripts need as they are.
OWN = ("array", "dependency", "error", "export", "job-name", "nodes", "no-requeue", "ntasks",
       "open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait",
       "wrap")  # fmt: skip
LISTS = ("modules", "binds")  # settings that are lists of texts
OWN_LETTERS = {"a": "array", "d": "dependency", "e": "error", "J": "job-name", "N": "nodes",
               "n": "ntasks", "o": "output", "W": "wait"}  # fmt: skip


def _setting(help: str, default: Any = "") -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class Site:
    """The settings of a cluster. `scratch` may name variables of the node, `$TMPDIR`."""

    partition: str = _setting("sbatch's --partition, for the shards.")
    account: str = _setting("sbatch's --account.")
    qos: str = _setting("sbatch's --qos, for the shards.")
    constraint: str = _setting("sbatch's --constraint, for the shards.")
    gres: str = _setting("sbatch's --gres, for a shard: gpu:1, gpu:a100:1 or none.")
    gpus_per_node: str = _setting(
        "sbatch's --gpus-per-node, if the cluster wants that in place of --gres."
    )
    time: str = _setting("sbatch's --time: the limit of one start of a shard.")
    mem: str = _setting("sbatch's --mem.")
    cpus: str = _setting("sbatch's --cpus-per-task.")
    sbatch: str = _setting("Other options of sbatch for the shards, as one text.")
    max_walltime: str = _setting("Longest time of a shard over all its starts.")
    finish_partition: str = _setting("Partition of the finishing job, which asks for no GPU.")
    finish_qos: str = _setting("QOS of the finishing job.")
    finish_time: str = _setting("Time limit of the finishing job.")
    finish_mem: str = _setting("Memory of the finishing job.")
    finish_constraint: str = _setting("Constraint of the finishing job.")
    finish_sbatch: str = _setting("Other options of sbatch for the finishing job.")
    modules: tuple[str, ...] = _setting("Modules to load.", ())
    binds: tuple[str, ...] = _setting("Folders to show to the image besides those of the runs.", ())
    scratch: str = _setting("Folder on the nodes for temporary files.", "${TMPDIR:-/tmp}")

    def options(self) -> list[str]:
        """Return the options of sbatch for the shards."""
        names = [*SETTINGS][: [*SETTINGS].index("cpus")]
        values = {name.replace("_", "-"): getattr(self, name) for name in names}
        return _options(values | {"cpus-per-task": self.cpus}, self.sbatch, "sbatch")

    def finishing(self) -> list[str]:
        """Return the options of sbatch for the finishing job: its own settings, else those of the
        shards that don't concern GPUs."""
        values = {
            "partition": self.finish_partition or self.partition,
            "account": self.account,
            "qos": self.finish_qos or ("" if self.finish_partition else self.qos),
            "constraint": self.finish_constraint,
            "time": self.finish_time or self.time,
            "mem": self.finish_mem or self.mem,
            "cpus-per-task": self.cpus,
        }
        return _options(values, self.finish_sbatch, "finish_sbatch")

    def wants_gpu(self) -> bool | None:
        """Return whether the shards request a GPU; None where the user wants none."""
        if self.gres == "none":
            return None
        words = shlex.split(self.sbatch)
        gpu = r"(--gpus|-G|--gres=\S*gpu|--tres-per-\w+=\S*gpu)"
        if any(re.match(gpu, word) for word in words):
            return True
        return bool(self.gpus_per_node) or "gpu" in self.gres

    def with_gpus(self, count: int) -> "Site":
        """Return these settings with `count` GPUs a shard, of the requested type."""
        if self.gpus_per_node:
            kind = self.gpus_per_node.rpartition(":")[0]
            return replace(self, gpus_per_node=f"{kind}:{count}" if kind else str(count))
        parts = [part for part in self.gres.split(",") if part and part != "none"]
        kinds = [re.match(r"gpu(:[^:\d][^:]*)?", part) for part in parts]
        counted = [f"{kind[0]}:{count}" if kind else part
                   for kind, part in zip(kinds, parts, strict=True)]  # fmt: skip
        counted += [] if any(kinds) else [f"gpu:{count}"]
        return replace(self, gres=",".join(counted))

    def with_words(self, given: Mapping[str, str | None]) -> "Site":
        """Return these settings, overridden by those in `given`, words of a command line."""
        changes: Mapping[str, Any] = {
            name: tuple(shlex.split(value)) if name in LISTS else value
            for name, value in given.items()
            if value
        }
        return replace(self, **changes)


# Every setting and its help.
SETTINGS: dict[str, str] = {setting.name: setting.metadata["help"] for setting in fields(Site)}


def _options(values: Mapping[str, str], further: str, setting: str) -> list[str]:
    options = [f"--{name}={value}" for name, value in values.items() if value]
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
    return [*options, *words]


def default_path() -> Path:
    """Return the path of a user's site file."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "evalkit" / "site.toml"


def read(wanted: str | None = None, host: str = "") -> Site:
    """Read the settings of a site. `wanted`: a site file, or a site's name in the user's own file;
    `host`: this host's name, which chooses one of several sites. Raises EvalkitError for an unknown
    setting, and where no site is for this host."""
    is_file = wanted and ("/" in wanted or wanted.endswith(".toml") or Path(wanted).is_file())
    path = Path(wanted) if wanted and is_file else default_path()
    if not wanted and not path.is_file():
        return Site()
    try:
        body = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        what = f"can't read the site file: {error.strerror}"
        raise EvalkitError(what, where=str(path), code=Exit.MISSING) from None
    except ValueError as error:
        raise EvalkitError(f"the site file is no TOML: {error}", where=str(path)) from None
    sites = {name: value for name, value in body.items() if isinstance(value, dict)}
    common = {name: value for name, value in body.items() if name not in sites}
    chosen = _chosen(sites, "" if is_file else wanted or "", host or socket.getfqdn(), path)
    return Site(**{name: _value(name, value, path) for name, value in (common | chosen).items()})


Table = Mapping[str, object]  # of a site file, unchecked


def _chosen(sites: Mapping[str, Table], name: str, host: str, path: Path) -> dict[str, object]:
    """Return the settings of the site of that name, or of the one for this host."""
    if name and name not in sites:
        raise EvalkitError(f"no site '{name}'", where=str(path), fix=one_of(name, [*sites]))
    for site, settings in sites.items():
        hosts = settings.get(HOSTS, [site])
        if not isinstance(hosts, list) or not all(isinstance(word, str) for word in hosts):
            raise EvalkitError(f"'{HOSTS}' of {site} must be a list of texts", where=str(path))
        short = host.partition(".")[0]
        if name == site or (not name and any(fnmatch(h, p) for h in (host, short) for p in hosts)):
            return {key: value for key, value in settings.items() if key != HOSTS}
    if sites:
        raise EvalkitError(
            f"none of the sites {', '.join(sites)} is for this host, {host}", where=str(path),
            fix="--site NAME, or add its name to a site's `hosts`",
        )  # fmt: skip
    return {}


def _value(name: str, value: object, path: Path) -> Any:
    """Return a checked value: a text, or for a setting of `LISTS` a tuple of texts."""
    if name not in SETTINGS:
        fix = one_of(name, [*SETTINGS])
        raise EvalkitError(f"unknown setting '{name}'", where=str(path), fix=fix)
    if name in LISTS:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise EvalkitError(f"'{name}' must be a list of texts", where=str(path))
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise EvalkitError(f"'{name}' must be a text", where=str(path))
    return str(value)


def seconds(time: str) -> int | None:
    """Return the seconds of a time limit as Slurm reads it (minutes, minutes:seconds,
    hours:minutes: seconds, days-hours[:minutes[:seconds]]); None where it is no time, or no
    limit."""
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
