"""What is asked: a suite of lm-eval tasks.

A suite is a short YAML file; beside it lies its lock (`locked`), which says exactly which data it
means and how that is asked and scored. This module reads and checks the suite and knows its
identity. It never loads a task or a dataset.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.base.machine import shipped as shipped_files
from evalkit.inputs.chat import templates
from evalkit.inputs.chat.templates import Chat
from evalkit.inputs.locked import Lock, read_lock, read_yaml, scorers
from evalkit.inputs.types import Seeds, Setting, SuiteFile, SuiteIdentity

FOLDER = shipped_files.folder("suites")
OWN_FILES = "files:"  # how the name of a dataset begins that is the suite's own files
PUBLISHED = "published.yaml"  # beside the suites, and none
SEEDS: Seeds = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's defaults


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
    gen_kwargs: dict[str, Setting] = field(default_factory=dict)
    seeds: Seeds = field(default_factory=lambda: SEEDS.copy())
    limit: int | None = None
    chat: Chat = field(default_factory=Chat)

    @property
    def lock_path(self) -> Path:
        """Where the suite's lock lies."""
        return self.path.with_name(f"{self.path.stem}.lock.yaml")

    def task_files(self) -> dict[str, str]:
        """Return the sha256 (hex) of every file of the suite's task folder, by relative name."""
        if self.include_path is None:
            return {}
        found = sorted(p for p in self.include_path.rglob("*") if p.is_file())
        return {
            path.relative_to(self.include_path).as_posix(): canon.sha256_file(path)
            for path in found
            if "__pycache__" not in path.parts
        }


def shipped() -> list[str]:
    """Return the names of the suites that come with evalkit."""
    found = FOLDER.glob("*.yaml")
    others = (".lock.yaml", PUBLISHED)
    return sorted(path.stem for path in found if not path.name.endswith(others))


def find(name: str) -> Path:
    """Return the file of a suite given by name or path; EvalkitError with the nearest names."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            what = "there is no such suite file"
            raise EvalkitError(what, where=name, fix="give its path: --suite FILE")
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
    raw: SuiteFile = read_yaml(path, "suite")
    known = schema.load("suite")["properties"]
    for key in raw:
        if key not in known:
            hint = one_of(str(key), list(known))
            raise EvalkitError(f"unknown suite key '{key}'", where=str(path), fix=hint)
    problems = schema.check("suite", raw)
    if problems:
        raise EvalkitError(f"the suite is not valid: {problems[0]}", where=str(path))
    chat_template, chat = templates.parse(raw, path)
    seeds = cast(Seeds, {**SEEDS, **raw.get("seeds", {})})
    if seed is not None:
        seeds = cast(Seeds, dict.fromkeys(SEEDS, seed))  # as lm-eval's --seed does
    return Suite(
        name=raw["name"],
        path=path,
        tasks=tuple(
            SuiteTask(item) if isinstance(item, str) else SuiteTask(**item) for item in raw["tasks"]
        ),
        description=raw.get("description", ""),
        include_path=_include_path(raw.get("include_path"), path),
        apply_chat_template=chat_template,
        fewshot_as_multiturn=raw.get("fewshot_as_multiturn", False),
        system_instruction=raw.get("system_instruction"),
        gen_kwargs=raw.get("gen_kwargs", {}),
        seeds=seeds,
        limit=raw.get("limit") if limit is None else limit,
        chat=chat,
    )


def _include_path(value: str | None, suite: Path) -> Path | None:
    if value is None:
        return None
    own = "package:"  # the demo's tasks come with evalkit, wherever that is installed
    folder = (
        shipped_files.PACKAGE / "inputs/models/builtin" / value.removeprefix(own)
        if value.startswith(own)
        else suite.parent / value
    )
    if not folder.is_dir():
        raise EvalkitError(f"the suite's include_path '{value}' is not a folder", where=str(suite))
    return folder.resolve()


def lock_of(suite: Suite) -> Lock:
    """Return the suite's lock; EvalkitError (3) when it has none yet."""
    if not suite.lock_path.is_file():
        raise EvalkitError(
            f"suite '{suite.name}' has no lock, so its data is not pinned",
            where=str(suite.lock_path),
            fix=f"run `evalkit lock {suite.path}` once and keep the files",
            code=Exit.MISSING,
        )
    lock = read_lock(suite.lock_path)
    for member, why in lock.unlocked.items():
        raise EvalkitError(
            f"the lock of suite '{suite.name}' comes without {member}: {why}",
            where=str(suite.lock_path),
            fix=f"run `evalkit lock {suite.name}` once, where its data can be had",
            code=Exit.MISSING,
        )
    return lock


def check_name(suite: Suite, lock: Lock) -> None:
    """Raise EvalkitError for a new run of one's own suite that has a shipped one's name and is
    another: its record would be compared with the shipped lock. A record of an earlier release has
    that one's suite."""
    if suite.name not in shipped() or suite.path.resolve().parent == FOLDER.resolve():
        return
    if lock != (theirs := read_lock(FOLDER / f"{suite.name}.lock.yaml")) and not theirs.unlocked:
        raise EvalkitError(
            f"evalkit ships a suite '{suite.name}', and this one has another lock",
            where=str(suite.path),
            fix="give it a name of its own",
        )


def common_seed(seeds: Seeds) -> int | None:
    """Return the seed that a suite uses for everything; None where its seeds differ."""
    different = {seeds["random"], seeds["numpy"], seeds["torch"], seeds["fewshot"]}
    return different.pop() if len(different) == 1 else None


def identity(suite: Suite, lock: Lock) -> SuiteIdentity:
    """Return everything that the suite id covers, in the record's form."""
    return {
        "tasks": [{"task": t.task, "num_fewshot": t.num_fewshot} for t in suite.tasks],
        "limit": suite.limit,
        "apply_chat_template": suite.apply_chat_template,
        "fewshot_as_multiturn": suite.fewshot_as_multiturn,
        "system_instruction": suite.system_instruction,
        "gen_kwargs": suite.gen_kwargs,
        "seeds": suite.seeds,
        "task_files": suite.task_files(),
        "datasets": {name: {"revision": d["revision"]} for name, d in lock.datasets.items()},
        "rows": {name: task["rows"] for name, task in lock.tasks.items()},
        "scorers": scorers(lock.scorers),
        "shots": {n: t["shots"] for n, t in lock.tasks.items() if t["shots"] is not None},
        **suite.chat.identity(),
    }
