"""What is asked: a suite of lm-eval tasks, and the lock that says exactly which data it means.

A suite is a short YAML file; beside it lies its lock (`<name>.lock.yaml`), which pins every
dataset's revision, every leaf task's documents and the rows that its shots are drawn from, and says
each licence; and beside that the digests of the single rows (`<name>.lock.rows`, `rows`). This
module reads and checks them and knows the suite's identity. It never loads a task or a dataset.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evalkit.base import canon, schema
from evalkit.base import shipped as shipped_files
from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.inputs import plain_yaml, rows
from evalkit.inputs.rows import Rows

FOLDER = shipped_files.folder("suites")
OWN_FILES = "files:"  # how the name of a dataset begins that is the suite's own files
PUBLISHED = "published.yaml"  # beside the suites, and none
LOCK, EARLIER_LOCK = "evalkit/lock/2", "evalkit/lock/1"
MAX_BYTES = 64 << 20  # of a suite or a lock
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's defaults


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """One member: an lm-eval task, group or tag, and its shots (None: what its YAML says)."""

    task: str
    num_fewshot: int | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as its file says it; `path` is where it was read, in no identity."""

    name: str
    path: Path
    tasks: tuple[SuiteTask, ...]
    description: str = ""
    include_path: Path | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=lambda: dict(SEEDS))
    limit: int | None = None

    @property
    def lock_path(self) -> Path:
        """Where the suite's lock lies."""
        return self.path.with_name(f"{self.path.stem}.lock.yaml")

    def task_files(self) -> dict[str, str]:
        """sha256 (hex) of every file of the suite's own task folder, by relative name."""
        if self.include_path is None:
            return {}
        found = sorted(p for p in self.include_path.rglob("*") if p.is_file())
        return {
            path.relative_to(self.include_path).as_posix(): canon.sha256_file(path)
            for path in found
            if "__pycache__" not in path.parts
        }


@dataclass(frozen=True, slots=True)
class LockedTask:
    """A leaf task's data: `rows` digests lm-eval's doc_hash of all `documents`, in order.

    `shots`: the rows that worked examples are drawn from, `{"split", "rows", "digest"}`, or
    `{"unknown": reason}` where they are not pinned; None where none are drawn.
    """

    dataset: str
    config: str | None
    split: str
    documents: int
    rows: str
    shots: dict[str, Any] | None

    @property
    def pins_shots(self) -> bool:
        """Whether it draws shots from rows that the lock pins."""
        return self.shots is not None and "unknown" not in self.shots


@dataclass(frozen=True, slots=True)
class LockedDataset:
    """A dataset: a Hub repo at a commit, or local data files at a digest of their bytes."""

    revision: str
    licence: str
    redistributable: bool


@dataclass(frozen=True, slots=True)
class Lock:
    """A suite's lock: which data its tasks mean, to the row; `each` has every leaf task's rows one
    by one."""

    suite: str
    lm_eval: str
    datasets: dict[str, LockedDataset]
    groups: dict[str, list[str]]
    tasks: dict[str, LockedTask]
    each: dict[str, Rows]

    def to_json(self) -> dict[str, Any]:
        """The lock as its file holds it."""
        return {
            "schema": LOCK,
            "suite": self.suite,
            "lm_eval": self.lm_eval,
            "rows_file": canon.digest_bytes(rows.text(self.each).encode()),
            "datasets": {name: _plain(item) for name, item in sorted(self.datasets.items())},
            "groups": dict(sorted(self.groups.items())),
            "tasks": {name: _plain(item) for name, item in sorted(self.tasks.items())},
        }

    def to_yaml(self) -> str:
        """The lock file's text."""
        head = f"# made by `evalkit lock {self.suite}`: the data that this suite means\n"
        text = yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=200)
        return f"{head}{text}"

    def write(self, path: Path) -> None:
        """Write the lock to `path` and its rows beside it."""
        canon.write_atomic(rows.beside(path), rows.text(self.each))
        canon.write_atomic(path, self.to_yaml())


def _plain(item: LockedTask | LockedDataset) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__}


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """A YAML file of ours that holds a mapping; EvalkitError where it is none. `kind`: in words."""
    try:
        value = plain_yaml.loads(canon.read_bytes(path, MAX_BYTES))
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


