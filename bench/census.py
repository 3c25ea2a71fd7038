"""`make census`: what becomes of every task that lm-eval registers, without its data.

    python -m bench.census [--tasks N] [--workers 2] [--seconds 20]

Each is loaded, described as a lock does and planned with two documents, by the functions that
`evalkit lock` and `evalkit plan` use. Its rows are invented (`bench.invented`): a task whose code
can't work with any of them is counted with the step that it reached. Nothing is fetched: in the
workers every connection is refused. What is known of a task is kept, so a stopped command goes on
where it was; the order is drawn, so the first N are a fair sample.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import ROOT, data, invented, report_census, tables
from bench.report_census import Found
from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.inputs.suite import Suite, SuiteTask

PAGE = ROOT / "docs" / "tasks.md"
CHUNK, TURNS = 50, 40  # tasks in a worker's turn, turns before workers are made anew
# What stands in fields of which nothing is known: a number in text, ...
FILLERS: tuple[Any, ...] = (None, "A", 0, ["A", "B", "C", "D"], "['A', 'B', 'C', 'D']", "A _ B.")
DOCUMENTS, CONTEXT = 2, 1 << 17
# What a task's code raises for rows of a shape that it does not expect; `named`'s words.
MISFIT = re.compile(
    r"can't be built: (?!ModuleNotFoundError|ImportError|SystemExit)\w+:(?!.*[Ii]nstall)"
    r"|nothing is left to score|empty continuation"
)
LACKING = re.compile(r"KeyError: '([^']+)'$")  # a field that no template or function names in full


class _Late(BaseException):
    """The time of a task is up; nothing that a task does may catch it."""


class Census:
    """Tries tasks, one at a time, in a process that has no network."""

    def __init__(self, seconds: float) -> None:
        import datasets
        from lm_eval.api import task as tasks

        from evalkit.harness import index
        from evalkit.harness import tasks as harness
        from evalkit.harness.data import metrics
        from evalkit.inputs.models import model
        from evalkit.inputs.models.tokenizer import Tokenizer

        self._seconds, self._task, self._step = seconds, None, ""
        self._lacking, self._metrics = set[str](), set[str]()
        self._load, metrics.load = metrics.load, self._metric
        datasets.Dataset.filter = invented.some_left(datasets.Dataset.filter)  # type: ignore[method-assign]
        self._tokenizer = Tokenizer(model.resolve("demo"))
        self._tokenizer.max_length = CONTEXT
        with index.kept_index():
            manager = harness._manager(Suite("census", ROOT / "census.yaml", (SuiteTask("x"),)))
        harness._manager = lambda suite: manager  # made once, and not for each task
        for kind in (tasks.Task, tasks.ConfigurableTask):
            kind.download = self._noting(kind.download)  # type: ignore[method-assign]
        signal.signal(signal.SIGALRM, self._late)

    def _noting(self, download: Any) -> Any:
        def noted(task: Any, *arguments: Any, **named: Any) -> Any:
            self._task, self._step = task, "data"
            return download(task, *arguments, **named)

        return noted

    def _metric(self, name: str, *given: Any, **named: Any) -> Any:
        """In the place of a metric that lm-eval would fetch from the Hub, and run: evalkit's."""
        metric = self._load(name, *given, **named)
        self._metrics.add(name)
        return metric

    def _late(self, *_: Any) -> None:
        raise _Late

    def tried(self, name: str) -> Found:
        """What becomes of a task, with the rows that bring it furthest."""
        found: list[Found] = []
        fillers, self._lacking = list(FILLERS), set()
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        try:
            while fillers:
                found.append(self._once(name, fillers[0]))
                if not found[-1]["misfit"]:
                    break
                lacking = LACKING.search(found[-1]["what"])
                if lacking is None or lacking[1] in self._lacking or len(found) > 40:
                    fillers.pop(0)
                else:
                    self._lacking.add(lacking[1])
        except _Late:
            found = [{"step": self._step, "what": f"took longer than {self._seconds:g} s"}]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return {"task": name, **found[-1 if not found[-1].get("misfit") else 0]}

    def _once(self, name: str, filler: Any) -> Found:
        self._task, self._step = None, "config"
        self._metrics.clear()
        try:
            requests = self._planned(name, filler)
        except EvalkitError as error:
            misfit = self._step in ("data", "rows") and bool(MISFIT.search(error.what))
            return {"step": self._step, "what": error.what, "misfit": misfit}
        except (Exception, SystemExit) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return {
                "step": self._step, "misfit": False, "fault": True,
                "what": f"{type(error).__name__}: {str(error)[:200]}",
                "where": f"{Path(last.filename).name}:{last.lineno}",
            }  # fmt: skip
        return {"step": "planned", "what": "", "misfit": False, "requests": requests,
                "metrics": sorted(self._metrics)}  # fmt: skip

    def _planned(self, name: str, filler: Any) -> int:
        import datasets

        from evalkit.harness import tasks
        from evalkit.harness.asking import requests as building
        from evalkit.harness.data import loading
        from evalkit.plan import store
        from evalkit.plan.tokenise import tokenise

        suite = Suite("census", ROOT / "census.yaml", (SuiteTask(name),), limit=DOCUMENTS)
        original = datasets.load_dataset
        datasets.load_dataset = lambda *_, **given: invented.tables(
            self._task, self._lacking, filler, given.get("split")
        )
        try:
            loaded = tasks.load(suite, loading.Pins({}, resolve=lambda repo: "0" * 40))
        finally:
            datasets.load_dataset = original
        self._step = "rows"
        requests = building.build(loaded)
        tokenised = tokenise(requests, self._tokenizer)
        self._step = "requests"
        store.build(
            tokenised, store.Policy(), level="tree", suite_id="", tokenizer={},
            max_length=CONTEXT,
        )  # fmt: skip
        return len(requests)


