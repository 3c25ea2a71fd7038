"""The workers of one host, a process each: they are given batches, watched, and started again.

Who answers which batch changes no answer, so work goes to whoever is free: whole trunks first, the
most expensive first, and at the end half of what the busiest still has. A worker knows of one batch
more than it computes and the rest stays here, so one that dies takes nothing with it.
"""

import selectors
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events, Phase
from evalkit.base.machine import stamp
from evalkit.base.stopping import Stop
from evalkit.inputs.models.model import Model
from evalkit.plan.shards import Costs, Piece, Prompts
from evalkit.plan.store import Plan
from evalkit.run import telemetry
from evalkit.run.folder import Run
from evalkit.run.preparing.engines import Place
from evalkit.run.processes import child, worker
from evalkit.run.processes.child import Child
from evalkit.run.processes.template import Template

RESTARTS = 3  # of one worker; and so many deaths of workers in one batch leave it out
WATCHDOG_S = 1800.0  # without one forward pass in a batch: a worker hangs
LOADING_S = 4 * 3600.0  # until it is ready: weights may lie far away
AHEAD = 1  # batches that a worker knows of besides those that it computes
POLL_S = 0.2


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker's place and, while it lives, its process. `sent`: the batches that it knows of;
    `piece`: those that it will be given next; `seen`: when it last showed a sign of life."""

    index: int
    place: Place
    child: Child | None = None
    sent: deque[int] = field(default_factory=deque)
    piece: deque[int] = field(default_factory=deque)
    lanes: int = 1  # batches that it computes at once
    waits: str = ""  # the key of the check that it waits for
    probes: bool = False
    is_ready: bool = False
    beats: bool = False
    ending: bool = False
    seen: float = 0.0
    deaths: int = 0
    peak: int = 0
    error: EvalkitError | None = None
    last_words: str = ""


class Workers:
    """Workers at these places, for one run's plan. `early`: those that were started before there
    was a plan, which are taken over; others are forked from a `template`, where there is one.
    `check` is called again and again and may raise: whether this process may still go on."""

    def __init__(
        self, run: Run, plan: Plan, model: Model, places: list[Place], events: Events,
        check: Callable[[], None], early: list[Child], template: Template | None,
    ) -> None:  # fmt: skip
        self._template = template
        self._run, self._model, self._events, self._check = run, model, events, check
        self._early, self._max_length = early, plan.body["max_length"]
        self._costs, self.batches = Costs(plan.body), plan.body["batches"]
        self._prompts = Prompts(plan.body)
        self._workers = [_Worker(index, place) for index, place in enumerate(places)]
        self._selector = selectors.DefaultSelector()
        self._queue: deque[Piece] = deque()
        self._todo = 0
        self._left: set[int] = set()
        self._passed: set[str] = set()  # keys of checks of the level
        self._deaths: Counter[int] = Counter()  # of workers, by the batch that they computed
        self._suspect: set[int] = set()  # in hand when a worker died: each is answered by itself
        self._ready: Callable[[], None] = lambda: None
        self._phase: Phase | None = None
        self.tokens: int | None = 0
        self.span = telemetry.Span()  # since batches are computed

    def work(
        self, todo: list[int], stop: Stop, describe: Callable[[], None], before: int = 0
    ) -> None:
        """Answer these batches, `before` which so many tokens were done; `describe` is called once,
        when the workers are started. Raises EvalkitError where a worker says that it can't, and
        (75) where workers died too often; KeyboardInterrupt where `stop` was asked."""
        self._todo, self._left = len(todo), set(todo)
        self._queue = deque(self._costs.pieces(todo))
        total = before + sum(self.batches[index]["cost"] for index in todo)
        try:
            with self._events.phase("start", len(self._workers), "workers") as phase:
                self._ready = lambda: phase.advance(1)
                for one in self._workers:
                    self._start(one)
                describe()  # while they load, and before there is an answer
                while self._is_busy(stop) and not any(one.is_ready for one in self._workers):
                    self._step(stop)
            self.span = telemetry.Span()
            with self._events.phase("execute", total, "tokens", before) as self._phase:
                while self._is_busy(stop):
                    self._step(stop)
        finally:
            self._end_all()
        stop.check()
        if self._left:
            raise self._unfinished()

    @property
    def peak_bytes(self) -> int:
        """The most memory of each worker's place, in sum."""
        return sum(one.peak for one in self._workers)

    def _is_busy(self, stop: Stop) -> bool:
        """Whether there is a worker to wait for. Who is free is given work, or told to end."""
        self._settle_checks()
        for one in self._workers:
            if one.child and one.is_ready and not one.ending:
                self._feed(one, one.child, stop)
            elif one.child and not one.is_ready and (stop.asked or not self._left):
                one.child.kill()  # what it loads is for nothing
        return any(one.child for one in self._workers)

    def _settle_checks(self) -> None:
        """Let one of the workers that wait for the same check do it, and then all go on."""
        for one in self._workers:
            if one.child is None or not one.waits:
                continue
            passed = one.waits in self._passed
            if passed or not any(other.probes for other in self._workers if other.child):
                one.child.tell(probes=not passed)
                one.waits, one.probes = "", not passed

    def _feed(self, one: _Worker, child: Child, stop: Stop) -> None:
        while (len(one.sent) < one.lanes + AHEAD or self._lacks_prompts(one)) and not stop.asked:
            if not one.piece:
                one.piece.extend(self._next_piece())
            if not one.piece:
                break
            if not one.sent:
                one.seen = time.monotonic()  # what it was silent before was no batch
            one.sent.append(one.piece.popleft())
            child.tell(batch=one.sent[-1], alone=one.sent[-1] in self._suspect)
        # what another has may still come back, if that one dies
        if stop.asked or not any(other.sent or other.piece for other in self._workers):
            one.ending = True
            child.tell(end=True)

    def _lacks_prompts(self, one: _Worker) -> bool:
        """Whether a worker whose batches may share slots knows of too few prompts to fill them."""
        alive = sum(1 for other in self._workers if other.child)
        return one.lanes == 1 and self._prompts.are_few(one.sent, self._left, alive)

    def _next_piece(self) -> Piece:
        """Return the most expensive piece that is left, else half of the busiest worker's."""
        if self._queue:
            return self._queue.popleft()
        busiest = max(self._workers, key=lambda one: self._costs.of(one.piece))
        if len(busiest.piece) < 2:
            return [busiest.piece.pop()] if busiest.piece else []
        kept, given = self._costs.halved(list(busiest.piece))
        busiest.piece = deque(kept)
        return given

    def _start(self, one: _Worker) -> None:
        found = next((each for each in self._early if each.place == one.place), None)
        if found is None:
            inputs = self._run.body["inputs"]
            given = (inputs, self._model, one.place, self._max_length)
            found = child.started(*given, template=self._template)
        else:
            self._early.remove(found)
        one.child, one.probes, one.waits = found, found.probes, ""
        found.tell(run=str(self._run.folder.absolute()))
        one.is_ready, one.beats, one.ending, one.error = False, False, False, None
        one.seen = time.monotonic()
        self._selector.register(found.stdout, selectors.EVENT_READ, one)
        self._selector.register(found.stderr, selectors.EVENT_READ, one)

    def _step(self, stop: Stop) -> None:
        """Take in what workers say, for a moment; kill those that hang."""
        self._check()
        for key, _ in self._selector.select(POLL_S):
            one: _Worker = key.data
            if one.child is None:
                continue  # it ended with what was read before this
            if key.fileobj is one.child.stderr:
                if not one.child.listen():
                    self._selector.unregister(key.fileobj)
                continue
            said = one.child.messages()
            if said is None:
                self._ended(one, self._let_go(one, one.child), stop)
            for message in said or []:
                self._hear(one, message)
        for one in self._workers:
            limit = WATCHDOG_S if one.is_ready else LOADING_S
            watched = (one.beats and one.sent) or not one.is_ready
            if one.child and watched and time.monotonic() - one.seen > limit:
                one.seen = time.monotonic()  # killed once
                self._events.say(f"worker {one.index + 1} hangs, {limit:.0f} s: it is killed")
                self._events.log("worker.hung", worker=one.index)
                one.child.kill()

    def _hear(self, one: _Worker, message: dict[str, Any]) -> None:
        one.seen = time.monotonic()
        one.peak = max(one.peak, message.get("peak", 0))
        if "event" in message:
            self._events.log(message["event"], **message["fields"])
        elif "waits" in message:
            one.waits = message["waits"]
        elif "checked" in message:
            self._checked(one, message["checked"], message["probed"])
        elif "ready" in message:
            one.is_ready, one.beats, one.lanes = True, message["beats"], message.get("lanes", 1)
            self._ready()
        elif "done" in message:
            self._done(one, message["done"], message["tokens"])
        elif "error" in message:
            told = message["error"]
            one.error = EvalkitError(**told | {"code": Exit(told["code"])})

    def _checked(self, one: _Worker, key: str, taken: dict[str, Any] | None) -> None:
        if not self._passed or taken:
            level = self._run.body["inputs"]["engine"]["level"]
            worker.log_probed(level, self._events, taken, key)
        self._passed.add(key)
        one.probes = False

    def _done(self, one: _Worker, index: int, tokens: int | None) -> None:
        one.sent.remove(index)
        self._left.discard(index)
        self.tokens = worker.added(self.tokens, tokens)
        assert self._phase is not None, "work is given in the phase that counts it"
        note = f"batch {self._todo - len(self._left)}/{self._todo}"  # as a process alone says it
        self._phase.advance(self.batches[index]["cost"], note)

    def _ended(self, one: _Worker, returned: int, stop: Stop) -> None:
        """A worker's process is over: as it was told, by an error, or it died."""
        if (one.ending and not returned) or (one.error is None and (stop.asked or not self._left)):
            return
        if one.error is None:
            self._died(one, returned)
            return
        if one.is_ready or not any(other.is_ready for other in self._workers):
            raise one.error
        self._events.say(f"worker {one.index + 1} can't start and is left out: {one.error}")

    def _died(self, one: _Worker, returned: int) -> None:
        """Start a worker again, at most `RESTARTS` times; its batches are anybody's meanwhile."""
        one.deaths += 1
        if one.sent:
            self._deaths[one.sent[0]] += 1
            self._suspect.update(one.sent)
        piece = [b for b in (*one.sent, *one.piece) if self._deaths[b] < RESTARTS]
        one.sent.clear()
        one.piece.clear()
        if piece:
            self._queue.appendleft(piece)
        again = one.deaths <= RESTARTS
        last = stamp.without_paths(one.last_words)
        self._events.log("worker.died", worker=one.index, returned=returned, last=last)
        words = ": ".join(filter(None, (child.how(returned), one.last_words)))
        how = f"worker {one.index + 1} died ({words})"
        self._events.say(f"{how}; it is started again" if again else f"{how} once too often")
        if again:
            self._start(one)

    def _unfinished(self) -> EvalkitError:
        fatal = sum(self._deaths[index] >= RESTARTS for index in self._left)
        return EvalkitError(
            f"workers died too often: {len(self._left)} batches have no answer"
            + (f", and in {fatal} of them each worker died" if fatal else ""),
            where=str(self._run.folder),
            fix="what is done is kept, and the same command continues; is memory too short for so"
            " many (--workers N)?",
            code=Exit.STOPPED,
        )

    def _let_go(self, one: _Worker, child: Child) -> int:
        """Wait for a process that has ended or been killed; what it returned."""
        for stream in (child.stdout, child.stderr):
            if stream.fileno() in self._selector.get_map():
                self._selector.unregister(stream)
        returned = child.ended()
        one.child, one.last_words = None, child.last_words
        return returned

    def _end_all(self) -> None:
        """Leave no process behind, whatever happened."""
        for one in self._workers:
            if one.child is not None:
                one.child.kill()
                self._let_go(one, one.child)
        self._selector.close()
