"""What a host answers a plan's batches with: how many workers, where, and those that are started
before there is a plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from evalkit.base import stopping
from evalkit.inputs.models.model import Model
from evalkit.inputs.types import RunInputs
from evalkit.plan.shards import Shard
from evalkit.run.preparing import engines
from evalkit.run.preparing.engines import Place
from evalkit.run.preparing.prepare import Job
from evalkit.run.processes import child
from evalkit.run.processes.child import Child
from evalkit.run.processes.template import Template


@dataclass(frozen=True, slots=True)
class Means:
    """What this host answers a plan's batches with, and which of them. `number` of workers: None is
    one for each GPU, or as CPU cores allow; 0 is this process itself. `grace_s`: how long a batch
    in hand is waited for once the run is to stop."""

    place: Place
    number: int | None = None
    grace_s: float = stopping.GRACE_S
    shard: Shard | None = None


def places_of(inputs: RunInputs, model: Model, means: Means, batches: int) -> list[Place]:
    """Where the workers are, no more than there are batches."""
    engine, known = engines.of_inputs(inputs), inputs["numerics"]["threads"]
    threads = known if isinstance(known, int) else 1
    return engine.places(means.place, model, means.number, threads)[: max(1, batches)]


class Early:
    """Workers that are started while a run is being prepared and planned: what they import, load
    and check follows from less than a plan. `children`: those that load the weights; `template`:
    what they are forked from; `spares`: where there is none, processes that have imported."""

    def __init__(self, template: Template | None, spares: list[Child]) -> None:
        self.template, self.spares = template, spares
        self.children: list[Child] = []

    def start(self, job: Job, means: Means) -> None:
        """Start as many as the run will need at the least: it has a batch for each leaf task."""
        if not self.template and not self.spares:
            return
        for place in places_of(job.inputs, job.model, means, len(job.lock.tasks)):
            first = not self.children  # the others wait until they are told that it has passed
            spare = self.spares.pop() if self.spares else None
            self.children.append(
                child.started(job.inputs, job.model, place, probes=first, spare=spare,
                              template=self.template)
            )  # fmt: skip

    def end(self) -> None:
        """End what no run has taken over, and the template."""
        for left in (*self.spares, *self.children):
            left.kill()
            left.ended()
        self.spares, self.children = [], []
        if self.template:
            self.template.end()
            self.template = None


@contextmanager
def early(*, forks: bool, spare: bool = False) -> Iterator[Early]:
    """What workers are started from before there is a plan: a template if they are on a CPU
    (`forks`), else a `spare` process. It ends with the block, if it was not ended before."""
    found = Early(child.template() if forks else None, [child.spare()] if spare else [])
    try:
        yield found
    finally:
        found.end()
