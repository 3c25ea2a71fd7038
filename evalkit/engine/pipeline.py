"""Runs several batches at once through the layer stages of a model that lies on several devices.

With `device_map` alone one device computes while the others wait. Here as many batches run as there
are stages, each in its own lane. A lane is a thread with a stream on every GPU, so that no lane
waits for the work of another, and a tree of modules that shares all weights with the other lanes
but nothing that a forward pass changes. A stage computes for one lane at a time.

Each batch is computed alone, by the same kernels in the same order as without lanes, so its bits
are the same; only the time differs. Each lane keeps the cache of its own last trunk.
"""

import copy
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from evalkit.engine.core import Engine

Mark = Callable[[], float]  # returns the moment in seconds, once the work is done


class Clock:
    """Marks moments in the work of devices, in seconds of the monotonic clock.

    The host only queues work for a GPU, so the moment comes from an event in the GPU's stream. A
    CPU computes while it is called, so there the host's clock is right.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._bases: dict[torch.device, tuple[float, Any]] = {}
        for device in dict.fromkeys(devices):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                self._bases[device] = (time.monotonic(), _event(device))

    def mark(self, device: torch.device) -> Mark:
        """Mark the moment when a device has done all the work that it was given so far."""
        if device not in self._bases:
            now = time.monotonic()
            return lambda: now
        begin, base = self._bases[device]
        event = _event(device)

        def moment() -> float:
            event.synchronize()
            return begin + float(base.elapsed_time(event)) / 1000

        return moment


def _event(device: torch.device) -> Any:
    untyped: Any = torch.cuda
    event = untyped.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def streams(devices: Iterable[torch.device]) -> list[Any]:
    """Return a new stream on each GPU among the devices, once their work so far is done."""
    untyped: Any = torch.cuda
    gpus = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
    for device in gpus:
        torch.cuda.synchronize(device)
    return [untyped.Stream(device) for device in gpus]


@contextmanager
def using(streams: Iterable[Any]) -> Iterator[None]:
    """Send this thread's GPU work to these streams until the end of the block."""
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(torch.cuda.stream(stream))
        yield


@dataclass(frozen=True, slots=True)
class Busy:
    """The time in which a stage computed for a lane, as the device's `Clock` measured it."""

    stage: int
    lane: int
    start: float
    end: float


def first_layers(model: Any, stages: int | None = None) -> list[int]:
    """Return the index of each stage's first layer. A stage begins where the device changes; with
    `stages`, the layers are cut into that many parts of about equal size."""
    layers = layers_of(model)
    if stages is not None:
        assert 1 <= stages <= len(layers), "a stage has a layer"
        return [len(layers) * stage // stages for stage in range(stages)]
    devices = [next((p.device for p in layer.parameters()), None) for layer in layers]
    return [n for n, device in enumerate(devices) if n == 0 or device != devices[n - 1]] or [0]


def layers_of(model: Any) -> torch.nn.ModuleList:
    """Return the model's decoder layers: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=torch.nn.ModuleList())


def devices(model: Any, first: list[int]) -> list[torch.device]:
    """Return the device that each stage computes on."""
    layers, cpu = layers_of(model), torch.device("cpu")
    return [next((p.device for p in layers[index].parameters()), cpu) for index in first]


class Stages:
    """The stages of a model, each for one lane at a time. With `measured`, `busy` lists when each
    stage computed and for which lane."""

    def __init__(self, first: list[int], *, measured: bool = False) -> None:
        self.first, self.measured = first, measured
        self._locks = [threading.Lock() for _ in first]
        self._marks: list[tuple[int, int, Mark, Mark]] = []
        self._clock: Clock | None = None

    @property
    def busy(self) -> list[Busy]:
        """The times so far. This waits until the devices have done the work."""
        return [Busy(stage, lane, start(), end()) for stage, lane, start, end in self._marks]

    def guard(self, model: Any, lane: int) -> None:
        """Make a lane's model wait for each stage before it enters it."""
        where = devices(model, self.first)
        if self.measured and self._clock is None:
            self._clock = Clock(where)
        position = _Position(self._locks, lane, self._clock, where, self._marks)
        model.register_forward_pre_hook(lambda *_: position.move(0))
        for stage, index in enumerate(self.first[1:], 1):
            enter: Callable[..., None] = _entering(position, stage)
            layers_of(model)[index].register_forward_pre_hook(enter)
        # also where a pass ends in an error: the other lanes go on
        model.register_forward_hook(lambda *_: position.move(None), always_call=True)


def _entering(position: "_Position", stage: int) -> Callable[..., None]:
    return lambda *_: position.move(stage)


class _Position:
    """The stage that a lane is in."""

    def __init__(
        self, locks: list[threading.Lock], lane: int, clock: Clock | None,
        where: list[torch.device], marks: list[tuple[int, int, Mark, Mark]],
    ) -> None:  # fmt: skip
        self._locks, self._lane, self._clock = locks, lane, clock
        self._where, self._marks = where, marks
        self._stage: int | None = None
        self._since: Mark | None = None

    def move(self, stage: int | None) -> None:
        """Leave the current stage and enter another one, or none."""
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
    """Return engines that share one engine's weights: `count` of them, or one a stage. Each is for
    one thread at a time. The engine itself must not be used beside them."""
    engines = []
    for lane in range(count or len(stages.first)):
        model = _sharing(engine.model)
        stages.guard(model, lane)
        engines.append(
            Engine(model, engine.tokenizer, str(engine.device), engine.level, engine.numerics)
        )
    return engines


def _sharing(model: Any) -> Any:
    """Return a copy of a model's tree of modules with the same weights. Its rotary embeddings keep
    a state of their own."""
    memory = {id(weight): weight for weight in model.parameters()}
    for module in model.modules():
        if not hasattr(module, "rope_type"):
            memory |= {id(buffer): buffer for buffer in module.buffers(recurse=False)}
    return copy.deepcopy(model, memory)


def spread(
    lanes: list[Engine], following: Callable[[], int | None],
    one: Callable[[int, Engine], None], end: Callable[[], None],
) -> None:  # fmt: skip
    """Call `one` for each number that `following` returns, in any free lane, until it returns None.

    After an error in a lane, `end` is called, which must make `following` return None; the error is
    raised when the other lanes are done.
    """
    free: SimpleQueue[Engine] = SimpleQueue()
    under_way: list[Future[None]] = []
    own = {id(lane): streams(p.device for p in lane.model.parameters()) for lane in lanes}
    for lane in lanes:
        free.put(lane)

    def work(index: int, lane: Engine) -> None:
        with using(own[id(lane)]):
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
    """Return the share of the busy time in which at least two stages work."""
    moments = sorted([(b.start, 1) for b in busy] + [(b.end, -1) for b in busy])
    some = several = 0.0
    working, before = 0, 0.0
    for moment, step in moments:
        some += (moment - before) if working >= 1 else 0.0
        several += (moment - before) if working >= 2 else 0.0
        working, before = working + step, moment
    return several / some if some else 0.0
