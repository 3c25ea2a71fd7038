"""Runs to be shot at: a suite of many short batches, commands in processes of their own, and what
an uninterrupted run answers.

A fault hits at a moment: after a time, or once the run says that it is in a phase. Whatever it was,
the run is then continued by the same command to the uninterrupted run's answers id.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import support
import yaml

from evalkit.base import canon
from evalkit.judge.verify import verify
from evalkit.record import auditlog

PHASES = ("prepare", "load", "build", "start", "execute", "score")
WORDS = models.COMMON[:120]
KIND = dict[str, Any]
Tell = Callable[[str, str, int], None]  # what the fixture of that name is


def write_suite(folder: Path, name: str = "fire", tasks: int = 6, documents: int = 12) -> Path:
    """A suite of three kinds of tasks, `tasks` of each but a third of whole texts, and its lock."""
    source = random.Random(7)
    own = folder / "tasks"
    own.mkdir(parents=True)
    names = []
    for kind, number in (("choice", tasks), ("text", tasks), ("whole", max(1, tasks // 3))):
        for index in range(number):
            names.append(f"{name}_{kind}_{index}")
            _write_task(own, names[-1], _CONFIGS[kind], source, documents)
    path = folder / f"{name}.yaml"
    body = {"name": name, "tasks": names, "include_path": "tasks"}
    path.write_text(yaml.safe_dump(body))
    support.call("lock", path, "--offline").done()
    return path


def _write_task(
    folder: Path, name: str, config: KIND, source: random.Random, documents: int
) -> None:
    def words(least: int, most: int) -> str:
        return " ".join(source.choices(WORDS, k=source.randint(least, most)))

    lines = [
        {
            "q": words(5, 25),
            "choices": [words(1, 6) for _ in range(4)],
            "label": source.randrange(4),
        }
        for _ in range(documents)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    body = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "description": f"{words(40, 60)}\n\n",
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(body))


_CONFIGS: dict[str, KIND] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
    },
    "text": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 48},
        "metric_list": [{"metric": "exact_match"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}} {{choices[1]}}",
        "description": "",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@dataclass
class Fire:
    """A suite, a model, and the answers that every run of the two must have; `seconds` is what an
    uninterrupted run takes, `batches` what it has."""

    model: Path
    suite: Path
    answers: str
    seconds: float
    batches: int

    def given(self, out: Path) -> tuple[str, ...]:
        """The options that say what a run is."""
        return tuple(map(os.fspath, ("--model", self.model, "--suite", self.suite, "--out", out)))

    def command(self, out: Path, *more: str, workers: int = 1) -> tuple[str, ...]:
        """The command line of a run."""
        return ("eval", *self.given(out), "--workers", str(workers), *more)

    def planned(self, out: Path) -> Path:
        """The folder of a planned run."""
        return support.call("plan", *self.given(out)).done().folder

    def continued(self, out: Path) -> support.Ran:
        """Run the same command to its end, in this process, which saves the seconds that importing
        torch takes, and hold the record against the uninterrupted run's."""
        ran = support.call("eval", *self.given(out)).done()
        self.hold(ran.folder)
        return ran

    def hold(self, folder: Path) -> dict[str, Any]:
        """Assert that a finished run's record is whole, has the answers, and is in the audit log;
        the record."""
        record: dict[str, Any] = support.read(folder)
        assert record["ids"]["answers"] == self.answers
        report = verify(folder)
        assert report.consistent, report.lines()
        out = folder.parent.parent
        assert auditlog.broken_at(out / auditlog.NAME) is None
        assert auditlog.has_finished(out, record["execution"])
        return record


def make(folder: Path, **suite: Any) -> Fire:
    """A suite with its model, run once without a fault."""
    path = write_suite(folder, **suite)
    model = models.tiny(
        folder / "model", hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        max_length=1024,
    )  # fmt: skip
    fire = Fire(model, path, "", 0.0, 0)
    started = time.monotonic()
    ran = support.spawn(*fire.command(folder / "quiet", workers=2)).done()
    fire.seconds = time.monotonic() - started
    fire.answers = support.read(ran.folder)["ids"]["answers"]
    fire.batches = support.num_batches(ran.folder)
    return fire


@dataclass
class Shot:
    """A process under fire: what it says on stderr, as it comes."""

    process: "subprocess.Popen[bytes]"
    log: Path
    session: int = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.process.pid  # it is the leader of its own

    @property
    def said(self) -> str:
        """All that it has said so far."""
        return self.log.read_text("utf-8", errors="replace")

    @property
    def phase(self) -> str:
        """The phase that it says it is in."""
        told = [line for line in self.said.splitlines() if line.startswith("{") and "phase" in line]
        try:
            return str(json.loads(told[-1])["phase"]) if told else "import"
        except ValueError:  # torn
            return str(json.loads(told[-2])["phase"]) if len(told) > 1 else "import"

    def wait_for(self, what: Callable[[str], bool], timeout_s: float = 60.0) -> None:
        """Wait until what it has said is so, or it has ended."""
        deadline = time.monotonic() + timeout_s
        while not what(self.said) and self.process.poll() is None:
            assert time.monotonic() < deadline, f"it never came to that:\n{self.said}"
            time.sleep(0.01)

    def workers(self) -> list[int]:
        """Its workers that live."""
        return [pid for pid in _session(self.session) if pid != self.process.pid]

    def end(self, timeout_s: float = 90.0) -> int:
        """Wait for its end, and see that no worker outlives it by more than a moment."""
        returned = self.process.wait(timeout_s)
        deadline = time.monotonic() + 15
        while self.workers():
            assert time.monotonic() < deadline, f"workers {self.workers()} outlive their parent"
            time.sleep(0.05)
        return returned


def _session(number: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def start(
    command: tuple[str, ...], log: Path, *, before: str = "", env: dict[str, str] | None = None
) -> Shot:
    """Start a command line as a session of its own; `before` is Python to run before it."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(support.ROOT), **(env or {})}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{support.INTERRUPTIBLE}\n{before}\n{support.MAIN}", *command],
            stdout=subprocess.DEVNULL, stderr=said, env=environment, cwd=support.ROOT,
            start_new_session=True,
        )  # fmt: skip
    return Shot(process, log)


def inject(folder: Path, code: str) -> dict[str, str]:
    """An environment in which every Python process of a run, its workers too, runs `code` first."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([os.fspath(folder), os.fspath(support.ROOT)])}


def slow(folder: Path, seconds: float) -> dict[str, str]:
    """An environment in which each batch takes so much longer."""
    return inject(folder, SLOW.format(seconds=seconds))


SLOW = """
import time
from evalkit.run.processes import worker
keep = worker.Worker._keep
def slow(self, *given):
    time.sleep({seconds})
    return keep(self, *given)
worker.Worker._keep = slow
"""


def lines(folder: Path) -> list[bytes]:
    """Every line of a run's journal."""
    return [
        line
        for path in sorted((folder / "journal").glob("*.jsonl"))
        for line in path.read_bytes().splitlines(keepends=True)
    ]


def journal_id(folder: Path) -> str:
    """The answers id that follows from a run's journal."""
    return canon.digest(support.digests(folder))


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a process a signal; whether it was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
