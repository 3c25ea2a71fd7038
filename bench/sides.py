"""Both sides of the comparison: lm-eval's `hf` model, and evalkit in one process or in several.

Each answers the same requests, from their texts to their answers: tokenising, batching and stop
strings are inside the time, loading the model is not. Each lives in a `Process`.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.passes import Pass, watch
from bench.process import Process
from evalkit.plan.requests.request import Request
from evalkit.run.processes import child

LEVEL = "tree"
Answer = tuple[float, bool] | str  # a log-likelihood with its greedy flag, or a text


@dataclass
class Ran:
    """One side's answers by request id, and what they took. `cpu`: seconds of its cores; `stages`:
    seconds by what was done; `passes`: the model's forward passes; `peak`: bytes of memory, the
    weights included; `texts`: of evalkit's workers, generations as the engine answers them."""

    seconds: float
    answers: dict[str, Answer]
    cpu: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    peak: int = 0
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)


def reset_peak() -> None:
    """Let the process's peak memory start again from what it uses now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has used since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class LmEval:
    """lm-eval's `hf` model on the CPU, its softmax in float32 whatever the weights' dtype."""

    def __init__(self, folder: str, threads: int, dtype: str = "float32") -> None:
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(threads)
        self._lm = HFLM(pretrained=folder, device="cpu", dtype=dtype, softmax_dtype="float32")

    def answer(self, requests: Sequence[Request], size: int) -> Ran:
        """All answers at one batch size, as lm-eval's `evaluate` asks for them: by kind."""
        self._lm.batch_size_per_gpu = size
        reset_peak()
        passes: list[Pass] = []
        with watch(self._lm.model, passes):
            started, busy = time.perf_counter(), time.process_time()
            found = {kind: self._of_kind(requests, kind) for kind in KINDS}
            seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        answers = {name: answer for part in found.values() for name, answer in part.items()}
        return Ran(seconds, answers, cpu, {}, passes, peak_bytes())

    def _of_kind(self, requests: Sequence[Request], kind: str) -> dict[str, Answer]:
        chosen = [request for request in requests if request.kind == kind]
        if not chosen:
            return {}
        given = [instance(request, index) for index, request in enumerate(chosen)]
        answers = getattr(self._lm, kind)(given, disable_tqdm=True)
        return {request.id: answer for request, answer in zip(chosen, answers, strict=True)}


KINDS = ("loglikelihood", "generate_until")


def instance(request: Request, index: int) -> Any:
    """Return a request as lm-eval's own Instance."""
    from lm_eval.api.instance import Instance

    second: Any = request.continuation
    if request.settings is not None:
        settings = request.settings
        second = {"until": list(settings.until), "max_gen_toks": settings.max_gen_toks}
        second |= {"do_sample": False, "temperature": 0.0}
    return Instance(request.kind, {}, (request.context, second), index)


class Evalkit:
    """evalkit's planner and engine in one process."""

    def __init__(
        self, folder: str, threads: int, level: str = LEVEL, dtype: str = "float32"
    ) -> None:
        from evalkit import engine
        from evalkit.inputs.models import model
        from evalkit.inputs.models.tokenizer import Tokenizer

        found = model.resolve(folder)
        self.tokenizer = Tokenizer(found)
        numerics = engine.Numerics(dtype, threads=threads)
        self.engine = engine.load(found, self.tokenizer, numerics, "cpu", level=level)
        self._busy, self._passes = 0.0, list[Pass]()

    def answer(self, requests: Sequence[Request]) -> Ran:
        """All answers, from a plan made for them."""
        self.engine.kept = None  # no trunk from before
        reset_peak()
        ran = Ran(0.0, {})
        with watch(self.engine.model, ran.passes):
            started, busy = time.perf_counter(), time.process_time()
            batches = planned(requests, self.tokenizer, ran.stages)
            with clocked(ran.stages, "execute"):
                for group in sharing_slots(batches):
                    first = len(ran.passes)
                    for found in answered(self.engine, group):
                        ran.answers |= plain(found)
                    for one in ran.passes[first:]:
                        length = group[0].trunk.length if group[0].trunk else 0
                        one.shared = min(length, one.keys - one.tokens)
            ran.seconds = time.perf_counter() - started
            ran.cpu = time.process_time() - busy
        ran.peak = peak_bytes()
        return ran

    def forget(self) -> None:
        """Drop the trunk that is kept, and let what `spent` tells start again."""
        self.engine.kept = None
        reset_peak()
        self._busy, self._passes = time.process_time(), []

    def execute(self, group: list[Any]) -> dict[str, dict[str, Any]]:
        """The engine's answers of batches that may share slots, or of one."""
        with watch(self.engine.model, self._passes):
            found = answered(self.engine, group)
        return {name: one for each in found for name, one in each.items()}

    def spent(self) -> Ran:
        """What `execute` took since `forget`: processor seconds, passes and peak memory."""
        cpu = time.process_time() - self._busy
        return Ran(0.0, {}, cpu, {}, self._passes, peak_bytes())

    def needed(self, requests: Sequence[Request]) -> "Needed":
        """What answering takes at least: see `needed`."""
        return needed(requests, self.tokenizer)

    def profile(self, requests: Sequence[Request]) -> dict[str, float]:
        """Where the time of these requests goes: see `profiling.profile`."""
        from bench import profiling

        self.engine.kept = None
        return profiling.profile(self.engine.model, lambda: self.answer(requests))

    def matmul_peak(self) -> dict[str, float]:
        """Measured FLOP/s of a matrix product by its shape: see `profiling.matmul_peak`."""
        from bench import profiling

        return profiling.matmul_peak(self.engine.model)

    def matmul_seconds(self, passes: Sequence[Pass]) -> float:
        """What the passes' matrix products alone take: see `profiling.matmul_seconds`."""
        from bench import profiling

        return profiling.matmul_seconds(self.engine.model, passes)


