"""A process that answers batches: an engine with its weights loaded, and a journal of its own.

It is told which batch to answer and never looks for work itself. Each answered batch is on the disk
before the next begins, so that all that is ever lost with a worker is the batch in its hands. As a
process of its own (`serve`) it speaks JSON lines with its parent over stdin and stdout, and ends
when the parent does.
"""

import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit import canon, folder, journal, stamp, stopping, telemetry
from evalkit.choice import Choice
from evalkit.errors import EvalkitError, Exit
from evalkit.events import Events
from evalkit.folder import Run
from evalkit.model import Model
from evalkit.plan import Plan
from evalkit.shards import Costs

BEAT_S = 1.0  # how often a worker says at most that it lives
Log = Callable[..., None]  # takes an event's name and its fields


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker computes with that is this host's own: the device and an adapter's folder."""

    device: str
    adapter: Path | None = None


def segment_name() -> str:
    """A name for this process's stretch of a run: when it started, where, and a random end."""
    started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    host = "".join(c if c.isalnum() else "-" for c in os.uname().nodename)[:40].strip("-")
    return f"{started}-{host or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


def engine_of(run: Run) -> Choice:
    """The engine that a run was planned for."""
    planned = run.body["inputs"]["engine"]
    return Choice(planned["name"], planned["args"])


class Worker:
    """An engine that is ready to answer a run's batches.

    Made, it has loaded the weights and held their answers at the plan's level against plain forward
    passes; EvalkitError where it can't.
    """

    def __init__(self, run: Run, plan: Plan, model: Model, place: Place, log: Log) -> None:
        self.segment = segment_name()
        self._run, self._plan, self._log = run, plan, log
        self.engine = _load(run, plan, model, place)
        self._computed = _Computed(plan)
        here = hardware(run, place.device)
        log("segment.start", segment=self.segment, **stamp.segment_start(here))
        self.probed = _probe(self.engine) if not engine_of(run).foreign else None
        ids = run.body["ids"]
        self._writer = journal.Writer(run.folder / "journal", ids["run"], self.segment)
        self.lanes = [self.engine] if engine_of(run).foreign else _lanes(self.engine)
        self._lock = threading.Lock()  # lanes read and write one at a time

    def answer(self, batch: str, lane: Any = None) -> int | None:
        """Answer one batch, on the disk when this returns; how many tokens that took, None where
        the engine does not tell. `lane`: one of `lanes`, each of which a thread may have.

        Raises EvalkitError where the batch can't be computed or written, and (0) where the run has
        its record meanwhile: nothing may be added to what that lists.
        """
        engine = lane or self.lanes[0]
        with self._lock:
            read = self._plan.batch(batch)
        answers = engine.execute(read)
        if self._run.finished:
            what = "another process has finished this run meanwhile"
            raise EvalkitError(what, where=str(self._run.folder), code=Exit.OK)
        with self._lock:
            self._writer.append(batch, answers, split=engine.last_split)
            return self._computed.by(batch, answers)

    def close(self) -> None:
        """Close the journal and log that this stretch is over."""
        self._writer.close()
        self._log("segment.stop", segment=self.segment)


def hardware(run: Run, device: str) -> dict[str, Any]:
    """What the run's engine computes on, as `stamp` wants it."""
    from evalkit import engine

    here, chosen = engine.hardware(device), engine_of(run)
    if not chosen.foreign:
        return here
    from evalkit.harness import classes

    return classes.hardware(chosen, here)


def _load(run: Run, plan: Plan, model: Model, place: Place) -> Any:
    """The run's engine with the model's weights."""
    from evalkit import engine
    from evalkit.tokenizer import Tokenizer

    inputs, chosen, tokenizer = run.body["inputs"], engine_of(run), Tokenizer(model)
    if not chosen.foreign:
        return engine.load(
            model, tokenizer, engine.Numerics(**inputs["numerics"]), place.device,
            level=inputs["engine"]["level"], adapter=place.adapter,
        )  # fmt: skip
    from evalkit.harness import foreign

    return foreign.load(
        chosen, model, tokenizer, numerics=inputs["numerics"], device=place.device,
        adapter=place.adapter, max_length=plan.body["max_length"],
    )  # fmt: skip


def _lanes(engine: Any) -> list[Any]:
    """An engine for each device that the model lies on; the engine itself where that is one."""
    from evalkit.engine import pipeline

    first = pipeline.first_layers(engine.model)
    return pipeline.lanes(engine, pipeline.Stages(first)) if len(first) > 1 else [engine]


