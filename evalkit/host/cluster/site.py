"""What a cluster wants to be told with every job: partition, account, modules, what is bound.

Kept once, in `~/.config/evalkit/site.toml` or the file given with --site; the command line's words
come before it.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, one_of

# Options of sbatch that are passed on as they are, by their names in a site file.
SBATCH = ("partition", "account", "qos", "constraint", "gres", "time", "mem", "cpus")


@dataclass(frozen=True, slots=True)
class Site:
    """A cluster's settings. `scratch`: a folder for what is temporary, which may name variables of
    the node, `$TMPDIR`; `binds`: folders that a container must see besides those of the run."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = ""
    time: str = ""
    mem: str = ""
    cpus: str = ""
    modules: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    scratch: str = "${TMPDIR:-/tmp}"

    def sbatch(self) -> list[str]:
        """The options for sbatch that are set."""
        long = {"cpus": "cpus-per-task"}
        return [f"--{long.get(name, name)}={getattr(self, name)}"
                for name in SBATCH if getattr(self, name)]  # fmt: skip

    def with_words(self, given: Mapping[str, str | None]) -> "Site":
        """The same where `given` says nothing else."""
        told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **told)


def default_path() -> Path:
    """Where a user's site file lies."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "evalkit" / "site.toml"


def read(path: Path | None) -> Site:
    """The site file's settings, or the user's own's, where there is one; EvalkitError for one that
    says what no setting is."""
    if path is None and not default_path().is_file():
        return Site()
    path = path or default_path()
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        what = f"can't read the site file: {error.strerror}"
        raise EvalkitError(what, where=str(path), code=Exit.MISSING) from None
    except ValueError as error:
        raise EvalkitError(f"the site file is no TOML: {error}", where=str(path)) from None
    checked: dict[str, Any] = {name: _value(name, told[name], path) for name in told}
    return Site(**checked)


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
