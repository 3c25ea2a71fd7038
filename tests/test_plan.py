"""The plan: which rows share a batch, the laws of packing, and what is on the disk."""

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import steady

from evalkit import canon, plan, schema
from evalkit.errors import EvalkitError, Exit
from evalkit.plan import Policy
from evalkit.request import Request, Settings
from evalkit.tokenise import Row, Tokenised, rolling_windows, tokenise

SMALL = Policy(max_tokens=64, max_rows=5, max_scored=12, max_slots=3)
GREEDY = Settings(("\n",), 16)


class Letters:
    """A tokenizer of one token a character, with a BOS before every text."""

    max_length, prefix_token_id, bos_token_id, adds_bos = 24, 1, 1, True

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


def batches_of(requests: list[Request], policy: Policy = SMALL) -> list[plan.Batch]:
    return plan.make_batches(tokenise(requests, Letters()), policy)


def build(requests: list[Request], folder: Path) -> dict[str, Any]:
    """Write a plan's two files."""
    body, blocks = plan.build(
        tokenise(requests, Letters()), SMALL,
        suite_id=canon.digest("suite"), tokenizer={"tokenizer.json": "0" * 64}, max_length=24,
    )  # fmt: skip
    canon.write_atomic(folder / "plan.tokens", blocks)
    canon.write_atomic(folder / "plan.json", canon.dumps(body))
    return body


def seeds(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with some random suites."""
    return steady(given(seed=st.integers(0, 10_000))(test))


@seeds
def test_every_request_is_in_exactly_one_batch(seed: int) -> None:
    requests = some_requests(seed, "one") + some_requests(seed + 1, "two")
    found = Counter(target.id for batch in batches_of(requests) for target in batch.targets)
    assert found == Counter(request.id for request in requests)


@seeds
def test_a_batch_keeps_within_the_policy(seed: int) -> None:
    for batch in batches_of(some_requests(seed, "task")):
        rows, limit = len(batch.rows), SMALL.max_slots if batch.settings else SMALL.max_rows
        assert batch.width == max(map(len, batch.rows))
        needed = {
            (t.row, at) for t in batch.targets for at in range(t.start, len(batch.rows[t.row]))
        }
        fits = rows * batch.width <= SMALL.max_tokens and len(needed) <= SMALL.max_scored
        assert rows == 1 or (fits and rows <= limit)


@seeds
def test_another_task_changes_none_of_a_tasks_batches(seed: int) -> None:
    one, two = some_requests(seed, "one"), some_requests(seed + 1, "two")
    alone = [batch.id for batch in batches_of(one)]
    for together in (one + two, two + one):
        assert [batch.id for batch in batches_of(together) if batch.task == "one"] == alone


@seeds
def test_the_longest_rows_come_first(seed: int) -> None:
    widths: dict[tuple[str, Any], list[int]] = {}
    for batch in batches_of(some_requests(seed, "task")):
        widths.setdefault((batch.kind, batch.settings), []).append(batch.width)
    assert all(found == sorted(found, reverse=True) for found in widths.values())


@seeds
def test_a_row_scores_its_continuation_and_nothing_else(seed: int) -> None:
    """Reading back from a batch's token ids what each target scores gives the request's text."""
    requests = some_requests(seed, "task")
    texts = {request.id: request.continuation for request in requests}
    for batch in batches_of(requests):
        for target in batch.targets:
            tokens = [*batch.rows[target.row].tolist(), target.last][target.start + 1 :]
            if batch.kind == "loglikelihood":  # a context's trailing blanks are scored with it
                assert "".join(map(chr, tokens)).lstrip() == texts[target.id]


@seeds
def test_a_plan_read_from_the_disk_has_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    requests = some_requests(seed, "task")
    body = build(requests, folder)
    read = plan.Plan(folder)
    assert len(read) == len(body["batches"])
    for made in batches_of(requests):
        found = read.batch(made.id)
        assert [row.tolist() for row in found.rows] == [row.tolist() for row in made.rows]
        assert replace(found, rows=()) == replace(made, rows=())


def test_a_plan_fits_its_schema_and_has_the_id_of_its_own_fields(tmp_path: Path) -> None:
    body = build(some_requests(5, "task"), tmp_path)
    assert schema.check("plan", body) == []
    assert body["ids"]["plan"] == plan.plan_id(body)
    for key in ("level", "policy", "max_length", "tokenizer", "batches"):
        assert (
            plan.plan_id(body | {key: body[key][:1] if key == "batches" else None})
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
    read = plan.Plan(tmp_path)
    with pytest.raises(EvalkitError, match=r"plan\.tokens is damaged") as caught:
        for batch in read.entries:
            read.batch(batch)
    assert caught.value.code == Exit.FAILED and str(tmp_path) in str(caught.value)


def test_a_target_that_was_moved_in_plan_json_changes_the_batchs_digest(tmp_path: Path) -> None:
    body = build(some_requests(11, "task"), tmp_path)
    body["batches"][0]["targets"][0][1] += 1
    (tmp_path / "plan.json").write_text(json.dumps(body))
    with pytest.raises(EvalkitError, match="has another digest"):
        plan.Plan(tmp_path).batch(body["batches"][0]["id"])


def test_a_plan_of_another_schema_says_which(tmp_path: Path) -> None:
    body = build(some_requests(11, "task"), tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(body | {"schema": "evalkit/plan/2"}))
    with pytest.raises(EvalkitError, match="evalkit/plan/2, this evalkit reads"):
        plan.Plan(tmp_path)


def test_nothing_to_do_is_a_plan_without_batches() -> None:
    assert plan.make_batches(Tokenised([]), SMALL) == []
    assert list(plan._pack([], SMALL, 3)) == []


def test_a_row_too_big_for_the_policy_is_alone() -> None:
    tiny = replace(SMALL, max_tokens=4, max_scored=1)
    requests = [request for index in range(3) for request in scored("t", index, "abcdef", ["xyz"])]
    rows: list[Row] = tokenise(requests, Letters()).rows
    assert [len(packed) for packed in plan._pack(rows, tiny, 5)] == [1] * len(rows)
