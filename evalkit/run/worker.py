"""A process that answers batches: an engine with its weights loaded, and a journal of its own.

It is given a batch to answer and never looks for work itself. Each answered batch is on the disk
before the next begins, so that all that is ever lost with a worker is the batch in its hands.
`serving` makes a process of its own of it.
"""

import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit.base import stamp
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.inputs import model as models
from evalkit.inputs.engine_name import Choice
from evalkit.inputs.model import Model
from evalkit.plan.shards import Costs
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.run import prepare, telemetry
from evalkit.run.folder import Run

Log = Callable[..., None]  # takes an event's name and its fields
# How a segment's level was checked: by its own worker, or by an earlier check of the same weights,
# numerics, code and kind of host.
PROBED, PROBED_BEFORE = "probed", "probed before"


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


def engine_of(inputs: dict[str, Any]) -> Choice:
    """The engine that a run's inputs name."""
    return Choice(inputs["engine"]["name"], inputs["engine"]["args"])


class Worker:
    """An engine with a model's weights. It answers the batches of a run once its level is checked
    (`check`) and it has begun with the run (`begin`).

    `inputs`: a run's, `max_length`: its plan's, which only an engine of lm-eval's needs. The
    constructor loads the weights; EvalkitError where that can't be done.
    """

    def __init__(
        self, inputs: dict[str, Any], model: Model, place: Place, max_length: int | None = None
    ) -> None:
        self.engine = _load(inputs, model, place, max_length)
        self._foreign = bool(engine_of(inputs).foreign)
        self.lanes = [self.engine] if self._foreign else _lanes(self.engine)
        self.key = "" if self._foreign else _key(self.engine, model, place)
        self.probed: dict[str, Any] | None = None  # what a check of its own took
        self._place = place
        self._lock = threading.Lock()  # lanes read and write one at a time

    @property
    def is_checked(self) -> bool:
        """Whether its level needs no check: an engine of lm-eval's shares nothing that could be
        wrong, and what has passed before follows from the same things."""
        if self._foreign:
            return True
        from evalkit.engine.probe import outcome

        return outcome.passed_before(self.key)

    def check(self) -> None:
        """Hold the model's answers at its level against plain forward passes, and keep that they
        are the same; EvalkitError where they are not."""
        from evalkit.engine.probe import outcome, probe

        span = telemetry.Span()
        probe.check(self.engine)
        self.probed = span.taken()
        outcome.remember(self.key)

    def begin(self, run: Run, plan: Plan, log: Log) -> None:
        """Begin a stretch of a run, with a journal of its own."""
        self.segment = segment_name()
        self._run, self._plan, self._log = run, plan, log
        self._computed = _Computed(plan)
        checked = None if self._foreign else PROBED if self.probed else PROBED_BEFORE
        here = hardware(run, self._place.device)
        how = {"level": checked, "repeats": checked, "kernels": self._kernels()}
        log("segment.start", segment=self.segment, **how, **stamp.segment_start(here))
        ids = run.body["ids"]
        self._writer = journal.Writer(run.folder / "journal", ids["run"], self.segment)

    def _kernels(self) -> list[str]:
        """What computes that another host may compute by other means, in words."""
        if self._foreign:
            return []
        from evalkit.engine.hardware import kernels, sums

        more = [sums.NOTE] if sums.needed(self.engine.model.config, self._place.device) else []
        return [f"attention {kernels.told(self.engine)}", *more]

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

    here, chosen = engine.hardware(device), engine_of(run.body["inputs"])
    if not chosen.foreign:
        return here
    from evalkit.harness import classes

    return classes.hardware(chosen, here)


def _load(inputs: dict[str, Any], model: Model, place: Place, max_length: int | None) -> Any:
    """The engine that a run's inputs name, with the model's weights."""
    from evalkit import engine
    from evalkit.inputs.tokenizer import Tokenizer

    chosen, tokenizer = engine_of(inputs), Tokenizer(model)
    if not chosen.foreign:
        return engine.load(
            model, tokenizer, engine.Numerics(**inputs["numerics"]), place.device,
            level=inputs["engine"]["level"], adapter=place.adapter,
        )  # fmt: skip
    from evalkit.harness import foreign

    assert max_length is not None, "such a worker is started when there is a plan"
    return foreign.load(
        chosen, model, tokenizer, numerics=inputs["numerics"], device=place.device,
        adapter=place.adapter, max_length=max_length,
    )  # fmt: skip


def _lanes(engine: Any) -> list[Any]:
    """An engine for each device that the model lies on; the engine itself where that is one."""
    from evalkit.engine import pipeline

    first = pipeline.first_layers(engine.model)
    return pipeline.lanes(engine, pipeline.Stages(first)) if len(first) > 1 else [engine]


def _key(engine: Any, model: Model, place: Place) -> str:
    """What the outcome of a check of the level is kept by."""
    from evalkit.engine.probe import outcome

    adapter = models.resolve_adapter(place.adapter) if place.adapter else None
    return outcome.key_of(engine, model, prepare.digests(adapter), place.device)


def log_probed(level: str, events: Events, taken: dict[str, Any] | None, key: str) -> None:
    """Say and log how the level was checked: what that took, or that it had passed before. An
    engine of lm-eval's has no `key`: there is nothing to check."""
    if taken is not None:
        events.say(f"level {level} checked in {taken['seconds']:.1f} s")
        events.log("probed", **taken)
    elif key:
        events.say(f"level {level} was checked before: the same weights on the same kind of host")


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
