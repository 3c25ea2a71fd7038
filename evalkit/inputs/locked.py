"""A suite's lock: what it asks, of which data, and how that is scored.

`<name>.lock.yaml` pins every dataset's revision and licence, of every leaf task the documents, the
rows of its shots and the scoring, and every group's scoring. `<name>.lock.rows` (`rows`) has the
digests of single documents and prompts. Both are read, written and checked here.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import stamp
from evalkit.inputs import rows, untrusted
from evalkit.inputs.rows import Rows
from evalkit.inputs.types import (
    Asked,
    GroupMetric,
    GroupScore,
    LockBody,
    LockedDataset,
    LockedTask,
    ShotRows,
)

PUNKT = "nltk_data/tokenizers/punkt_tab/english"
LOCK, EARLIER_LOCK = "evalkit/lock/2", "evalkit/lock/1"
MAX_BYTES = 64 << 20  # of a suite or a lock
RENDERING = ("apply_chat_template", "fewshot_as_multiturn", "system_instruction")
ASKED = (*RENDERING, "gen_kwargs", "seeds")  # a suite's settings that prompts follow from


def pinned_shots(task: LockedTask) -> ShotRows | None:
    """Return the rows that a leaf task's shots are drawn from, where the lock pins them."""
    shots = task["shots"]
    return None if shots is None or "unknown" in shots else shots


def pinned_revision(dataset: LockedDataset) -> str | None:
    """Return a dataset's revision, where the lock pins one."""
    revision = dataset["revision"]
    return revision if isinstance(revision, str) else None