_CENSUS: list[Census] = []  # of this worker


def _start(seconds: float) -> None:
    """Make a worker ready: no network, whatever a task's code tries."""

    def refused(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError("the census has no network")

    socket.socket.connect = refused  # type: ignore[method-assign]
    socket.getaddrinfo = refused
    _CENSUS.append(Census(seconds))


def _turn(names: list[str]) -> list[Found]:
    return [_CENSUS[0].tried(name) for name in names]


def registered() -> list[str]:
    """The names of lm-eval's tasks, in a drawn order that is always the same."""
    from lm_eval.tasks import TaskManager

    from evalkit.harness import index

    with index.kept_index():
        names = TaskManager().all_subtasks
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def census(names: list[str], path: Path, workers: int, seconds: float) -> dict[str, Found]:
    """What becomes of each task; what `path` has of them is not tried again."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    known = {each["task"]: each for each in map(json.loads, lines)}
    left = [name for name in names if name not in known]
    turns = [left[start : start + CHUNK] for start in range(0, len(left), CHUNK)]
    kept, started = canon.Appender(path), time.monotonic()
    for first in range(0, len(turns), TURNS):  # then new workers: modules of tasks stay in memory
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start, initargs=(seconds,)
        ) as pool:
            for found in pool.map(_turn, turns[first : first + TURNS]):
                for each in found:
                    kept.append(each, sync=False)
                    known[each["task"]] = each
        spent = time.monotonic() - started
        print(f"{len(known):,} of {len(names):,} in {spent:.0f} s", file=sys.stderr)
    return {name: known[name] for name in names}


def _code() -> str:
    """Which lm-eval and which code of ours it is that tries."""
    files = [
        *sorted((ROOT / "evalkit").rglob("*.py")),
        *(Path(__file__).with_name(name) for name in ("census.py", "invented.py", "reads.py")),
    ]
    digests = [canon.sha256_file(path) for path in files]
    return canon.digest([stamp.version("lm_eval"), digests])[7:23]


def main() -> None:
    """Try what was not tried yet, then print the table and put it into docs/tasks.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, help="only that many, drawn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="a task's time")
    given = parser.parse_args()
    home = data.cache() / "census"
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "TQDM_DISABLE": "1",
                   "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    every = registered()
    path = home / f"{_code()}.jsonl"
    found = census(every[: given.tasks], path, given.workers, given.seconds)
    print(text := report_census.table(found, len(every)))
    tables.write("census", text, PAGE)


if __name__ == "__main__":
    main()
