"""The plan: which rows share a batch, the laws of packing, and what is on the disk."""

import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from support import steady
from tries import LEVELS, SMALL

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.plan import grouping, store
from evalkit.plan.requests.request import Request, Settings
from evalkit.plan.store import Policy
from evalkit.plan.tokenise import Row, Target, Tokenised, Tokens, rolling_windows, tokenise

GREEDY = Settings(("\n",), 16)


class Letters:
    """A tokenizer of one token a character, with a BOS before every text."""

    max_length, prefix_token_id, bos_token_id, adds_bos = 24, 1, 1, True
    added_eos = vocabulary = None

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        start = [1] if special_tokens else []
        return [[*start, *(ord(letter) for letter in text)] for text in texts]

    def starts_with_prefix(self, text: str) -> bool:
        return text.startswith("\x01")

    starts_with_bos = starts_with_prefix


def scored(task: str, doc_id: int, context: str, choices: Sequence[str]) -> list[Request]:
    """A multiple-choice document's requests."""
    return [
        Request(task, doc_id, index, 0, "loglikelihood", context, choice)
        for index, choice in enumerate(choices)
    ]


def generated(task: str, doc_id: int, context: str, settings: Settings = GREEDY) -> Request:
    return Request(task, doc_id, 0, 0, "generate_until", context, settings=settings)


def some_requests(seed: int, task: str) -> list[Request]:
    """Documents of three shapes: one-letter answers, whole sentences, generations."""
    source = random.Random(seed)
    made: list[Request] = []
    for doc_id in range(source.randint(1, 12)):
        context = "".join(source.choices("abc ", k=source.randint(0, 40)))
        if doc_id % 3 == 2:
            made.append(generated(task, doc_id, context))
        else:
            size = source.randint(1, 6) if doc_id % 3 else 1
            choices = ["".join(source.choices("xyz", k=size)) for _ in range(4)]
            made += scored(task, doc_id, context, choices)
    return made


def batches_of(
    requests: list[Request], policy: Policy = SMALL, level: str = "none"
) -> list[store.Batch]:
    return list(store.make_batches(tokenise(requests, Letters()), policy, level=level))


def build(requests: list[Request], folder: Path, level: str = "tree") -> dict[str, Any]:
    """Write a plan's two files."""
    return write(tokenise(requests, Letters()), folder, level)


def write(tokenised: Tokenised, folder: Path, level: str) -> dict[str, Any]:
    body, blocks = store.build(
        tokenised, SMALL, level=level, suite_id=canon.digest("suite"),
        tokenizer={"tokenizer.json": "0" * 64}, max_length=24,
    )  # fmt: skip
    canon.write_atomic(folder / "plan.tokens", blocks)
    canon.write_atomic(folder / "plan.json", canon.dumps(body))
    return body


SUITES = range(20, 32)  # which all laws share: each is tokenised and planned once
tokenised = cache(tries.tokenised)


@cache
def planned(seed: int, level: str, *tasks: str) -> list[store.Batch]:
    """The batches of random rows."""
    return list(store.make_batches(tokenised(seed, *tasks), SMALL, level=level))


