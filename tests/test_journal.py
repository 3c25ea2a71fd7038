"""The journal: what is torn or altered is set aside, and only that."""

import functools
import json
import operator
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import steady

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record import journal

RUN = "sha256:" + "a" * 64
BATCHES = [f"sha256:{number:064x}" for number in range(6)]
Answers = dict[str, dict[str, Any]]


def answers(batch: str) -> Answers:
    number = int(batch[7:], 16)
    value = {"loglikelihood": -0.1 * number - 0.3, "is_greedy": False, "num_tokens": number}
    return {f"task/{number}/{index}/0": value for index in range(2)}


def write(folder: Path, batches: list[str], segment: str = "one") -> Path:
    writer = journal.Writer(folder, RUN, segment)
    for batch in batches:
        writer.append(batch, answers(batch))
    writer.close()
    return folder / f"{segment}.jsonl"


def read(folder: Path) -> journal.Journal:
    return journal.read(folder, RUN, set(BATCHES))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, BATCHES)
    found = read(tmp_path)
    assert set(found.batches) == set(BATCHES)
    assert all(found.answers([batch]) == answers(batch) for batch in BATCHES)
    assert found.by_segment == {"one": 6} and not found.set_aside


def test_a_run_without_a_journal_has_no_answers(tmp_path: Path) -> None:
    assert not read(tmp_path / "journal").batches


def test_values_that_are_not_finite_come_back_as_their_words(tmp_path: Path) -> None:
    writer = journal.Writer(tmp_path, RUN, "one")
    writer.append(BATCHES[0], {"task/0/0/0": {"loglikelihood": float("nan"), "num_tokens": 1}})
    (answer,) = read(tmp_path).answers().values()
    assert answer["loglikelihood"] == "nan"


def test_a_record_says_whose_answers_count_where_segments_are_unequal(tmp_path: Path) -> None:
    """Whoever reads a finished run's journal reads what its record was made of: an audit refused a
    record that was settled."""
    write(tmp_path / "journal", BATCHES, "one")
    other = journal.Writer(tmp_path / "journal", RUN, "two")
    told = {"task/1/0/0": {"loglikelihood": -9.0, "is_greedy": True, "num_tokens": 1}}
    other.append(BATCHES[1], told)
    other.close()
    record: dict[str, Any] = {"ids": {"run": RUN}, "preferred": {"segment": "two", "batches": 1}}
    found = journal.of_record(tmp_path, record, set(BATCHES))
    assert found.answers([BATCHES[1]]) == told
    with pytest.raises(EvalkitError, match="unequal"):
        journal.of_record(tmp_path, record | {"preferred": None}, set(BATCHES))


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_torn_last_line_loses_only_its_batch(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, BATCHES)
    path.write_bytes(path.read_bytes()[:-cut])
    found = read(tmp_path)
    assert set(found.batches) == set(BATCHES[:-1]) and found.set_aside == ["one.jsonl line 6"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A journal's file and its bytes."""
    path = write(tmp_path_factory.mktemp("journal"), BATCHES)
    return path, path.read_bytes()


@steady
@given(st.data())
def test_any_altered_byte_loses_only_the_batches_of_its_lines(
    whole: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, good = whole
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[at]))
    path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
    line = good[:at].count(b"\n")
    hit = {BATCHES[line]} | ({BATCHES[line + 1]} if good[at] == 10 and line < 5 else set())
    found = read(path.parent)
    assert set(found.batches) == set(BATCHES) - hit
    assert all(found.answers([batch]) == answers(batch) for batch in found.batches)
    assert found.set_aside


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "null",
        "7",
        '"text"',
        "[]",
        "{}",
        '{"sha256":1}',
        '{"sha256":"x"}',
        "\x00\xff",
        "[" * 999,
    ],
    ids=range(10),
)
def test_a_line_that_is_no_journal_line_is_set_aside(tmp_path: Path, raw: str) -> None:
    path = write(tmp_path, BATCHES[:2])
    path.write_text(raw + "\n" + path.read_text(), encoding="latin-1")
    found = read(tmp_path)
    assert set(found.batches) == set(BATCHES[:2]) and found.set_aside == ["one.jsonl line 1"]


ODD: tuple[Any, ...] = (
    [],
    {"task/0/0/0": 3},
    {"task/0/0/0": []},
    {"task/0/0/0": {"text": 3}},
    {"task/0/0/0": {"text": "x", "logprobs": 1, "tokens": 1, "stop": "eos", "margins": []}},
    {"task/0/0/0": {"loglikelihood": "x", "num_tokens": 1}},
    {"task/0/0/0": {"loglikelihood": -1.0}, "task/0/1/0": {}},
    {"x": {"text": "y", "logprobs": [], "tokens": [], "stop": "eos", "margins": []}},
)


