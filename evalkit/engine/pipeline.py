"""Several batches at once through the layer stages of a model that lies on several devices.

`device_map` alone lets one device compute while the others wait. Here as many batches are under way
as there are stages, each in a lane of its own: a thread, a stream on every GPU, so that no lane
waits for what another has given to a device, and a tree of modules that shares every weight with
the others and nothing that a forward pass changes. A stage takes one batch at a time.
Every batch is computed alone, by the same kernels in the same order as without lanes, so its bits
are the same; only when is another matter. A trunk's cache is kept by each lane for itself.
"""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from evalkit.engine.core import Engine
from evalkit.engine.hardware import clock
from evalkit.engine.hardware.clock import Clock, Mark


@dataclass(frozen=True, slots=True)
class Busy:
    """A stretch of time in which a stage computed for a lane, by its device's word (`Clock`)."""

    stage: int
    lane: int
    start: float
    end: float


def first_layers(model: Any, stages: int | None = None) -> list[int]:
    """The layer that each stage begins with: where the device changes, or of `stages` about equal
    parts."""
    layers = _layers(model)
    if stages is not None:
        assert 1 <= stages <= len(layers), "a stage has a layer"
        return [len(layers) * stage // stages for stage in range(stages)]
    devices = [next((p.device for p in layer.parameters()), None) for layer in layers]
    return [n for n, device in enumerate(devices) if n == 0 or device != devices[n - 1]] or [0]


def _layers(model: Any) -> torch.nn.ModuleList:
    """The model's decoder layers: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=torch.nn.ModuleList())


def devices(model: Any, first: list[int]) -> list[torch.device]:
    """The device that each stage computes on."""
    layers = _layers(model)
    found = [next((p.device for p in layers[at].parameters()), None) for at in first]
    return [device or torch.device("cpu") for device in found]


class Stages:
    """The stages of a model, each with at most one batch in it. With `measured`, `busy` says who
    computed in which, and when."""

    def __init__(self, first: list[int], *, measured: bool = False) -> None:
        self.first, self.measured = first, measured
        self._locks = [threading.Lock() for _ in first]
        self._marks: list[tuple[int, int, Mark, Mark]] = []
        self._clock: Clock | None = None

    @property
    def busy(self) -> list[Busy]:
        """The stretches so far; waits until the devices have come to their ends."""
        return [Busy(stage, lane, start(), end()) for stage, lane, start, end in self._marks]

    def guard(self, model: Any, lane: int) -> None:
        """Let a lane's model wait for each stage that it comes to."""
        where = devices(model, self.first)
        if self.measured and self._clock is None:
            self._clock = Clock(where)
        now = _Held(self._locks, lane, self._clock, where, self._marks)
        model.register_forward_pre_hook(lambda *_: now.move(0))
        for stage, index in enumerate(self.first[1:], 1):
            move: Callable[..., None] = _mover(now, stage)
            _layers(model)[index].register_forward_pre_hook(move)
        # also where a pass ends in an error: the other lanes go on
        model.register_forward_hook(lambda *_: now.move(None), always_call=True)


def _mover(held: "_Held", stage: int) -> Callable[..., None]:
    return lambda *_: held.move(stage)


class _Held:
    """Which stage a lane is in."""

    def __init__(
        self, locks: list[threading.Lock], lane: int, clock: Clock | None,
        where: list[torch.device], marks: list[tuple[int, int, Mark, Mark]],
    ) -> None:  # fmt: skip
        self._locks, self._lane, self._clock = locks, lane, clock
        self._where, self._marks = where, marks
        self._stage: int | None = None
        self._since: Mark | None = None

    def move(self, stage: int | None) -> None:
        """Leave the stage that the lane is in, for another or for none."""
        if self._stage is not None:
            if self._clock is not None and self._since is not None:
                end = self._clock.mark(self._where[self._stage])
                self._marks.append((self._stage, self._lane, self._since, end))
            self._locks[self._stage].release()
        if stage is not None:
            self._locks[stage].acquire()
        self._stage = stage
        if self._clock is not None and stage is not None:
            self._since = self._clock.mark(self._where[stage])


def lanes(engine: Engine, stages: Stages, count: int | None = None) -> list[Engine]:
    """Engines on one engine's weights, as many as there are stages unless `count` says otherwise;
    each is for one thread at a time. Whoever has them leaves the engine itself alone."""
    made = []
    for lane in range(count or len(stages.first)):
        model = _sharing(engine.model)
        stages.guard(model, lane)
        made.append(
            Engine(model, engine.tokenizer, str(engine.device), engine.level, engine.numerics)
        )
    return made


def _sharing(model: Any) -> Any:
    """A copy of a model's tree of modules with the same weights; what rotary embeddings remember is
    its own."""
    memory = {id(weight): weight for weight in model.parameters()}
    for module in model.modules():
        if not hasattr(module, "rope_type"):
            memory |= {id(buffer): buffer for buffer in module.buffers(recurse=False)}
    return copy.deepcopy(model, memory)


def spread(
    lanes: list[Engine], following: Callable[[], int | None],
    one: Callable[[int, Engine], None], end: Callable[[], None],
) -> None:  # fmt: skip
    """Have `one` done for each number that `following` gives, in whichever lane is free, until it
    gives None. An error in a lane calls `end`, which is to make it do so, and is raised then."""
    free: SimpleQueue[Engine] = SimpleQueue()
    under_way: list[Future[None]] = []
    own = {id(lane): clock.streams(p.device for p in lane.model.parameters()) for lane in lanes}
    for lane in lanes:
        free.put(lane)

    def work(index: int, lane: Engine) -> None:
        with clock.within(own[id(lane)]):
            one(index, lane)

    def over(done: Future[None], lane: Engine) -> None:
        if done.exception():
            end()
        free.put(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        while (index := following()) is not None:
            lane = free.get()
            under_way.append(pool.submit(work, index, lane))
            under_way[-1].add_done_callback(partial(over, lane=lane))
    for done in under_way:
        done.result()


def overlap(busy: list[Busy]) -> float:
    """The share of the time in which any stage works in which at least two do."""
    moments = sorted([(b.start, 1) for b in busy] + [(b.end, -1) for b in busy])
    some = several = 0.0
    working, before = 0, 0.0
    for moment, step in moments:
        some += (moment - before) if working >= 1 else 0.0
        several += (moment - before) if working >= 2 else 0.0
        working, before = working + step, moment
    return several / some if some else 0.0
