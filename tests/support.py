"""What the tests of runs share: one finished demo run, and ways to call the command line.

`call` runs `cli.run` in this process, which saves the seconds that importing torch takes; `spawn`
runs it in a process of its own, where that is the point (signals, imports, the environment). A run
is executed once a session, and each test gets a copy of it: finished, executed or only planned.
"""

import atexit
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import settings

from evalkit.base import canon, lease, stopping
from evalkit.record import journal

ROOT = Path(__file__).resolve().parent.parent
MAIN = "import sys; sys.argv[0] = 'evalkit'; from evalkit.cli import main; main()"
steady = settings(deadline=None, derandomize=True)  # no failure by the clock or by chance
DEMO = ("--model", "demo", "--suite", "demo")
SUITE = "name: {name}\ntasks: [{tasks}]\ninclude_path: package:demo/tasks\n"


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run's folder: stdout's last line."""
        return Path(self.out.splitlines()[-1])

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("evalkit: ")]

    @property
    def traceback(self) -> str:
        """What a bug left in its file, for the message of a failing test."""
        found = re.search(r"its traceback is in (\S+)", self.err)
        return Path(found[1]).read_text() if found and Path(found[1]).is_file() else ""

    def done(self) -> "Ran":
        """Assert that it went well."""
        assert self.code == 0, f"exit code {self.code}\n{self.err}\n{self.traceback}"
        return self

    def refused(self, code: int, *words: str) -> str:
        """Assert that it ended with `code` and one line that holds the words; the line."""
        assert self.code == code, f"exit code {self.code}\n{self.err}\n{self.traceback}"
        assert "Traceback" not in self.err
        assert len(self.errors) == 1, self.err
        assert not self.out, f"stdout is for a run's folder, not for {self.out!r}"
        for word in words:
            assert word in self.errors[0], f"no {word!r} in: {self.errors[0]}"
        return self.errors[0]


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What `main` changes in its process, put back: this one goes on."""
    mask = os.umask(0o022)
    os.umask(mask)
    handlers = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    argv, environment = sys.argv, dict(os.environ)
    try:
        yield
    finally:
        os.umask(mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)


def call(*arguments: str | Path) -> Ran:
    """Run a command line in this process, batches too unless --workers says otherwise."""
    from evalkit import cli

    if "--offline" in arguments:  # the environment is read once, at the first import
        with contextlib.suppress(ModuleNotFoundError):  # a test may forbid it
            import datasets  # noqa: F401
    if arguments[0] in ("eval", "execute") and "--workers" not in arguments:
        arguments = (arguments[0], "--workers", "0", *arguments[1:])
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with _as_it_was(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["/usr/local/bin/evalkit", *map(str, arguments)]
        try:
            cli.run()
        except SystemExit as stop:
            code = stop.code
    return Ran(int(code or 0), out.getvalue(), err.getvalue())


# A test run that was started in the background has SIGINT ignored, and so would what it starts.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def start(
    *arguments: str | Path, before: str = "", env: dict[str, str] | None = None, cwd: Path = ROOT
) -> "subprocess.Popen[str]":
    """Start a command line in a process of its own; `before` is Python to run before it."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-c", f"{INTERRUPTIBLE}\n{before}\n{MAIN}", *map(os.fspath, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd,
    )  # fmt: skip


def spawn(
    *arguments: str | Path, before: str = "", env: dict[str, str] | None = None, cwd: Path = ROOT
) -> Ran:
    """Run a command line in a process of its own."""
    process = start(*arguments, before=before, env=env, cwd=cwd)
    out, err = process.communicate(timeout=280)  # of a hang, not of its speed
    return Ran(process.returncode, out, err)


@cache
def _finished() -> Path:
    """The results folder of a finished demo run, made once; never to be changed."""
    results = Path(tempfile.mkdtemp(prefix="evalkit-demo-")) / "results"
    atexit.register(shutil.rmtree, results.parent, ignore_errors=True)
    call("eval", *DEMO, "--out", results).done()
    return results


def finished(folder: Path) -> Path:
    """A finished demo run of the test's own: its folder under `folder`/results/demo."""
    shutil.copytree(_finished(), folder / "results")
    (run,) = (folder / "results" / "demo").glob("demo-*")
    return run