def seeds(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with some random suites, at every level."""
    found = given(seed=st.sampled_from(SUITES), level=st.sampled_from(LEVELS))(test)
    return settings(steady, max_examples=20)(found)


@seeds
def test_every_request_is_in_exactly_one_batch(seed: int, level: str) -> None:
    wanted = Counter(
        target.request.id for row in tokenised(seed, "one", "two").rows
        for target in row.targets
    )  # fmt: skip
    batches = planned(seed, level, "one", "two")
    assert Counter(target.id for batch in batches for target in batch.targets) == wanted


@seeds
def test_a_path_is_its_requests_tokens_and_scores_what_it_should(seed: int, level: str) -> None:
    """Walked back token by token; so what stands before each token is right, too."""
    wanted = {
        (target.request.id, target.request.settings): (row.tokens.tolist(), target)
        for row in tokenised(seed).rows
        for target in row.targets
    }
    for batch in planned(seed, level):
        for found in batch.targets:
            tokens, target = wanted[found.id, batch.settings]
            assert tries.path(batch, found) == tokens
            assert (found.start, found.last) == (target.start, target.last)


@seeds
def test_a_row_is_branches_that_hang_on_tokens_before_them(seed: int, level: str) -> None:
    for batch in planned(seed, level):
        assert batch.width == max(len(row.tokens) for row in batch.rows)
        for row in batch.rows:
            assert row.starts[0] == 0 and list(row.starts) == sorted(set(row.starts))
            assert row.starts[-1] < len(row.tokens)
            ordered = zip(row.starts, row.parents, strict=True)
            assert all(-1 <= parent < start or start == 0 for start, parent in ordered)
            assert row.parents[0] == -1
            if level != "tree":
                assert row.parents == (-1,)


@seeds
def test_no_token_of_a_row_is_computed_twice_beside_its_equal(seed: int, level: str) -> None:
    """Of two branches that hang on the same token, no two begin alike within one tree."""
    for batch in planned(seed, level):
        for row in batch.rows:
            following = Counter(
                (parent, int(row.tokens[start]))
                for start, parent in zip(row.starts, row.parents, strict=True)
                if parent >= 0
            )
            going_on = {
                (at, int(row.tokens[at + 1]))
                for at in range(len(row.tokens) - 1)
                if at + 1 not in row.starts
            }
            assert max(following.values(), default=1) == 1 and not following.keys() & going_on


@seeds
def test_nothing_that_is_scored_lies_in_a_trunk(seed: int, level: str) -> None:
    for batch in planned(seed, level):
        length = len(tries.trunk_tokens(batch))
        assert batch.trunk is None or (level != "none" and batch.trunk.length == length)
        for target in batch.targets:
            assert length <= target.start and length < len(tries.path(batch, target))


@seeds
def test_a_batch_keeps_within_the_policy(seed: int, level: str) -> None:
    for batch in planned(seed, level):
        rows = len(batch.rows)
        if batch.settings is None:
            needed = {
                (target.row, tuple(tries.path(batch, target)[: at + 1]))
                for target in batch.targets
                for at in range(target.start, len(tries.path(batch, target)))
            }
            fits = rows * batch.width <= SMALL.max_tokens and len(needed) <= SMALL.max_scored
            assert rows == 1 or (fits and (level == "tree" or rows <= SMALL.max_rows))
        else:
            longest = max(target.start for target in batch.targets)
            grown = longest - len(tries.trunk_tokens(batch)) + batch.settings.max_gen_toks
            assert batch.slots == 1 or batch.slots * grown <= SMALL.max_cache
            assert len(batch.targets) <= (
                SMALL.waves * SMALL.max_slots if level == "tree" else batch.slots
            )
            assert level == "tree" or all(len(row.tokens) == batch.width for row in batch.rows)
        assert batch.chunk == SMALL.chunk


@seeds
def test_another_task_changes_none_of_a_tasks_batches(seed: int, level: str) -> None:
    alone = [batch.id for batch in planned(seed, level, "one")]
    for tasks in (("one", "other"), ("other", "one")):
        batches = planned(seed, level, *tasks)
        assert [batch.id for batch in batches if batch.task == "one"] == alone


@seeds
def test_the_order_of_the_requests_changes_nothing(seed: int, level: str) -> None:
    given_rows = tokenised(seed, "one", "two").rows
    shuffled = random.Random(seed).sample(given_rows, len(given_rows))
    turned = [replace(row, targets=row.targets[::-1]) for row in shuffled]
    found = store.make_batches(Tokenised(turned), SMALL, level=level)
    assert [batch.id for batch in found] == [b.id for b in planned(seed, level, "one", "two")]


@seeds
def test_a_trunks_batches_stand_together_and_a_parents_before_its_childrens(
    seed: int, level: str
) -> None:
    groups: dict[object, list[tuple[str, ...]]] = {}
    for batch in planned(seed, level):
        chain = tuple(link.id for link in batch.trunk.chain()) if batch.trunk else ()
        groups.setdefault((batch.kind, batch.settings), []).append(chain)
    for chains in groups.values():
        runs = [chain for chain, _ in groupby(chains)]
        for above in {chain[:depth] for chain in runs for depth in range(1, len(chain) + 1)}:
            inside = [chain[: len(above)] == above for chain in runs]
            assert sum(value for value, _ in groupby(inside)) == 1, "one stretch"
            assert above not in runs or runs[inside.index(True)] == above


def test_random_rows_have_trunks_and_trees() -> None:
    """The laws above would hold for a planner that shares nothing."""
    for level, generating in (("tree", False), ("prefix", False), ("tree", True)):
        made = [batch for seed in SUITES for batch in planned(seed, level)
                if (batch.settings is not None) == generating]  # fmt: skip
        assert sum(batch.trunk is not None for batch in made) > 5
        assert any(batch.trunk and batch.trunk.parent for batch in made)
        if level == "tree":
            assert sum(len(row.starts) > 1 for batch in made for row in batch.rows) > 20


@seeds
def test_the_widest_batches_of_a_stem_come_first(seed: int, level: str) -> None:
    widths: dict[object, list[int]] = {}
    for batch in planned(seed, level):
        if level != "tree" or batch.settings is None:  # its prompts are dealt out evenly
            widths.setdefault((batch.kind, batch.settings, batch.trunk), []).append(batch.width)
    assert all(found == sorted(found, reverse=True) for found in widths.values())


def test_a_row_scores_its_continuation_and_nothing_else() -> None:
    """Reading back from a batch's token ids what each target scores gives the request's text."""
    for seed, level in product(range(30), LEVELS):
        requests = some_requests(seed, "task")
        texts = {request.id: request.continuation for request in requests}
        for batch in batches_of(requests, level=level):
            for target in batch.targets if batch.settings is None else ():
                # a context's trailing blanks are scored with it
                tokens = [*tries.path(batch, target), target.last][target.start + 1 :]
                assert "".join(map(chr, tokens)).lstrip() == texts[target.id]


@seeds
def test_a_plan_read_from_the_disk_has_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory, seed: int, level: str
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    body = write(tokenised(seed, "one", "two"), folder, level)
    read = store.Plan(folder)
    assert len(read) == len(body["batches"]) and schema.check("plan", body) == []
    last = None
    for made in planned(seed, level, "one", "two"):
        found = read.batch(made.id)
        assert found == made
        for one, other in zip(found.rows, made.rows, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert (one.starts, one.parents) == (other.starts, other.parents)
        assert tries.trunk_tokens(found) == tries.trunk_tokens(made)
        if last is not None and last == found.trunk:
            assert last is found.trunk, "kept from one batch to the next"
        last = found.trunk


def test_a_plan_fits_its_schema_and_has_the_id_of_its_own_fields(tmp_path: Path) -> None:
    body = build(some_requests(5, "task"), tmp_path)
    assert schema.check("plan", body) == []
    assert body["ids"]["plan"] == store.plan_id(body)
    for key in ("level", "policy", "max_length", "tokenizer", "batches"):
        assert (
            store.plan_id(body | {key: body[key][:1] if key == "batches" else None})
            != (body["ids"]["plan"])
        )


def test_the_same_requests_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        build(some_requests(7, "task"), tmp_path / name)
    for name in ("plan.json", "plan.tokens"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_letter_answers_to_one_question_share_a_row() -> None:
    (batch,) = batches_of(scored("task", 0, "Which?", list("ABCD")))
    assert len(batch.rows) == 1 and [target.last for target in batch.targets] == [65, 66, 67, 68]


def test_equal_prompts_to_go_on_from_do_not_share_a_row() -> None:
    (batch,) = batches_of([generated("task", index, "Same?") for index in range(2)])
    assert len(batch.rows) == 2


def test_generations_with_unlike_settings_are_in_unlike_batches() -> None:
    settings = [GREEDY, replace(GREEDY, max_gen_toks=4), replace(GREEDY, until=())]
    requests = [generated("task", index, "Go", item) for index, item in enumerate(settings)]
    assert len(batches_of(requests)) == 3


def test_a_prompt_that_is_too_long_is_cut_on_the_left_and_counted() -> None:
    found = tokenise(
        [*scored("score", 0, "ab" * 20, "x"), generated("go", 0, "ab" * 20)], Letters()
    )
    assert found.truncated == {"score": 1, "go": 1}
    assert [len(row.tokens) for row in found.rows] == [24, 8]  # a generation leaves room for 16
    assert "".join(map(chr, found.rows[0].tokens.tolist())) == "ab" * 12


def test_a_generation_without_room_names_its_task_and_both_lengths() -> None:
    with pytest.raises(EvalkitError, match=r"'go' generates up to 24 tokens but .* context is 24"):
        tokenise([generated("go", 0, "ab", replace(GREEDY, max_gen_toks=24))], Letters())


@pytest.mark.parametrize("change", ["bos", "no bos", "two"])
def test_missing_and_double_bos_are_counted(change: str) -> None:
    text = {"bos": "abc", "no bos": "abc", "two": "\x01\x01abc"}[change]
    encoder = Letters()
    context = ("x" * 30 + text) if change == "no bos" else text
    found = tokenise([generated("go", 0, context)], encoder)
    assert (found.missing_bos, found.double_bos) == {
        "bos": (0, 0), "no bos": (1, 0), "two": (0, 1)
    }[change]  # fmt: skip


@steady
@given(st.integers(1, 60), st.integers(1, 20))
def test_rolling_windows_score_every_token_once_and_fit_the_model(length: int, limit: int) -> None:
    tokens = np.arange(10, 10 + length, dtype=np.uint32)
    windows = list(rolling_windows(tokens, 1, limit))
    assert [token for _, scored in windows for token in scored.tolist()] == tokens.tolist()
    assert all(len(c) + len(s) <= limit + 1 and len(c) and len(s) for c, s in windows)


@steady
@given(st.integers(1, 60), st.integers(1, 20))
def test_rolling_windows_are_lm_evals(length: int, limit: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    tokens = list(range(10, 10 + length))
    theirs = map(
        utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, 1, limit, context_len=1)
    )
    ours = rolling_windows(np.asarray(tokens, dtype=np.uint32), 1, limit)
    assert [(c.tolist(), s.tolist()) for c, s in ours] == [tuple(map(list, w)) for w in theirs]


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "missing", "other"])
def test_damaged_tokens_are_named_and_never_executed(tmp_path: Path, change: str) -> None:
    build(some_requests(11, "task"), tmp_path)
    path = tmp_path / "plan.tokens"
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        other = zlib.compress(bytes(400))
        path.write_bytes({
            "flip": bytes([*data[:20], data[20] ^ 1, *data[21:]]), "cut": data[: len(data) // 2],
            "empty": b"", "other": other + data[len(other) :],
        }[change])  # fmt: skip
    read = store.Plan(tmp_path)
    with pytest.raises(EvalkitError, match=r"plan\.tokens is damaged") as caught:
        for batch in read.entries:
            read.batch(batch)
    assert caught.value.code == Exit.FAILED and str(tmp_path) in str(caught.value)


def test_a_target_that_was_moved_in_plan_json_changes_the_batchs_digest(tmp_path: Path) -> None:
    body = build(some_requests(11, "task"), tmp_path)
    body["batches"][0]["targets"][0][2] += 1
    (tmp_path / "plan.json").write_text(json.dumps(body))
    with pytest.raises(EvalkitError, match="has another digest"):
        store.Plan(tmp_path).batch(body["batches"][0]["id"])


def test_a_plan_of_another_schema_says_which(tmp_path: Path) -> None:
    body = build(some_requests(11, "task"), tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(body | {"schema": "evalkit/plan/1"}))
    with pytest.raises(EvalkitError, match="evalkit/plan/1, this evalkit reads"):
        store.Plan(tmp_path)


def test_nothing_to_do_is_a_plan_without_batches() -> None:
    assert all(list(store.make_batches(Tokenised([]), SMALL, level=x)) == [] for x in LEVELS)


def rows_of(
    sequences: Sequence[Sequence[int]], scored: int = 1, settings: Settings | None = None
) -> Tokenised:
    """One request a sequence; to score, its last `scored` outputs."""
    made = []
    for number, sequence in enumerate(sequences):
        tokens: Tokens = np.asarray(sequence, dtype=np.uint32)
        kind = "generate_until" if settings else "loglikelihood"
        request = Request("task", number, 0, 0, kind, "", settings=settings)  # type: ignore[arg-type]
        start = len(tokens) - (0 if settings else scored)
        made.append(Row(tokens, (Target(request, start, -1 if settings else 7),)))
    return Tokenised(made)


def documents(shots: int, number: int, question: int, choices: int, seed: int = 0) -> list[Any]:
    """Sequences of one preamble, `number` questions behind it and some choices behind each."""
    source = np.random.default_rng(seed)
    preamble = source.integers(2, 30_000, shots).tolist()
    asked = [source.integers(2, 30_000, question + n % 7).tolist() for n in range(number)]
    return [
        [*preamble, *one, *source.integers(2, 30_000, 5).tolist()]
        for one in asked
        for _ in range(choices)
    ]


def stems_of(rows: Tokenised, level: str = "tree", policy: Policy | None = None) -> list[Any]:
    """Of each batch: its trunk's length, and how many rows it has."""
    batches = store.make_batches(rows, policy or Policy(), level=level)
    return [(batch.trunk.length if batch.trunk else 0, len(batch.rows)) for batch in batches]


def prompts_of(rows: Tokenised) -> list[tuple[int, int]]:
    """Of each generating batch: its trunk's length, and how many prompts it has."""
    batches = store.make_batches(rows, Policy(), level="tree")
    return [(batch.trunk.length if batch.trunk else 0, len(batch.targets)) for batch in batches]


def test_shots_that_all_share_are_a_trunk_and_a_documents_choices_a_tree() -> None:
    (batch,) = store.make_batches(rows_of(documents(600, 20, 90, 4), 5), Policy(), level="tree")
    assert batch.trunk and batch.trunk.length == 600 and len(batch.rows) == 10
    assert [len(row.starts) for row in batch.rows] == [8] * 10  # two documents of four choices
    lengths = [trunk for trunk, _ in stems_of(rows_of(documents(600, 20, 90, 4), 5), "prefix")]
    assert set(lengths) == {600}, "four rows are too few for a copy of their question"


def test_shots_of_one_document_stay_in_its_row() -> None:
    """A trunk of its own would be a forward pass for the few tokens of its choices."""
    many = [one for seed in range(10) for one in documents(1300, 1, 40, 4, seed)]
    assert stems_of(rows_of(many, 5)) == [(0, 10)]


def test_a_path_that_is_a_prefix_of_another_ends_in_it() -> None:
    one = list(range(50, 80))
    (batch,) = store.make_batches(rows_of([one, one[:10], one[:20]]), Policy(), level="tree")
    assert batch.num_tokens == 30 and len(batch.rows) == 1
    assert sorted(target.end for target in batch.targets) == [9, 19, 29]


@pytest.mark.parametrize("level", ["tree", "prefix"])
def test_a_trunk_ends_before_the_first_output_that_is_scored(level: str) -> None:
    sequences = documents(600, 60, 90, 1)
    for first, length in ((650, 600), (500, 500), (3, 0)):
        rows = [
            replace(row, targets=(replace(row.targets[0], start=first + (number != 7)),))
            for number, row in enumerate(rows_of(sequences).rows)
        ]
        policy = Policy(max_scored=100_000)
        assert {trunk for trunk, _ in stems_of(Tokenised(rows), level, policy)} == {length}


def test_some_prompts_share_what_all_share_rather_than_leave_slots_empty() -> None:
    few = documents(300, 20, 60, 1, seed=1) + documents(300, 20, 60, 1, seed=2)
    settings = Settings((), 256)
    assert prompts_of(rows_of(few, settings=settings)) == [(0, 40)]
    many = documents(300, 80, 60, 1, seed=1) + documents(300, 80, 60, 1, seed=2)
    assert prompts_of(rows_of(many, settings=settings)) == [(300, 80)] * 2
    assert prompts_of(rows_of(documents(300, 2, 60, 1), settings=settings)) == [(300, 2)]


def test_prompts_are_spread_evenly_over_as_few_batches_as_may_be() -> None:
    prompts = rows_of(documents(30, 300, 60, 1), settings=Settings((), 256))
    assert prompts_of(prompts) == [(30, 150)] * 2


def test_long_generations_get_fewer_slots() -> None:
    for length, slots in ((100, 64), (4000, 31), (200_000, 1)):
        prompts = rows_of([[n, *range(2, length)] for n in range(2)], settings=Settings((), 200))
        assert {batch.slots for batch in store.make_batches(prompts, Policy(), level="tree")} == {
            slots
        }


@pytest.mark.parametrize("level", LEVELS)
def test_rows_behind_the_limit_of_their_rope_keep_to_themselves(level: str) -> None:
    long = [[*range(100, 400), *range(2, 2 + size)] for size in (210, 210, 220)]
    rows = rows_of([*long, *documents(300, 40, 60, 4)], 5)
    batches = list(store.make_batches(rows, Policy(), level=level, rope_limit=500))
    beyond = [b for b in batches if any(len(tries.path(b, t)) > 500 for t in b.targets)]
    assert all(len(tries.path(b, t)) > 500 for b in beyond for t in b.targets)
    assert [b.width for b in beyond] == [520, 510] and all(b.trunk is None for b in beyond)
    assert len(beyond[1].rows) == 2 and all(row.starts == (0,) for b in beyond for row in b.rows)
    prompts = rows_of([*long, *documents(300, 40, 60, 1)], settings=Settings((), 16))
    made = list(store.make_batches(prompts, Policy(), level=level, rope_limit=500))
    alone = [b for b in made if b.trunk is None and b.width > 484]
    assert [len(b.rows) for b in alone] == [1, 1, 1]
    short = {b.id for b in store.make_batches(
        rows_of(documents(300, 40, 60, 1), settings=Settings((), 16)), Policy(), level=level
    )}  # fmt: skip
    assert len({b.id for b in made} - short) >= 3


@seeds
def test_a_plan_that_is_made_task_by_task_is_the_plan_of_all(seed: int, level: str) -> None:
    """So that only one task's rows need to be in memory."""
    apart, together = (store.Builder(SMALL, level=level) for _ in range(2))
    together.add(tokenised(seed, "two", "one"))
    for task in ("one", "two"):
        apart.add(tokenised(seed, task))
    named: dict[str, Any] = {"suite_id": "", "tokenizer": {}, "max_length": 24}
    assert apart.body(**named) == together.body(**named)
    assert apart.blocks == together.blocks
    assert apart.unique_tokens == together.unique_tokens
    with pytest.raises(AssertionError, match="one comes after two"):
        apart.add(tokenised(seed, "one"))


@pytest.mark.parametrize("level", LEVELS)
def test_a_trie_of_great_depth_is_no_recursion(level: str, tmp_path: Path) -> None:
    """Each sequence goes on where the one before ends; trunks nest as deep as the policy allows."""
    whole = np.random.default_rng(0).integers(2, 9, sys.getrecursionlimit() + 100).tolist()
    combed = rows_of([[*whole[:size], 9, 9] for size in range(1, len(whole))])
    tight = replace(SMALL, max_tree=8, row_tokens=8, min_trunk=1)
    batches = list(store.make_batches(combed, tight, level=level))
    assert sum(len(batch.targets) for batch in batches) == len(combed.rows)
    prompts = rows_of([[*whole[:size], 9] for size in range(1, len(whole))], settings=GREEDY)
    body, blocks = store.build(
        prompts, replace(tight, max_slots=1), level=level, suite_id=canon.digest("suite"),
        tokenizer={}, max_length=9000,
    )  # fmt: skip
    canon.write_atomic(tmp_path / "plan.tokens", blocks)
    canon.write_atomic(tmp_path / "plan.json", canon.dumps(body))
    read = store.Plan(tmp_path)
    assert read.batch(body["batches"][-1]["id"]).targets


def test_little_more_than_the_unique_tokens_is_computed_and_hardly_any_padding() -> None:
    """As of multiple choice with shots, of questions with an answer in words, and of prompts."""
    kinds = [
        rows_of(documents(700, 150, 80, 1)),
        rows_of(documents(3, 400, 60, 4), 5),
        rows_of(documents(800, 250, 50, 1), settings=Settings((), 256)),
    ]
    for rows in kinds:
        body, _ = store.build(
            rows, Policy(), level="tree", suite_id="", tokenizer={}, max_length=4096
        )  # fmt: skip
        figures = store.figures(body)
        (trie,) = (group.trie() for group in grouping.groups(rows))
        assert figures.computed <= 1.05 * trie.unique(trie.whole)
        assert figures.padding <= 0.05 * figures.computed
        assert figures.longest == max(entry["cost"] for entry in body["batches"])


def test_sharing_less_costs_what_the_levels_say() -> None:
    rows = rows_of(documents(700, 150, 80, 1))
    computed = {}
    for level in LEVELS:
        body, _ = store.build(
            rows, Policy(), level=level, suite_id="", tokenizer={}, max_length=999
        )
        computed[level] = store.figures(body).computed
    assert max(computed["tree"], computed["prefix"]) < computed["none"] / 5
    assert computed["none"] >= sum(len(row.tokens) for row in rows.rows)
