"""The laws that answers keep, held against an engine that a batch's every detail shows in.

On a CPU most ways of batching give equal bits, so real models would hide an engine or a worker that
adapts. Here the answer to a part is a hash of its whole batch: rows, order, width, trunk with its
chunks, slots. What decides anything at run time is found at once; one such worker is planted.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from support import steady
from tries import LEVELS, SMALL

from evalkit.base import canon
from evalkit.plan import store
from evalkit.plan.store import Batch, Plan, Trunk
from evalkit.plan.tokenise import Tokenised

Answers = dict[str, str]


def hashed(*parts: Any) -> str:
    """A digest of anything that prints."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Stub:
    """A worker whose engine answers with hashes; it keeps the last trunk's state, or does not."""

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self._kept: dict[str, str] = {}

    def work(self, batches: Iterable[Batch]) -> Answers:
        """The answers of these batches, in this order."""
        return {part: answer for b in batches for part, answer in self.execute(b).items()}

    def execute(self, batch: Batch) -> Answers:
        """The answer of each target."""
        rows = [(row.tokens.tolist(), row.starts, row.parents) for row in batch.rows]
        state = self._state(batch.trunk, batch.chunk)
        seen = hashed(batch.kind, batch.settings, state, batch.width, rows, batch.slots)
        return {t.id: hashed(seen, t.row, t.end, t.start, t.last) for t in batch.targets}

    def _state(self, trunk: Trunk | None, chunk: int) -> str:
        """What is cached of a trunk: a chain of its own chunks' hashes behind its parents'."""
        state, kept = "", {}
        for link in trunk.chain() if trunk else []:
            if self.keep and link.id in self._kept:
                state = self._kept[link.id]
            else:
                for tokens in link.chunks(chunk):
                    state = hashed(state, tokens.tolist())
            kept[link.id] = state
        self._kept = kept
        return state


class Adaptive(Stub):
    """A worker as one should not be: it puts two neighbouring batches together where memory is
    free, which it is before it has done much."""

    def work(self, batches: Iterable[Batch]) -> Answers:
        answers: Answers = {}
        left = list(batches)
        while left:
            batch = left.pop(0)
            if len(answers) < 20 and left and _alike(batch, left[0]):
                batch = _merged(batch, left.pop(0))
            answers |= self.execute(batch)
        return answers


def _alike(one: Batch, two: Batch) -> bool:
    return (one.task, one.kind, one.settings, one.trunk) == (
        two.task, two.kind, two.settings, two.trunk
    )  # fmt: skip


def _merged(one: Batch, two: Batch) -> Batch:
    moved = [replace(target, row=target.row + len(one.rows)) for target in two.targets]
    return store.make_batch(
        one.task, one.kind, one.settings, one.trunk, one.rows + two.rows,
        [*one.targets, *moved], SMALL,
    )  # fmt: skip


def answers_map(answers: Answers) -> dict[str, str]:
    """Each leaf task's digest of its answers, sorted by request."""
    tasks: dict[str, list[list[str]]] = {}
    for part, answer in sorted(answers.items()):
        tasks.setdefault(part.split("/")[0], []).append([part, answer])
    return {task: canon.digest(found) for task, found in tasks.items()}


def planned(tokenised: Tokenised, level: str) -> list[Batch]:
    return list(store.make_batches(tokenised, SMALL, level=level))


def requests(seed: int, *tasks: str) -> Tokenised:
    """Random rows; each task's prompts to go on from have names of their own."""
    rows = []
    for task in tasks:
        rows += tries.some_rows(seed, task) + tries.some_rows(seed, f"{task}_gen", tries.GREEDY)
    return Tokenised(rows)


def broken(worker: Callable[..., Stub], seed: int, level: str) -> list[str]:
    """The laws that a worker breaks on one suite: what changes its answers and should not."""
    source = random.Random(seed)
    rows = requests(seed, "one", "two")
    batches = planned(rows, level)
    wanted = answers_map(worker().work(batches))
    shuffled = Tokenised(source.sample(rows.rows, len(rows.rows)))
    alone = answers_map(worker().work(planned(requests(seed, "two"), level)))
    order = source.sample(batches, len(batches))
    parts: list[list[Batch]] = [[] for _ in range(source.randint(2, 5))]
    for batch in order if source.random() < 0.5 else batches:
        source.choice(parts).append(batch)
    split: Answers = {}
    for part in parts:
        split |= worker().work(part)
    stopped = source.randrange(len(batches) + 1)
    resumed = worker().work(batches[:stopped]) | worker().work(batches[stopped:])
    held = {
        "order of the requests": answers_map(worker().work(planned(shuffled, level))) == wanted,
        "a task alone": alone == {task: wanted[task] for task in alone},
        "order of the batches": answers_map(worker().work(order)) == wanted,
        "split over processes": answers_map(split) == wanted,
        "stopped and resumed": answers_map(resumed) == wanted,
        "trunks computed again": answers_map(worker(keep=False).work(batches)) == wanted,
    }
    return [law for law, holds in held.items() if not holds]


@settings(steady, max_examples=25)
@given(seed=st.integers(0, 10_000), level=st.sampled_from(LEVELS))
def test_answers_follow_from_the_plan_alone(seed: int, level: str) -> None:
    assert broken(Stub, seed, level) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_worker_that_adapts_is_found(level: str) -> None:
    found = [set(broken(Adaptive, seed, level)) for seed in range(12)]
    assert sum(map(bool, found)) >= 9, "most suites show it"
    by_order = {"order of the batches", "split over processes", "stopped and resumed"}
    assert set().union(*found) >= {"a task alone", *by_order}


def test_the_stub_sees_every_detail_of_a_batch() -> None:
    """Else a law that holds says nothing."""
    batches = [b for seed in range(9) for b in planned(requests(seed, "one"), "tree")]
    batch = next(b for b in batches if b.trunk and len(b.trunk.tokens) > 8 and len(b.rows) > 1)
    last = replace(batch.rows[0], tokens=batch.rows[0].tokens + 1)
    tree = next(b for b in batches if len(b.rows[0].starts) > 1)
    hung = replace(tree.rows[0], parents=(*tree.rows[0].parents[:-1], -1))
    changed = [
        (batch, replace(batch, width=batch.width + 1)),
        (batch, replace(batch, rows=batch.rows[::-1])),
        (batch, replace(batch, rows=(last, *batch.rows[1:]))),
        (batch, replace(batch, rows=batch.rows[:-1])),
        (batch, replace(batch, chunk=batch.chunk - 1)),
        (batch, replace(batch, slots=batch.slots + 1)),
        (batch, replace(batch, trunk=None)),
        (batch, replace(batch, settings=tries.GREEDY)),
        (tree, replace(tree, rows=(hung, *tree.rows[1:]))),
    ]
    for number, (one, other) in enumerate(changed):
        answers = Stub().execute(one)
        altered = Stub().execute(other)
        assert all(altered[part] != answer for part, answer in answers.items()), number


def test_a_plan_on_the_disk_gives_the_answers_of_the_one_in_memory(tmp_path: Path) -> None:
    rows = requests(3, "one", "two")
    body, blocks = store.build(
        rows, SMALL, level="tree", suite_id=canon.digest("suite"), tokenizer={}, max_length=999
    )
    canon.write_atomic(tmp_path / "plan.tokens", blocks)
    canon.write_atomic(tmp_path / "plan.json", canon.dumps(body))
    read = Plan(tmp_path)
    names: Sequence[str] = random.Random(0).sample(list(read.entries), len(read))
    assert Stub().work(map(read.batch, names)) == Stub().work(planned(rows, "tree"))