def _probe(engine: Any) -> dict[str, Any]:
    """Hold the loaded model's answers at the plan's level against its plain forwards, before any
    batch; what that took."""
    from evalkit.engine import probe

    span = telemetry.Span()
    probe.check(engine)
    return span.taken()


def log_probed(run: Run, events: Events, taken: dict[str, Any] | None) -> None:
    """Say and log that the level was checked. A foreign engine shares nothing that could be wrong,
    so it is not probed, and nothing was `taken`."""
    if taken is not None:
        level, seconds = run.body["inputs"]["engine"]["level"], taken["seconds"]
        events.say(f"level {level} checked in {seconds:.1f} s")
        events.log("probed", **taken)


class _Computed:
    """Counts the tokens that a worker computes, padding aside: of rows, of generations, and of each
    trunk when it is not the last batch's."""

    def __init__(self, plan: Plan) -> None:
        self._costs, self._entries = Costs(plan.body), plan.entries
        self._index = {batch: index for index, batch in enumerate(plan.entries)}
        self._kept: set[int] = set()

    def by(self, batch: str, answers: dict[str, journal.Answer]) -> int | None:
        """The tokens of a batch; None where the engine does not tell a generation's."""
        chain = set(self._costs.chain(self._index[batch]))
        before, self._kept = self._costs.tokens(chain - self._kept), chain
        written = [answer["tokens"] for answer in answers.values() if "tokens" in answer]
        if any(isinstance(tokens, dict) for tokens in written):
            return None
        return int(before + self._entries[batch]["tokens"] + sum(map(len, written)))


def added(tokens: int | None, more: int | None) -> int | None:
    """Two numbers of tokens in sum, not known where one is not."""
    return None if tokens is None or more is None else tokens + more


def order(run: Run, model: Model, place: Place) -> dict[str, Any]:
    """What a parent tells `serve` first."""
    adapter = str(place.adapter.absolute()) if place.adapter else None
    return {
        "run": str(run.folder.absolute()),
        "model": asdict(model) | {"folder": str(model.folder.absolute())},
        "device": place.device,
        "adapter": adapter,
    }


class _Parent:
    """The lines to and from the process that started this one."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever a library prints is no message
        self._lock = threading.Lock()
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.is_last = False  # after the batch in hand there is nothing more to do
        self.steps = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, **message: Any) -> None:
        """Send a message; a parent that is gone ends this process."""
        try:
            with self._lock:
                self._out.write(canon.dumps(message) + "\n")
                self._out.flush()
        except OSError:
            os._exit(Exit.STOPPED)

    def log(self, event: str, **fields: Any) -> None:
        """Send an event for the run's log."""
        self.say(event=event, fields=fields)

    def beat(self) -> None:
        """From now on say now and then that forward passes are being made."""
        threading.Thread(target=self._beat, daemon=True).start()

    def count(self) -> None:
        """A forward pass more."""
        self.steps += 1

    def end(self) -> None:
        """Let the batch in hand be the last."""
        self.is_last = True
        self.told.put({})

    def _listen(self) -> None:
        for line in sys.stdin:
            message = canon.loads(line)
            if "end" in message:
                self.end()
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
    run = folder.read(Path(given["run"]))
    model = Model(**given["model"] | {"folder": Path(given["model"]["folder"])})
    place = Place(given["device"], Path(given["adapter"]) if given["adapter"] else None)
    plan = Plan(run.folder)
    worker = Worker(run, plan, model, place, parent.log)
    beats = hasattr(worker.engine, "on_step")  # a class of lm-eval's does not
    if beats:
        for lane in worker.lanes:
            lane.on_step(parent.count)
        parent.beat()
    peak = stamp.peak_memory_bytes()
    lanes = len(worker.lanes)
    parent.say(ready=True, beats=beats, probed=worker.probed, peak=peak, lanes=lanes)
    _answer(worker, list(plan.entries), parent)
    worker.close()


def _answer(worker: Worker, names: list[str], parent: _Parent) -> None:
    """Answer what the parent says, until it says that there is no more; in each lane a batch."""

    def following() -> int | None:
        told = parent.told.get()
        return told["batch"] if told and not parent.is_last else None

    def one(index: int, lane: Any) -> None:
        tokens = worker.answer(names[index], lane)
        parent.say(done=index, tokens=tokens, peak=stamp.peak_memory_bytes())

    if len(worker.lanes) > 1:
        from evalkit.engine import pipeline

        return pipeline.spread(worker.lanes, following, one, parent.end)
    while (index := following()) is not None:
        one(index, worker.engine)