@pytest.mark.parametrize("odd", ODD)
def test_a_sealed_line_that_holds_no_answer_is_named_or_set_aside(odd: Any, tmp_path: Path) -> None:
    """Each was a traceback of `finish`, where a stranger's shard brought it."""
    for change in ({"answers": odd}, {"batch": {}}, {"run": []}, {"answers": {}, "split": "x"}):
        line = {"schema": journal.SCHEMA, "run": RUN, "batch": BATCHES[0], "answers": odd, **change}
        sealed = line | {"sha256": journal.checksum(line)}
        (tmp_path / "one.jsonl").write_text(json.dumps(sealed) + "\n")
        found = read(tmp_path)
        if not found.batches:
            assert found.set_aside == ["one.jsonl line 1"]
            continue
        entry = {"task": "task", "targets": [[0, 0, 0, 0, part[5:]] for part in odd]}
        plan: Any = SimpleNamespace(body={"empty_texts": {}}, entries={BATCHES[0]: entry})
        with pytest.raises(EvalkitError, match=r"an answer to task is none.*one\.jsonl"):
            journal.Answers(plan, found).of("task")


def test_a_line_that_answers_another_batch_too_takes_no_answers_place(tmp_path: Path) -> None:
    """The last of the two counted, and the record was BROKEN."""
    write(tmp_path, BATCHES[:1])
    writer = journal.Writer(tmp_path, RUN, "two")
    writer.append(BATCHES[1], answers(BATCHES[1]) | answers(BATCHES[0]))
    writer.close()
    entries = {
        batch: {"task": "task", "targets": [[0, 0, 0, 0, part[5:]] for part in answers(batch)]}
        for batch in BATCHES[:2]
    }
    plan: Any = SimpleNamespace(body={"empty_texts": {}}, entries=entries)
    with pytest.raises(EvalkitError, match="asks for other requests"):
        journal.Answers(plan, read(tmp_path)).of("task")


def test_lines_of_another_run_or_plan_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path, BATCHES[:1])
    other = journal.Writer(tmp_path, "sha256:" + "b" * 64, "two")
    other.append(BATCHES[1], answers(BATCHES[1]))
    write(tmp_path, ["sha256:" + "f" * 64], "three")
    found = read(tmp_path)
    assert set(found.batches) == set(BATCHES[:1])
    assert found.set_aside == ["three.jsonl line 1", "two.jsonl line 1"]


def test_a_checksum_covers_every_key(tmp_path: Path) -> None:
    line = json.loads(write(tmp_path, BATCHES[:1]).read_text())
    assert journal.checksum(line) == line["sha256"]
    for key in line.keys() - {"sha256"}:
        assert journal.checksum(line | {key: "other"}) != line["sha256"]
    assert journal.checksum(line | {"new": 1}) != line["sha256"]


def test_two_segments_may_answer_a_batch_alike(tmp_path: Path) -> None:
    write(tmp_path, BATCHES[:3])
    write(tmp_path, BATCHES[2:], "two")
    found = read(tmp_path)
    assert len(found.batches) == 6 and found.by_segment == {"one": 3, "two": 3}
    write(tmp_path, BATCHES[:1], "zero")
    assert read(tmp_path).by_segment["zero"] == 0, "it is a segment of the run all the same"


def test_two_unequal_answers_to_a_batch_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, BATCHES[:1])
    other = journal.Writer(tmp_path, RUN, "two")
    other.append(BATCHES[0], answers(BATCHES[1]))
    with pytest.raises(EvalkitError, match=r"unequally by segments one and two") as caught:
        read(tmp_path)
    assert caught.value.code == Exit.FAILED


def test_the_order_of_lines_and_segments_changes_no_digest(tmp_path: Path) -> None:
    write(tmp_path / "a", BATCHES)
    shuffled = random.Random(1).sample(BATCHES, 6)
    write(tmp_path / "b", shuffled[:2], "late")
    write(tmp_path / "b", shuffled[2:], "early")
    first, second = (journal.assemble(read(tmp_path / name).answers()) for name in "ab")
    assert journal.digests(first) == journal.digests(second)


def test_an_answers_digest_is_that_of_the_pairs_sorted_by_request() -> None:
    given = {"b/10/0/0": {"text": "x"}, "b/2/0/0": {"text": "y"}, "a/0/0/0": {"text": "z"}}
    found = journal.digests(given)
    pairs = [["b/10/0/0", {"text": "x"}], ["b/2/0/0", {"text": "y"}]]  # as text, not as numbers
    assert list(found) == ["a", "b"] and found["b"] == canon.digest(pairs)


def test_a_task_whose_name_has_slashes_keeps_it() -> None:
    assert list(journal.digests({"org/task/0/0/0": {}})) == ["org/task"]


def test_the_windows_of_a_rolling_request_are_summed_in_their_order() -> None:
    windows = [0.1, 0.7, 1e-17, -0.8, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9, 1.0]
    parts = {
        f"task/0/0/0#{index}": {"loglikelihood": -value, "num_tokens": 2}
        for index, value in enumerate(windows)
    }
    backwards = dict(reversed(list(parts.items())))
    total = functools.reduce(operator.sub, windows, 0.0)  # sum() rounds otherwise from 3.12 on
    expected = {"loglikelihood": total, "num_tokens": 22}
    assert journal.assemble(backwards) == {"task/0/0/0": expected}


def test_an_infinite_window_makes_its_request_infinite() -> None:
    parts = {
        "task/0/0/0#0": {"loglikelihood": "-inf", "num_tokens": 1},
        "task/0/0/0#1": {"loglikelihood": -1.0, "num_tokens": 1},
    }
    (answer,) = journal.assemble(parts).values()
    assert canon.finite(answer) == {"loglikelihood": "-inf", "num_tokens": 2}
