"""Several batches at once through the layer stages of a model that lies on several devices.

`device_map` alone lets one device compute while the others wait. Here as many batches are under way
as there are stages, each in a lane of its own: a thread, and a tree of modules that shares every
weight with the others and nothing that a forward pass changes. A stage takes one batch at a time.
Every batch is computed alone, by the same kernels in the same order as without lanes, so its bits
are the same; only when is another matter. A trunk's cache is kept by each lane for itself.
"""

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from evalkit.engine.core import Engine


@dataclass(frozen=True, slots=True)
class Busy:
    """A stretch of time in which a stage worked for a lane, by the monotonic clock."""

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


class Stages:
    """The stages of a model, each with at most one batch in it. `busy`, where it is a list, is told
    who was in which, and when."""

    def __init__(self, first: list[int], busy: list[Busy] | None = None) -> None:
        self.first = first
        self._locks = [threading.Lock() for _ in first]
        self._busy = busy

    def guard(self, model: Any, lane: int) -> None:
        """Let a lane's model wait for each stage that it comes to."""
        now = _Held(self._locks, lane, self._busy)
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

    def __init__(self, locks: list[threading.Lock], lane: int, busy: list[Busy] | None) -> None:
        self._locks, self._lane, self._busy = locks, lane, busy
        self._stage: int | None = None
        self._since = 0.0

    def move(self, stage: int | None) -> None:
        """Leave the stage that the lane is in, for another or for none."""
        if self._stage is not None:
            if self._busy is not None:
                self._busy.append(Busy(self._stage, self._lane, self._since, time.monotonic()))
            self._locks[self._stage].release()
        if stage is not None:
            self._locks[stage].acquire()
        self._stage, self._since = stage, time.monotonic()


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
    for lane in lanes:
        free.put(lane)

    def over(done: Future[None], lane: Engine) -> None:
        if done.exception():
            end()
        free.put(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        while (index := following()) is not None:
            lane = free.get()
            under_way.append(pool.submit(one, index, lane))
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