def lock(folder: Path, pid: int, *, seen: bool = True) -> Path:
    """The lock of another process; of one that can't be seen from here, if not `seen`."""
    owner = replace(lease.this_process("another"), pid=pid, started="")
    if not seen:
        owner = replace(owner, host="elsewhere", seen_from="another boot")
    text = canon.dumps({"beat": 0, "owner": owner.to_json()})
    (folder / ".lock").write_text(text)
    return folder / ".lock"


def executed(folder: Path) -> Path:
    """A demo run whose every batch is answered, but without a record."""
    run = finished(folder)
    for name in ("record.json", "results.json", "samples.jsonl.gz"):
        (run / name).unlink()
    (folder / "results" / "audit.jsonl").unlink()
    return run


def planned(folder: Path) -> Path:
    """A demo run that is planned and not begun."""
    run = executed(folder)
    for name in ("journal", "events"):
        shutil.rmtree(run / name)
    return run


def journal_file(run: Path) -> Path:
    """The journal of a run that one process executed."""
    (path,) = (run / "journal").glob("*.jsonl")
    return path


def read_journal(run: Path) -> journal.Journal:
    """A run's journal as evalkit reads it."""
    plan, body = json.loads((run / "plan.json").read_text()), read(run, "run.json")
    return journal.read(run / "journal", body["ids"]["run"], {b["id"] for b in plan["batches"]})


def digests(run: Path) -> dict[str, str]:
    """The answers map of a run, from its journal alone."""
    return journal.digests(journal.assemble(read_journal(run).answers()))


def answers_id(run: Path) -> str:
    """The answers id of a run, from its journal alone."""
    return canon.digest(digests(run))


@cache
def demo_answers() -> dict[str, str]:
    """The answers map that every demo run must have."""
    (run,) = (_finished() / "demo").glob("demo-*")
    found: dict[str, str] = read(run)["answers"]
    return found


def read(run: Path, name: str = "record.json") -> Any:
    """A JSON file of a run."""
    return json.loads((run / name).read_text())


def num_batches(run: Path) -> int:
    """How many batches a run's plan has."""
    return len(read(run, "plan.json")["batches"])


def write(run: Path, record: Any) -> None:
    """Put a changed record.json into a run's folder."""
    (run / "record.json").write_text(json.dumps(record))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, compressed ones as text."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        found[path.relative_to(folder).as_posix()] = data
    return found


def suite(folder: Path, name: str, tasks: list[str], extra: str = "") -> Path:
    """A suite of some of the demo's tasks, with its lock, in `folder`."""
    path = folder / f"{name}.yaml"
    path.write_text(SUITE.format(name=name, tasks=", ".join(tasks)) + extra)
    lock_part("demo", name, tasks, path.with_name(f"{name}.lock.yaml"))
    return path


def lock_part(shipped: str, name: str, tasks: list[str], path: Path) -> None:
    """Write the lock, and its single rows, of a suite `name` of some of a shipped one's tasks."""
    from evalkit.inputs import suite as suites

    lock = suites.read_lock(suites.FOLDER / f"{shipped}.lock.yaml")
    leaves = [leaf for task in tasks for leaf in lock.groups.get(task, [task])]
    used = {lock.tasks[leaf]["dataset"] for leaf in leaves}
    replace(
        lock,
        suite=name,
        groups={task: lock.groups[task] for task in tasks if task in lock.groups},
        group_scores={n: lock.group_scores[n] for n in tasks if n in lock.group_scores},
        tasks={leaf: lock.tasks[leaf] for leaf in leaves},
        datasets={key: item for key, item in lock.datasets.items() if key in used},
        each={leaf: lock.each[leaf] for leaf in leaves},
    ).write(path)