def shipped() -> list[str]:
    """The names of the suites that come with evalkit."""
    found = FOLDER.glob("*.yaml")
    others = (".lock.yaml", PUBLISHED)
    return sorted(path.stem for path in found if not path.name.endswith(others))


def find(name: str) -> Path:
    """The file of a suite given by name or path; EvalkitError with the nearest names."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise EvalkitError("there is no such suite file", where=name)
        return path
    if name not in shipped():
        hint = one_of(name, shipped())
        raise EvalkitError(
            f"unknown suite '{name}'", fix=f"{hint} (or give the path of a suite's YAML file)"
        )
    return FOLDER / f"{name}.yaml"


def load(name: str, *, limit: int | None = None, seed: int | None = None) -> Suite:
    """Read and check a suite; `limit` and `seed` are the command line's and win over the file."""
    path = find(name)
    raw = read_yaml(path, "suite")
    known = schema.load("suite")["properties"]
    for key in raw:
        if key not in known:
            hint = one_of(str(key), list(known))
            raise EvalkitError(f"unknown suite key '{key}'", where=str(path), fix=hint)
    problems = schema.check("suite", raw)
    if problems:
        raise EvalkitError(f"the suite is not valid: {problems[0]}", where=str(path))
    tasks = [{"task": item} if isinstance(item, str) else item for item in raw["tasks"]]
    settings = {key: raw[key] for key in raw if key not in ("name", "tasks", "include_path")}
    settings["seeds"] = SEEDS | raw.get("seeds", {})
    if seed is not None:
        settings["seeds"] = dict.fromkeys(SEEDS, seed)  # as lm-eval's --seed does
    if limit is not None:
        settings["limit"] = limit
    return Suite(
        name=raw["name"],
        path=path,
        tasks=tuple(SuiteTask(**item) for item in tasks),
        include_path=_include_path(raw.get("include_path"), path),
        **settings,
    )


def _include_path(value: str | None, suite: Path) -> Path | None:
    if value is None:
        return None
    own = "package:"  # the demo's tasks come with evalkit, wherever that is installed
    folder = (
        shipped_files.PACKAGE / "inputs/builtin" / value.removeprefix(own)
        if value.startswith(own)
        else suite.parent / value
    )
    if not folder.is_dir():
        raise EvalkitError(f"the suite's include_path '{value}' is not a folder", where=str(suite))
    return folder.resolve()


def read_lock(path: Path) -> Lock:
    """Read and check a lock file and the rows beside it.

    EvalkitError where the lock is no lock of this evalkit, or the rows are not the ones it names.
    """
    raw = read_yaml(path, "lock")
    if raw.get("schema") == EARLIER_LOCK:
        raise EvalkitError(
            f"the lock is of an earlier evalkit ({EARLIER_LOCK}), which pinned no single rows and"
            " no rows that shots are drawn from",
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
        datasets={name: LockedDataset(**item) for name, item in raw["datasets"].items()},
        groups=raw["groups"],
        tasks={name: LockedTask(**item) for name, item in raw["tasks"].items()},
        each=_read_rows(rows.beside(path), raw["rows_file"]),
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


def lock_of(suite: Suite) -> Lock:
    """The suite's lock; EvalkitError (3) when it has none yet."""
    if not suite.lock_path.is_file():
        raise EvalkitError(
            f"suite '{suite.name}' has no lock, so its data is not pinned",
            where=str(suite.lock_path),
            fix=f"run `evalkit lock {suite.path}` once and keep the files",
            code=Exit.MISSING,
        )
    return read_lock(suite.lock_path)


def identity(suite: Suite, lock: Lock) -> dict[str, Any]:
    """Everything that the suite id covers, in the form the record keeps."""
    return {
        "tasks": [{"task": t.task, "num_fewshot": t.num_fewshot} for t in suite.tasks],
        "limit": suite.limit,
        "apply_chat_template": suite.apply_chat_template,
        "fewshot_as_multiturn": suite.fewshot_as_multiturn,
        "system_instruction": suite.system_instruction,
        "gen_kwargs": suite.gen_kwargs,
        "seeds": suite.seeds,
        "task_files": suite.task_files(),
        "datasets": {name: {"revision": d.revision} for name, d in lock.datasets.items()},
        "rows": {name: task.rows for name, task in lock.tasks.items()},
        "shots": {n: task.shots for n, task in lock.tasks.items() if task.shots is not None},
    }
