"""Who works on which part of a plan: every batch once, shards alike, trunks whole where it pays."""

import random
from functools import cache
from typing import Any

import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from support import steady
from tries import LEVELS, SMALL

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.plan import shards, store
from evalkit.plan.shards import Costs, Prompts, Shard
from evalkit.plan.tokenise import Tokenised

SUITES = st.integers(0, 11)  # which all laws share: each is planned once


@cache
def planned(seed: int, level: str = "tree", tasks: int = 4) -> dict[str, Any]:
    """plan.json's content of a random suite."""
    rows = []
    for task in range(tasks):
        rows += tries.some_rows(seed + task, f"t{task}")
        rows += tries.some_rows(seed + task, f"t{task}_gen", tries.GREEDY)
    body, _ = store.build(
        Tokenised(rows), SMALL, level=level, suite_id=canon.digest("s"), tokenizer={},
        max_length=999,
    )  # fmt: skip
    return body


@settings(steady, max_examples=25)
@given(seed=SUITES, level=st.sampled_from(LEVELS), count=st.integers(1, 12))
def test_shards_have_every_batch_once(seed: int, level: str, count: int) -> None:
    body = planned(seed, level)
    dealt = shards.deal(body, count)
    assert len(dealt) == count
    assert sorted(batch for shard in dealt for batch in shard) == list(range(len(body["batches"])))
    assert dealt == shards.deal(body, count)


@settings(steady, max_examples=25)
@given(seed=SUITES, count=st.integers(2, 6))
def test_shards_cost_about_the_same(seed: int, count: int) -> None:
    """No more than a piece, or the dearest batch with its trunks, above a fair share."""
    body = planned(seed, tasks=6)
    costs = Costs(body)
    loads = [costs.of(shard) for shard in shards.deal(body, count)]
    everything = list(range(len(body["batches"])))
    fair = costs.of(everything) / count
    dearest = max(costs.of([batch]) for batch in everything)
    again = sum(entry["length"] for entry in body["trunks"])  # a cut computes trunks again
    assert max(loads) <= fair + max(dearest, fair / 2) + again


@settings(steady, max_examples=25)
@given(seed=SUITES, level=st.sampled_from(LEVELS))
def test_halves_are_both_of_a_piece_and_neither_costs_more_than_the_whole(
    seed: int, level: str
) -> None:
    body = planned(seed, level)
    costs = Costs(body)
    for piece in costs.pieces(range(len(body["batches"]))):
        if len(piece) > 1:
            one, two = costs.halved(piece)
            assert one and two and one + two == piece
            assert max(costs.of(one), costs.of(two)) <= costs.of(piece)


def test_batches_of_one_trunk_stay_together_where_balance_allows() -> None:
    body = planned(3, tasks=30)
    costs = Costs(body)
    dealt = shards.deal(body, 2)
    torn = 0
    for piece in costs.pieces(range(len(body["batches"]))):
        torn += len({n for n, shard in enumerate(dealt) if set(shard) & set(piece)}) > 1
    assert torn <= 2, "small trunks are not cut for two shards' sake"


def test_costs_count_a_trunk_once_for_the_batches_in_a_row() -> None:
    body = planned(5)
    costs = Costs(body)
    everything = list(range(len(body["batches"])))
    trunks = sum(entry["length"] for entry in body["trunks"])
    assert costs.of(everything) == sum(entry["cost"] for entry in body["batches"]) + trunks
    mixed = random.Random(0).sample(everything, len(everything))
    assert costs.of(mixed) >= costs.of(everything)


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("3/7", Shard(3, 7))])
def test_a_shard_is_written_as_one_of_some(text: str, shard: Shard) -> None:
    assert shards.parse(text) == shard and str(shard) == text


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "-1/3", "1/0", "a/b", "1/2/3", "1.0/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(EvalkitError, match=r"is no shard.*--shard 1/4"):
        shards.parse(text)


def array(number: int, least: int, most: int, count: int, step: int = 1) -> dict[str, str]:
    names = {"ID": number, "MIN": least, "MAX": most, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def test_a_job_arrays_task_is_a_shard() -> None:
    assert shards.of_array({}) is None
    assert shards.of_array(array(0, 0, 0, 1)) is None
    assert shards.of_array(array(0, 0, 6, 7)) == Shard(1, 7)
    assert shards.of_array(array(7, 1, 7, 7)) == Shard(7, 7)
    assert shards.of_array(array(5, 1, 7, 4, step=2)) == Shard(3, 4)


@pytest.mark.parametrize("given", [array(3, 3, 9, 2), array(5, 3, 9, 3, step=2)])
def test_an_uneven_array_is_refused_since_its_tasks_are_no_shards(given: dict[str, str]) -> None:
    with pytest.raises(EvalkitError, match="--shard K/N"):
        shards.of_array(given)


def test_a_worker_is_given_prompts_to_fill_its_slots_and_no_more_than_its_share() -> None:
    def body(level: str, *prompts: int) -> dict[str, Any]:
        batches = [{"kind": "generate_until", "targets": [[]] * number} for number in prompts]
        other = {"kind": "loglikelihood", "targets": [[]] * 9}
        return {"level": level, "policy": {"max_slots": 8}, "batches": [*batches, other]}

    few = Prompts(body("tree", 1, 1, 1, 1))
    assert few.are_few([], range(5), 2) and few.are_few([0], range(5), 2)
    assert not few.are_few([0, 1], range(5), 2), "the other two are another worker's"
    assert few.are_few([0, 1], range(5), 1)
    many = Prompts(body("tree", *[6] * 20))
    assert many.are_few([0, 1], range(21), 2)
    assert not many.are_few([0, 1, 2], range(21), 2), "twice what generates at once"
    assert not many.are_few([20], range(21), 1), "what is scored fills no slots"
    assert not Prompts(body("prefix", 1, 1)).are_few([], range(3), 1)
