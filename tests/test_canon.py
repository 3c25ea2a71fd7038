"""Canonical JSON, digests, and files that are written whole or not at all."""

import errno
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import steady

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@steady
@given(VALUES)
def test_what_is_written_is_read_back_but_for_infinities(value: Any) -> None:
    assert canon.loads(canon.dumps(value)) == canon.finite(value)


@steady
@given(VALUES)
def test_writing_what_was_read_gives_the_same_text(value: Any) -> None:
    text = canon.dumps(value)
    assert canon.dumps(canon.loads(text)) == text


@steady
@given(st.dictionaries(TEXT, SCALARS, max_size=6), st.randoms())
def test_the_order_of_keys_changes_no_digest(value: dict[str, Any], source: Any) -> None:
    keys = list(value)
    source.shuffle(keys)
    assert canon.digest({key: value[key] for key in keys}) == canon.digest(value)


@steady
@given(st.floats())
def test_a_float_keeps_every_bit_that_means_something(value: float) -> None:
    back = canon.number(canon.loads(canon.dumps(value)))
    same = struct.pack("<d", back) == struct.pack("<d", value)
    assert same or (math.isnan(back) and math.isnan(value))


def test_canonical_json_has_no_blanks_and_keeps_letters() -> None:
    assert canon.dumps({"b": [1, 0.1], "a": "né\n"}) == '{"a":"né\\n","b":[1,0.1]}'
    assert canon.dumps([float("nan"), float("inf"), -math.inf]) == '["nan","inf","-inf"]'


def test_a_digest_is_sha256_of_the_canonical_text() -> None:
    known = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert canon.digest({}) == f"sha256:{known}" == canon.digest_bytes(b"{}")


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', '[{"a":{"b":1,"b":1}}]'])
def test_duplicate_keys_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duplicate keys"):
        canon.loads(text)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "", "{", '{"a":1}x'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        canon.loads(text)


@pytest.mark.parametrize("value", ["1", "NaN", "infinity", None, True, [1], {}])
def test_only_numbers_and_the_three_words_are_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="not a number"):
        canon.number(value)


@pytest.mark.parametrize("text", ["{", '{"a":1,"a":1}', "\x00", "[" * 100_000])
def test_an_unreadable_file_is_one_line_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(EvalkitError) as caught:
        canon.read_json(path)
    line = str(caught.value)
    assert "plan.json is not readable JSON" in line and str(path) in line and "\n" not in line


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match=r"there is no run\.json") as caught:
        canon.read_json(tmp_path / "run.json")
    assert caught.value.code == Exit.MISSING


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run.json", tmp_path):
        with pytest.raises(EvalkitError):
            canon.read_json(path)
    with pytest.raises(EvalkitError):
        canon.write_atomic(tmp_path / "file" / "run.json", b"")
    with pytest.raises(EvalkitError):
        canon.make_folder(tmp_path / "file" / "inner")


def test_writing_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in ("text é", b"bytes", [b"two ", b"blocks"]):
        canon.write_atomic(path, data)
    assert path.read_bytes() == b"two blocks"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


class Full:
    """`os.fsync` on a disk that is full."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, _: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    canon.write_atomic(path, "old")
    with monkeypatch.context() as patched, pytest.raises(EvalkitError) as caught:
        patched.setattr(os, "fsync", Full(path))
        canon.write_atomic(path, "new")
    assert caught.value.code == Exit.MISSING and "No space left" in str(caught.value)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    canon.write_atomic(path, "new")
    assert path.read_text() == "new"


def test_two_containers_whose_processes_have_one_number_write_in_two_places(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert canon.beside(path) != canon.beside(path)


def test_a_full_disk_stops_an_appender_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = canon.Appender(tmp_path / "lines.jsonl")
    lines.append({"a": 1})
    monkeypatch.setattr(os, "fsync", Full(tmp_path))
    with pytest.raises(EvalkitError, match=r"can't write lines\.jsonl: No space left"):
        lines.append({"a": 2})


def test_a_folder_that_one_may_not_write_to_needs_another_place_and_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that a colleague shares with a group is to be read: "free space" helped nobody."""

    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", denied)
    with pytest.raises(EvalkitError, match="Permission denied") as caught:
        canon.write_atomic(tmp_path / "report.html", b"")
    assert "free space" not in caught.value.fix and "a place of your own" in caught.value.fix


def test_an_appended_line_is_on_the_disk_at_once(tmp_path: Path) -> None:
    lines = canon.Appender(tmp_path / "new" / "lines.jsonl")
    for number in range(3):
        lines.append({"number": number, "nan": math.nan})
        found = (tmp_path / "new" / "lines.jsonl").read_text().splitlines()
        assert found[number] == f'{{"nan":"nan","number":{number}}}' and len(found) == number + 1


def test_json_for_people_has_the_same_numbers(tmp_path: Path) -> None:
    value = {"b": [0.1 + 0.2, math.inf], "a": None}
    canon.write_json(tmp_path / "file.json", value)
    assert canon.dumps(json.loads((tmp_path / "file.json").read_text())) == canon.dumps(value)
    assert (tmp_path / "file.json").read_text().startswith('{\n  "a": null,\n')


def test_a_folder_and_its_parents_are_private(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        canon.make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").rglob("*")} == {0o700}


def test_a_batch_of_long_thoughts_is_read_and_as_many_lists_are_not() -> None:
    numbers = "[" + "0," * 25_000_000 + "0]"  # 256 texts of 32,768 tokens, three numbers each
    assert len(canon.loads(numbers)) == 25_000_001
    with pytest.raises(ValueError, match="over the limit of 10,000,000 values"):
        canon.loads("[" + "[]," * 10_000_000 + "0]")