@dataclass(frozen=True, slots=True)
class Lock:
    """A suite's lock. `asked`: the suite's settings that prompts follow from; `each`: every leaf
    task's documents and prompts one by one."""

    suite: str
    lm_eval: str
    asked: Asked
    datasets: dict[str, LockedDataset]
    groups: dict[str, list[str]]
    group_scores: dict[str, GroupScore]
    tasks: dict[str, LockedTask]
    each: dict[str, Rows]
    scorers: tuple[str, ...] = ()  # packages besides lm-eval that the tasks are scored with
    unlocked: dict[str, str] = field(default_factory=dict)  # members that are left out, and why

    def to_json(self) -> LockBody:
        """Return the lock as its file holds it."""
        body = {
            "schema": LOCK,
            "suite": self.suite,
            "lm_eval": self.lm_eval,
            "rows_file": canon.digest_bytes(rows.text(self.each).encode()),
            **({"scorers": list(self.scorers)} if self.scorers else {}),
            **({"unlocked": dict(self.unlocked)} if self.unlocked else {}),
            "asked": self.asked,
            "datasets": dict(sorted(self.datasets.items())),
            "groups": dict(sorted(self.groups.items())),
            "group_scores": dict(sorted(self.group_scores.items())),
            "tasks": dict(sorted(self.tasks.items())),
        }
        return cast(LockBody, body)

    def to_yaml(self) -> str:
        """The lock file's text."""
        head = f"# made by `evalkit lock {self.suite}`: what this suite asks, and of which data\n"
        text = yaml.dump(
            self.to_json(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=200
        )
        return f"{head}{text}"

    def write(self, path: Path) -> None:
        """Write the lock to `path` and its rows beside it."""
        canon.write_atomic(rows.beside(path), rows.text(self.each))
        canon.write_atomic(path, self.to_yaml())


class _Plain(yaml.SafeDumper):
    """YAML without references: equal parts stand where they belong, each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def other_settings(asked: Mapping[str, Any], suite: Mapping[str, Any]) -> list[str]:
    """Return the settings that prompts follow from and that differ between a suite and a lock's
    `asked`."""
    return [key for key in ASKED if asked[key] != suite[key]]


def holds_prompts(unlike: list[str], num_fewshot: int) -> bool:
    """Whether a leaf task's prompts are still the locked ones under such other settings: seeds only
    choose shots, and generation settings are no part of a prompt."""
    drawn_otherwise = "seeds" in unlike and num_fewshot > 0
    return not drawn_otherwise and not {*unlike} & {*RENDERING}


def group_metric(metrics: Mapping[str, GroupMetric], key: str) -> GroupMetric | None:
    """Return how a group aggregates `<metric>,<filter>`, or None if it does not. A metric that it
    aggregates in several ways stands in the lock once for each filter, under such a key."""
    found = metrics.get(key) or metrics.get(key.partition(",")[0])
    filters = found["filters"] if found else None
    return found if filters is None or key.partition(",")[2] in filters else None


def read_yaml(path: Path, kind: str) -> Any:
    """Return the mapping in a YAML file; EvalkitError where it holds none. `kind`: in words."""
    try:
        value = untrusted.load_yaml(canon.read_bytes(path, MAX_BYTES))
    except FileNotFoundError:
        raise EvalkitError(f"there is no {kind} file", where=str(path)) from None
    except OSError as error:
        raise EvalkitError(
            f"can't read the {kind} file: {error.strerror}", where=str(path), code=Exit.MISSING
        ) from None
    except ValueError as error:
        raise EvalkitError(f"the {kind} is not readable YAML: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise EvalkitError(f"the {kind} must be a YAML mapping", where=str(path))
    return value


def read_lock(path: Path) -> Lock:
    """Read and check a lock file and the rows beside it. EvalkitError where the lock is no lock of
    this evalkit, or the rows are not the ones it names."""
    raw = read_yaml(path, "lock")
    if raw.get("schema") == EARLIER_LOCK or (raw.get("schema") == LOCK and "asked" not in raw):
        raise EvalkitError(
            "the lock is of an earlier evalkit, which pinned no prompts and nothing of how they are"
            " scored",
            where=str(path),
            fix=f"run `evalkit lock {path.with_name(path.name.replace('.lock.', '.'))}` once:"
            " datasets stay at their revisions",
            code=Exit.MISSING,
        )
    problems = schema.check("lock", raw)
    if problems:
        raise EvalkitError(f"the lock is not valid: {problems[0]}", where=str(path))
    return Lock(
        suite=raw["suite"],
        lm_eval=raw["lm_eval"],
        asked=raw["asked"],
        datasets=raw["datasets"],
        groups=raw["groups"],
        group_scores=raw["group_scores"],
        tasks=raw["tasks"],
        each=_read_rows(rows.beside(path), raw["rows_file"]),
        scorers=tuple(raw.get("scorers", ())),
        unlocked=raw.get("unlocked", {}),
    )


def _read_rows(path: Path, digest: str) -> dict[str, Rows]:
    again = "restore it, or make both files again with `evalkit lock`"
    try:
        data = canon.read_bytes(path, rows.MAX_BYTES)
    except FileNotFoundError:
        what = "the file of the lock's single rows is missing"
        raise EvalkitError(what, where=str(path), fix=again, code=Exit.MISSING) from None
    if canon.digest_bytes(data) != digest:
        what = "the file of single rows is not the one that the lock beside it names"
        raise EvalkitError(what, where=str(path), fix=again, code=Exit.FAILED)
    return rows.parse(data, str(path))


def scorers(names: Iterable[str]) -> dict[str, str | None]:
    """Return these packages' versions and the digest of nltk's data; None: not installed."""
    found: dict[str, str | None] = {name: stamp.version(name) for name in names}
    if "nltk" in found:
        found[PUNKT] = None
        if folder := punkt():
            files = {p.name: canon.sha256_file(p) for p in folder.iterdir() if p.is_file()}
            found[PUNKT] = canon.digest(files)
    return found


def scorable(lock: Lock) -> Lock:
    """Return the lock; EvalkitError (3) where a package or data that its suite is scored with is
    missing, before anything is computed."""
    found = scorers(lock.scorers)
    lacking = sorted(name for name, version in found.items() if version is None)
    if PUNKT in lacking:
        raise EvalkitError(
            "the suite is scored with nltk's punkt_tab, a download that is not here",
            fix="run `python -m nltk.downloader punkt_tab` once online, or set NLTK_DATA",
            code=Exit.MISSING,
        )
    if lacking:
        raise EvalkitError(
            f"the suite is scored with {', '.join(lacking)}, which is not installed",
            fix="install evalkit[score], or what the task's page names",
            code=Exit.MISSING,
        )
    return lock


def punkt() -> Path | None:
    """Where nltk finds its sentence splitter for English, or None."""
    for place in _places():
        folder = place / "tokenizers" / "punkt_tab" / "english"
        if folder.is_dir():
            return folder
    return None


def _places() -> Iterator[Path]:
    """Where nltk looks for data, in its order."""
    named = os.environ.get("NLTK_DATA", "")
    yield from (Path(part) for part in named.split(os.pathsep) if part)
    yield Path.home() / "nltk_data"
    yield from (Path(sys.prefix) / part for part in ("nltk_data", "share/nltk_data"))
    yield from (Path(sys.prefix) / "lib" / "nltk_data",)
    for system in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib"):
        yield Path(system) / "nltk_data"
