"""Loads a suite's tasks with their pinned data, beside other work where there is some."""

from concurrent.futures import Future, ThreadPoolExecutor

from evalkit.base.events import Events
from evalkit.harness import tasks
from evalkit.harness.tasks import Loaded
from evalkit.inputs.locked import Lock
from evalkit.inputs.suite import Suite
from evalkit.run.preparing.prepare import Job


def load(job: Job, events: Events) -> Loaded:
    """Load a job's suite's tasks with their pinned data, and hold them against the lock."""
    return load_suite(job.suite, job.lock, events, offline=job.options.offline)


def load_suite(suite: Suite, lock: Lock, events: Events, *, offline: bool) -> Loaded:
    """Load a suite's tasks with their pinned data, and hold them against the lock."""
    with events.phase("load", len(lock.tasks), "datasets") as phase:
        return tasks.load_locked(suite, lock, offline=offline, served=lambda: phase.advance(1))


class Loading:
    """Loads a job's tasks where they are not `loaded` yet: a plan that was kept needs no documents,
    scoring does. `beside`: in a thread, since workers do the computing."""

    def __init__(self, job: Job, events: Events, loaded: Loaded | None, *, beside: bool) -> None:
        self._job, self._events, self._loaded = job, events, loaded
        self._pool = ThreadPoolExecutor(1) if beside and loaded is None else None
        self._future: Future[Loaded] | None = None

    def __enter__(self) -> None:
        if self._pool is not None:
            job = self._job
            self._future = self._pool.submit(
                tasks.load_locked, job.suite, job.lock, offline=job.options.offline
            )

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Raise what has gone wrong so far: data that is not the lock's is no reason to compute."""
        if self._future is not None and self._future.done():
            self._future.result()

    def wait(self) -> Loaded:
        """Return the tasks as soon as they are loaded; raises what has gone wrong."""
        if self._loaded is None and self._future is not None:
            number = len(self._job.lock.tasks)
            with self._events.phase("load", number, "datasets") as phase:
                self._loaded = self._future.result()
                phase.advance(number)
        return self._loaded or load(self._job, self._events)