def started(folder: str, threads: int, dtype: str = "float32") -> Process:
    """evalkit in a process that has what a worker's has in its environment."""
    with patch.dict(os.environ, child.environment()):
        return Process(Evalkit, folder, threads, LEVEL, dtype)


class Workers:
    """evalkit with a process for each core, a thread each: batches go to whoever is free."""

    def __init__(self, folder: str, number: int, dtype: str = "float32") -> None:
        from evalkit.inputs.models import model
        from evalkit.inputs.models.tokenizer import Tokenizer

        self._tokenizer = Tokenizer(model.resolve(folder))
        self._workers = [started(folder, 1, dtype) for _ in range(number)]

    def answer(self, requests: Sequence[Request]) -> Ran:
        """All answers; what this process does (tokenise, plan, hand out) is in the time too."""
        for worker in self._workers:
            worker.call("forget")
        ran = Ran(0.0, {})
        started, own = time.perf_counter(), time.process_time()
        batches = planned(requests, self._tokenizer, ran.stages)
        todo = sharing_slots(batches, len(self._workers))[::-1]
        with clocked(ran.stages, "execute"):
            busy = []
            for worker in self._workers[: len(todo)]:
                worker.send("execute", todo.pop())
                busy.append(worker)
            while busy:
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    found = worker.receive()
                    ran.answers |= plain(found)
                    ran.texts |= {name: one for name, one in found.items() if "text" in one}
                    if todo:
                        worker.send("execute", todo.pop())
                    else:
                        busy.remove(worker)
        ran.seconds = time.perf_counter() - started
        spent = [worker.call("spent") for worker in self._workers]
        ran.cpu = time.process_time() - own + sum(one.cpu for one in spent)
        ran.passes = [each for one in spent for each in one.passes]
        ran.peak = sum(one.peak for one in spent)
        return ran

    def stop(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()


def planned(requests: Sequence[Request], tokenizer: Any, stages: dict[str, float]) -> list[Any]:
    """The batches of requests."""
    from evalkit.plan import store
    from evalkit.plan.tokenise import tokenise

    with clocked(stages, "tokenise"):
        tokenised = tokenise(requests, tokenizer)
    with clocked(stages, "plan"):
        return list(store.make_batches(tokenised, store.Policy(), level=LEVEL))


def sharing_slots(batches: Sequence[Any], workers: int = 1) -> list[list[Any]]:
    """Batches in groups that one of so many workers answers side by side, as a run's workers do on
    a CPU: generations; others are alone."""
    prompts = sum(len(batch.targets) for batch in batches if batch.settings)
    found: list[list[Any]] = []
    for batch in batches:
        if batch.settings and found and (last := found[-1])[0].settings:
            share = min(-(-prompts // workers), 2 * batch.slots)
            if sum(len(one.targets) for one in last) < share:
                last.append(batch)
                continue
        found.append([batch])
    return found


def answered(engine: Any, group: Sequence[Any]) -> list[dict[str, dict[str, Any]]]:
    """The engine's answers of each batch of a group."""
    if len(group) == 1:
        return [engine.execute(group[0])]
    found: list[dict[str, dict[str, Any]]] = []
    rest = iter(group[1:])
    engine.together(
        group[0], lambda held: next(rest, None), lambda batch, answers: found.append(answers)
    )
    return found


@dataclass(frozen=True)
class Needed:
    """Of some requests: the trie's unique tokens, those of the plan's rows and trunks without and
    with padding, and the positions whose logits are needed. Generated tokens are not counted."""

    unique: int
    planned: int
    padded: int
    scored: int


def needed(requests: Sequence[Request], tokenizer: Any) -> Needed:
    """Count what a plan computes and what is the least."""
    from evalkit.plan import grouping
    from evalkit.plan.tokenise import tokenise

    tokenised = tokenise(requests, tokenizer)
    tries = [group.trie() for group in grouping.groups(tokenised)]
    batches = planned(requests, tokenizer, {})
    trunks = {}
    for batch in batches:
        link = batch.trunk
        while link is not None:
            trunks[link.id] = len(link.tokens)
            link = link.parent
    return Needed(
        unique=sum(trie.unique(trie.whole) for trie in tries),
        planned=sum(batch.num_tokens for batch in batches) + sum(trunks.values()),
        padded=sum(len(batch.rows) * batch.width for batch in batches) + sum(trunks.values()),
        scored=sum(trie.scored(trie.whole) for trie in tries),
    )


@contextmanager
def clocked(stages: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that the block takes."""
    started = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - started


def plain(answers: dict[str, dict[str, Any]]) -> dict[str, Answer]:
    """The engine's answers as lm-eval's model gives them."""
    return {
        name: answer["text"] if "text" in answer else (answer["loglikelihood"], answer["is_greedy"])
        for name, answer in answers.items()
    }
