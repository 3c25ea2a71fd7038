"""Scores samples of tasks whose code is their own (ifeval, math, aime), in a process apart.

That code is the installed lm-eval's, each file with the digest of its release. It works on a
stranger's documents and answers, so its process has no key in its environment, can't write, reach a
network or start a program, reads only what is installed, and has limits of time and memory. Code
that evaluates texts as programs is not run at all.
"""

import ast
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evalkit.base.machine import stamp
from evalkit.harness.data import metrics
from evalkit.harness.samples import Sample
from evalkit.harness.scoring import own_code, rescore
from evalkit.harness.scoring.own_code import Refused, Unlike
from evalkit.harness.scoring.rescore import Scored
from evalkit.inputs import locked

SECONDS = 40.0  # for all of a record's tasks, and for each sample:
SECONDS_A_SAMPLE = 0.02
MEMORY = 4 << 30  # of address space, of which libraries reserve much and use little
COMMAND = (sys.executable, "-P", "-c", f"from {__name__} import serve; serve()")
_EVALUATING = {"eval", "exec", "compile", "__import__", "system", "popen", "Popen"}
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "NLTK_DATA", "XDG_CACHE_HOME")
_DENIED = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown"),
    *("os.link", "os.symlink", "os.kill", "shutil.", "ctypes.", "pickle."),
    *("webbrowser.", "urllib.", "ftplib.", "smtplib."),
)  # the beginnings of audit events


class Apart:
    """A child that scores, started when the first task asks for it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._left = SECONDS

    def task(self, name: str, recorded: Mapping[str, Any], first_doc: Any, *, chat: bool) -> "Away":
        """The task as `rescore.task` has it, in the child; Refused where it can't be scored."""
        order = {"name": name, "recorded": recorded, "first": first_doc, "chat": chat}
        told = self.ask(order)
        if "unlike" in told:
            raise Unlike(told["unlike"])
        if "refused" in told:
            raise Refused(told["refused"])
        return Away(self)

    def ask(self, message: Mapping[str, object], samples: int = 0) -> dict[str, Any]:
        """One line to the child and its answer; Refused where there is none in time."""
        self._left += samples * SECONDS_A_SAMPLE
        if self._process is None:
            environment = {k: v for k, v in os.environ.items() if k in _KEPT}
            environment |= {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=environment, cwd="/",
            )  # fmt: skip
        started = time.monotonic()
        line = self._exchanged(self._process, json.dumps(message).encode() + b"\n")
        self._left -= time.monotonic() - started
        if line is None:
            self.close()
            raise Refused("its own code took more time or memory than it may")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _exchanged(self, process: "subprocess.Popen[bytes]", data: bytes) -> bytes | None:
        """The line that comes back; None where the child ended or has had its time."""
        assert process.stdin is not None and process.stdout is not None, "pipes"
        deadline, found = time.monotonic() + max(self._left, 0.0), b""
        os.set_blocking(process.stdin.fileno(), False)
        while not found.endswith(b"\n"):
            left = deadline - time.monotonic()
            writing = [process.stdin] if data else []
            ready, free, _ = select.select([process.stdout], writing, [], max(left, 0.0))
            if not ready and not free:
                return None
            try:
                if free:
                    data = data[process.stdin.write(data[: 1 << 16]) or 0 :]
                if ready:
                    got = os.read(process.stdout.fileno(), 1 << 16)
                    found += got
                    if not got:
                        return None
            except OSError:
                return None
        return found

    def close(self) -> None:
        """End the child; another task starts a new one, within what is left of the time."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Away:
    """A task in the child, with `rescore.Task`'s `score`."""

    def __init__(self, apart: Apart) -> None:
        self._apart = apart

    def score(self, documents: Sequence[list[Sample]]) -> Iterator[Scored]:
        """What lm-eval makes of some documents; Refused where it takes too long, or varies."""
        told = self._apart.ask({"documents": list(documents)}, len(documents))
        if "refused" in told:
            raise Refused(told["refused"])
        return iter([Scored(**scored) for scored in told["scored"]])


# In the child


def serve() -> None:
    """Answer each line of stdin with a line on stdout, within this process's limits."""
    tempfile.tempdir = "/"  # libraries ask which it is, by writing into some
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    tell = _teller()
    locked = False
    task: rescore.Task | None = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "documents" in message:
            assert task is not None, "the parent asks for a task first"
            tell(_scored(task, message["documents"]))
            continue
        try:
            check_files(message["name"])
            if not locked:
                _lock()
                locked = True
            task = rescore.task(
                message["name"], message["recorded"], message["first"], chat=message["chat"],
                with_code=True,
            )  # fmt: skip
            tell({"ok": True})
        except Unlike as fields:
            tell({"unlike": str(fields)})
        except (Refused, metrics.Unpinned, ImportError, OSError) as why:
            tell({"refused": f"its own code can't be run here: {why}"})


def _teller() -> Callable[[Any], None]:
    """Writes to stdout; what the tasks' code prints goes where stderr does, which is nowhere."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr

    def tell(answer: Any) -> None:
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()

    return tell


def _scored(task: rescore.Task, documents: list[list[Sample]]) -> dict[str, object]:
    """The documents' scores, twice: what comes out by chance can't be held against a record."""
    import numpy as np

    found = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        found.append([asdict(scored) for scored in task.score(documents)])
    if json.dumps(found[0]) != json.dumps(found[1]):
        return {"refused": "its own code scores otherwise each time"}
    return {"scored": found[0]}


def check_files(name: str) -> None:
    """Refused unless all Python beside a task's functions is the release's, and evals no text."""
    code = own_code.code_in(rescore.unresolved(name))
    files = {path for found in code.values() for path in found}
    recorded, digests = stamp.harness_record()
    folder = os.path.realpath(recorded)
    for path in sorted({beside for file in files for beside in file.parent.rglob("*.py")}):
        data, name = path.read_bytes(), os.path.relpath(os.path.realpath(path), folder)
        if name not in digests or not stamp.is_recorded(data, digests[name]):
            raise Refused(f"{path.name} is not the released lm-eval's")
        if path in files and (word := text_evaluator(data)):
            raise Refused(f"{path.name} calls {word}")


def text_evaluator(data: bytes) -> str:
    """What a file calls to run a text as a program, or nothing."""
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            whose = getattr(getattr(node.func, "value", None), "id", "")
            if name in _EVALUATING and whose != "re":
                return f"{whose}.{name}".strip(".")
    return ""


def _lock() -> None:
    """From here on this process writes nothing, reaches nothing and starts nothing."""
    import datasets
    import lm_eval.api.task
    import lm_eval.tasks

    assert datasets and lm_eval.api.task and lm_eval.tasks, "what is imported now need not be later"
    roots = tuple({sys.prefix, sys.base_prefix, *(path for path in sys.path if path)})
    if words := locked.punkt():  # which nltk reads when a text is first split into sentences
        roots += (os.path.realpath(words),)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            inside = isinstance(path, int) or str(os.path.realpath(path)).startswith(roots)
            writes = bool(isinstance(mode, str) and set(mode) & set("wax+"))
            flagged = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or flagged or not inside:
                raise PermissionError(f"may not open {path}")
        elif event.startswith(_DENIED):
            raise PermissionError(f"may not {event}")

    sys.addaudithook(watch)
