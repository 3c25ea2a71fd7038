"""A worker's process: a `worker.Worker` that speaks JSON lines with its parent over stdin and
stdout, and ends when the parent does.

It is started before there is a plan: it imports, loads the weights, may check the level, and then
waits for the run's folder.
"""

import os
import queue
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalkit.base import canon, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import stamp
from evalkit.inputs.models.model import Model
from evalkit.inputs.types import RunInputs
from evalkit.plan.store import Plan
from evalkit.run import folder
from evalkit.run.preparing.engines import Place
from evalkit.run.processes.worker import Worker

BEAT_S = 1.0  # how often a worker says at most that it lives


def order(
    inputs: RunInputs, model: Model, place: Place, *, max_length: int | None, probes: bool
) -> dict[str, Any]:
    """What a parent sends `serve` first. `probes`: whether this worker is the one that checks the
    level; others wait until the parent says that it has passed."""
    adapter = str(place.adapter.absolute()) if place.adapter else None
    return {
        "inputs": inputs,
        "model": asdict(model) | {"folder": str(model.folder.absolute())},
        "device": place.device,
        "adapter": adapter,
        "max_length": max_length,
        "probes": probes,
    }


class _Parent:
    """The lines to and from the process that started this one."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever a library prints is no message
        self._lock = threading.Lock()
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.runs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.is_last = False  # after the batch in hand there is nothing more to do
        self.steps = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, **message: Any) -> None:
        try:
            with self._lock:
                self._out.write(canon.dumps(message) + "\n")
                self._out.flush()
        except OSError:
            os._exit(Exit.STOPPED)

    def log(self, event: str, **fields: Any) -> None:
        self.say(event=event, fields=fields)

    def beat(self) -> None:
        """From now on say now and then that forward passes are being made."""
        threading.Thread(target=self._beat, daemon=True).start()

    def count(self) -> None:
        self.steps += 1

    def end(self) -> None:
        self.is_last = True
        self.told.put({})
        self.runs.put({})

    def _listen(self) -> None:
        for line in sys.stdin:
            message = canon.loads(line)
            if "end" in message:
                self.end()
            elif "run" in message:  # it may come before anything else does, or long after
                self.runs.put(message)
            else:
                self.told.put(message)
        os._exit(Exit.STOPPED)  # the parent died: nobody would see what is done from now on

    def _beat(self) -> None:
        said = 0
        while True:
            time.sleep(BEAT_S)
            if self.steps != said:
                said = self.steps
                self.say(alive=said)


def serve() -> None:
    """Answer batches as the parent says, until it says that there are no more; where it says so, or
    a signal comes, within a batch, that one is the last. EvalkitErrors are told to it as well."""
    parent = _Parent()
    stopping.told(parent.end)
    try:
        _serve(parent)
    except EvalkitError as error:
        told = {"what": error.what, "where": error.where, "fix": error.fix, "code": int(error.code)}
        parent.say(error=told)
        raise


def _serve(parent: _Parent) -> None:
    given = parent.told.get()
    if "imports" in given:
        from evalkit import engine

        engine.import_all()
        given = parent.told.get()
    if not given:
        return
    model = Model(**given["model"] | {"folder": Path(given["model"]["folder"])})
    place = Place(given["device"], Path(given["adapter"]) if given["adapter"] else None)
    worker = Worker(given["inputs"], model, place, given["max_length"])
    beats = hasattr(worker.engine, "on_step")  # a class of lm-eval's does not
    if beats:
        for lane in worker.lanes:
            lane.on_step(parent.count)
        parent.beat()
    if not _check(worker, parent, probes=given["probes"]) or not (told := parent.runs.get()):
        return
    run = folder.read(Path(told["run"]))
    plan = Plan(run.folder)
    worker.begin(run, plan, parent.log)
    peak = stamp.peak_memory_bytes()
    parent.say(ready=True, beats=beats, peak=peak, lanes=len(worker.lanes))
    answer_batches(worker, list(plan.entries), parent)
    worker.close()
    if worker.key:  # to free an engine of our own part by part takes a second, and brings nothing
        os._exit(Exit.OK)


def _check(worker: Worker, parent: _Parent, *, probes: bool) -> bool:
    """See that the worker's level is checked, here or elsewhere; False where it is to end."""
    if not worker.is_checked:
        if not probes:
            parent.say(waits=worker.key)
            if not (told := parent.told.get()):
                return False
            probes = told["probes"]
        if probes:
            worker.check()
    parent.say(checked=worker.key, probed=worker.probed)
    return True


class Ahead:
    """The batches that the parent has told of and that are not in hand yet. One in which a worker
    has died is answered by itself."""

    def __init__(self, names: list[str], parent: _Parent) -> None:
        self._names, self._parent = names, parent
        self._next: dict[str, Any] | None = None
        self._is_alone = False

    def following(self) -> int | None:
        """Take the next batch, as soon as there is one; None where there is no more."""
        told = self._parent.told.get() if self._next is None else self._next
        self._next = None
        if not told or self._parent.is_last:
            return None
        self._is_alone = bool(told.get("alone"))
        return int(told["batch"])

    def peek(self) -> str | None:
        """See `worker.Ahead`."""
        if self._next is None:
            with suppress(queue.Empty):
                self._next = self._parent.told.get_nowait()
        if not self._next or self._parent.is_last or self._is_alone or self._next.get("alone"):
            return None
        return self._names[int(self._next["batch"])]

    def take(self) -> None:
        """See `worker.Ahead`."""
        self._next = None

    def done(self, batch: str, tokens: int | None) -> None:
        """See `worker.Ahead`."""
        index = self._names.index(batch)
        self._parent.say(done=index, tokens=tokens, peak=stamp.peak_memory_bytes())


def answer_batches(worker: Worker, names: list[str], parent: _Parent) -> None:
    """Answer what the parent says, until it says that there is no more; in each lane a batch."""
    ahead = Ahead(names, parent)

    def one(index: int, lane: Any, beside: Ahead | None = None) -> None:
        tokens = worker.answer(names[index], lane, beside)
        parent.say(done=index, tokens=tokens, peak=stamp.peak_memory_bytes())

    if len(worker.lanes) > 1:
        from evalkit.engine import pipeline

        return pipeline.spread(worker.lanes, ahead.following, one, parent.end)
    while (index := ahead.following()) is not None:
        one(index, worker.engine, ahead)
