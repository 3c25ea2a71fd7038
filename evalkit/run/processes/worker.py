"""A process that answers batches: an engine with its weights loaded, and a journal of its own.

It is given a batch to answer and never looks for work itself. Each answered batch is on the disk
before the next begins, so that all that is ever lost with a worker is the batch in its hands.
`serving` makes a process of its own of it.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events, now
from evalkit.base.machine import stamp
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model
from evalkit.inputs.types import RunInputs
from evalkit.plan.batch import Batch, Policy
from evalkit.plan.shards import Costs
from evalkit.plan.store import Plan
from evalkit.record import journal, segments
from evalkit.run import telemetry
from evalkit.run.folder import Run
from evalkit.run.preparing import engines
from evalkit.run.preparing.engines import Place


class Ahead(Protocol):
    """The batches that come behind the one in hand."""

    def peek(self) -> str | None:
        """The next one's name; None where none that may be answered beside others is known now."""

    def take(self) -> None:
        """The next one is in hand now, too."""

    def done(self, batch: str, tokens: int | None) -> None:
        """A batch that was taken is answered, and what it took."""


Log = Callable[..., None]  # takes an event's name and its fields
# How a segment's level was checked: by its own worker, or by an earlier check of the same weights,
# numerics, code and kind of host.
PROBED, PROBED_BEFORE = "probed", "probed before"


def segment_name() -> str:
    """A name for a stretch of a run by this process, from now on."""
    return segments.name(now(), stamp.host())


class Worker:
    """An engine with a model's weights, loaded by the constructor. It answers a run's batches once
    its level is checked (`check`) and it has begun with the run (`begin`). `inputs` and
    `max_length` are the run's; only an engine of lm-eval's needs the latter."""

    def __init__(
        self, inputs: RunInputs, model: Model, place: Place, max_length: int | None = None
    ) -> None:
        kind = engines.of_inputs(inputs)
        self.engine = kind.load(inputs, model, place, max_length)
        self.lanes = kind.lanes(self.engine)
        self.key = kind.probe_key(self.engine, model, place)
        self.probed: dict[str, Any] | None = None  # what a check of its own took
        self._model, self._place = model, place
        self._rope_limit = architecture.rope_limit(model.config)
        self._apart: dict[int, bool] = {}  # by slots: whether batches may share them
        self._last: Batch | None = None
        self._lock = threading.Lock()  # lanes read and write one at a time

    @property
    def is_checked(self) -> bool:
        """Whether its level needs no check: nothing is shared that could be wrong, or a check of
        the same key has passed before."""
        if not self.key:
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
        self._run, self._plan, self._log = run, plan, log
        self._computed = _Computed(plan)
        policy = Policy(**plan.body["policy"])
        # Of trunks, tokens: a policy for GPUs has counted two, as a trunk is there twice when it
        # grows; a CPU's leaves room enough beside the texts' own.
        self._room = 2 * policy.max_trunk or policy.max_cache // 4
        checked = None if not self.key else PROBED if self.probed else PROBED_BEFORE
        kind, device = engines.of_inputs(run.body["inputs"]), self._place.device
        kernels = kind.kernels(self.engine, self._model, device)
        how = {"level": checked, "repeats": checked, "kernels": kernels}
        here = stamp.segment_start(kind.hardware(device))
        started = now()  # read once: a clock may be set, a host renamed or put to sleep
        self.segment = segments.name(started, here["host"])
        log("segment.start", time=started, segment=self.segment, **how, **here)
        ids = run.body["ids"]
        self._writer = journal.Writer(run.folder / "journal", ids["run"], self.segment)

    def answer(self, batch: str, lane: Any = None, ahead: Ahead | None = None) -> int | None:
        """Answer one batch, on the disk when this returns; how many tokens that took, if the engine
        tells. `lane`: one of `lanes`, each for one thread; what comes `ahead` is answered beside it
        where it may share its slots. Raises EvalkitError where the batch can't be computed or
        written, and (0) where the run has its record meanwhile: nothing may be added then."""
        engine = lane or self.lanes[0]
        read = self._read(batch)
        if ahead is None or not self._shares_slots(read):
            return self._keep(read, engine.execute(read), engine.last_split)
        tokens: list[int | None] = []

        def more(held: int) -> Batch | None:
            name = ahead.peek()
            if name is None or self._plan.entries[name]["kind"] != read.kind:
                return None
            found = self._read(name)
            if not self._may_stand_beside(found, read, held):
                return None
            ahead.take()
            return found

        def answered(one: Batch, answers: Mapping[str, Mapping[str, Any]]) -> None:
            taken = self._keep(one, answers, engine.last_split)
            if one is read:
                tokens.append(taken)
            else:
                ahead.done(one.id, taken)

        engine.together(read, more, answered)
        return tokens[0]

    def _read(self, batch: str) -> Batch:
        """A batch of the plan; the last one is remembered, which is asked for again and again."""
        with self._lock:
            if self._last is None or self._last.id != batch:
                self._last = self._plan.batch(batch)
            return self._last

    def _shares_slots(self, batch: Batch) -> bool:
        """Whether a batch may share slots: a generation at level tree whose positions do not depend
        on its neighbours."""
        if batch.settings is None or self._plan.body["level"] != "tree":
            return False
        longest = max(target.start for target in batch.targets) + batch.settings.max_gen_toks
        return self._rope_limit is None or longest <= self._rope_limit

    def _may_stand_beside(self, batch: Batch, other: Batch, held: int) -> bool:
        """Whether a batch may share the slots of another one, which hold so many tokens of trunks;
        the first time it is tried whether that changes no bit on this host. A GPU's step has as
        many rows as its batches have slots, so these must be equal there."""
        on_cpu = self.engine.device.type == "cpu"
        fits = held + 2 * (batch.trunk.length if batch.trunk else 0) <= self._room
        alike = on_cpu or batch.slots == other.slots
        if not alike or not fits or not self._shares_slots(batch):
            return False
        slots = self._plan.body["policy"]["max_slots"] if on_cpu else batch.slots
        if slots not in self._apart:
            from evalkit.engine.probe import apart

            found = self._apart[slots] = apart.holds(self.engine, slots, self.key)
            self._log("slots.shared", slots=slots, shared=found)
        return self._apart[slots]

    def _keep(
        self, batch: Batch, answers: Mapping[str, Mapping[str, Any]], split: int
    ) -> int | None:
        """Write a batch's answers to the disk; the tokens that they took."""
        if self._run.finished:
            what = "another process has finished this run meanwhile"
            raise EvalkitError(what, where=str(self._run.folder), code=Exit.OK)
        with self._lock:
            self._writer.append(batch.id, answers, split=split)
            return self._computed.by(batch.id, answers)

    def close(self) -> None:
        """Close the journal and log that this stretch is over."""
        self._writer.close()
        self._log("segment.stop", segment=self.segment)


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

    def by(self, batch: str, answers: Mapping[str, Mapping[str, Any]]) -> int | None:
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
