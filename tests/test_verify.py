"""verify: a good run is consistent, and whatever is changed in one is named by a failing check.

Two kinds of change. A careless one alters a file and leaves its digest. A careful one also puts
every digest right that it can: then what the parts say of each other must give it away.
"""

import copy
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs import Run

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.scoring import own_code, rescore
from evalkit.judge.verify import Report, Status, verify
from evalkit.judge.verify.checks import completeness, scores
from evalkit.record.reading import folder
from evalkit.record.signing import attest, keys

JOURNAL = f"journal/{runs.SEGMENT}.jsonl"


@pytest.fixture
def lm_eval() -> None:
    """For the tests in which lm-eval scores the samples again."""
    if rescore.installed() is None:
        pytest.skip("lm-eval isn't installed")


@pytest.fixture(autouse=True)
def without_lm_eval(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests are about the folder alone."""
    if "lm_eval" not in request.fixturenames:
        monkeypatch.setattr(rescore, "installed", lambda: None)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped suites that holds the tiny one, whole."""
    suites = tmp_path / "suites"
    suites.mkdir()
    run = Run()
    suite = {"name": "tiny", "tasks": [task["task"] for task in run.suite["tasks"]]}
    (suites / "tiny.lock.yaml").write_text(yaml.safe_dump(run.lock))
    (suites / "tiny.yaml").write_text(yaml.safe_dump(suite))
    monkeypatch.setattr(completeness, "SUITES", [suites])
    return suites


def failed(report: Report) -> set[str]:
    """The names of the failing checks."""
    return {check.name for check in report.checks if check.status is Status.FAIL}


def line(report: Report, name: str, status: Status) -> str:
    """The detail of the first check of that name and status."""
    return next(c.detail for c in report.checks if c.name == name and c.status is status)


def judged(run: Run, path: Path) -> Report:
    """Write a run and verify it."""
    return verify(run.write(path / "run"))


def resealed(path: Path, name: str, data: bytes) -> Path:
    """Replace a file of a written run and put its entry in record.json right."""
    (path / name).write_bytes(data)
    record = runs.read_record(path)
    record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
    runs.write_record(path, record)
    return path


# a good run


def test_a_good_run_is_consistent(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert failed(report) == set()
    assert report.exit_code is Exit.OK
    assert report.lines()[-1].startswith("CONSISTENT: nothing in it contradicts itself")


def test_a_users_own_suite_rests_on_the_authors_word(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert "the lock is the author's word" in line(report, "completeness", Status.WARN)


def test_a_shipped_suites_lock_is_the_verifiers(tmp_path: Path, shipped: Path) -> None:
    report = judged(Run(), tmp_path)
    assert failed(report) == set()
    assert "as the shipped lock asks" in line(report, "completeness", Status.PASS)


def test_a_limited_run_is_partial_and_its_documents_are_the_first(
    tmp_path: Path, shipped: Path
) -> None:
    report = judged(Run(limit=2), tmp_path)
    assert failed(report) == set()
    assert line(report, "whole", Status.WARN) == "partial: 2 documents a leaf task"
    rows = "1 leaf tasks' documents are the locked ones; 3 leaf tasks' documents are the first of"
    assert line(report, "rows", Status.PASS) == f"{rows} the locked ones"
    report = verify(Run(limit=1).write(tmp_path / "one"))
    assert failed(report) == set()
    rows = "4 leaf tasks' documents are the first of the locked ones"
    assert line(report, "rows", Status.PASS) == rows


def test_what_needs_lm_eval_is_skipped_and_counted(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert line(report, "scores", Status.PASS).startswith("11 samples of 3 tasks")
    skipped = line(report, "rescoring", Status.SKIP)
    assert skipped.startswith("1 tasks not scored again (bbh_cot_fewshot_navigate)")
    assert "lm-eval isn't installed" in skipped


def test_infinitely_unlikely_answers_are_legal(tmp_path: Path) -> None:
    def unlikely(part: str, answer: dict[str, Any]) -> dict[str, Any]:
        worst = part in ("arc_challenge/0/0/0", "mmlu_anatomy/1/3/0")
        never = {"loglikelihood": "-inf", "is_greedy": False}
        return answer | never if worst else answer

    assert failed(judged(Run(answer=unlikely), tmp_path)) == set()


def test_answers_in_several_segments_are_one_journal(tmp_path: Path) -> None:
    run = Run()
    other = "later"
    run.record["segments"][0]["batches"] -= 1
    run.record["segments"].append(runs.segment(other, 1))
    moved = runs.seal(run.lines.pop() | {"segment": other})
    run.extra[f"journal/{other}.jsonl"] = f"{runs.canonical(moved)}\n".encode()
    assert failed(judged(run, tmp_path)) == set()


# the record and its files


def test_a_newer_record_asks_for_an_upgrade(tmp_path: Path) -> None:
    run = Run()
    run.record["schema"] = "evalkit/record/5"
    run.record["surprise"] = 1
    report = judged(run, tmp_path)
    assert failed(report) == {"record"}
    assert report.exit_code is Exit.USAGE
    assert report.checks[0].detail == (
        "record from a newer schema (evalkit/record/5); this evalkit reads up to 4: upgrade evalkit"
    )
    assert report.lines()[-1].startswith("UNREADABLE")


@pytest.mark.parametrize("name", ["evalkit/record/0", "evalkit/other/4", "evalkit/record/4x", None])
def test_another_schema_is_not_a_record(tmp_path: Path, name: str | None) -> None:
    run = Run()
    run.record["schema"] = name
    report = judged(run, tmp_path)
    assert failed(report) == {"record"}
    assert report.exit_code is Exit.FAILED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema":"evalkit/record/4","schema":"x"}',
        "[" * 200_000,
        '{"a":NaN}',
    ],
    ids=["empty", "torn", "list", "null", "duplicate key", "deep", "NaN"],
)
def test_an_unreadable_record_is_a_failure_and_not_a_crash(tmp_path: Path, text: str) -> None:
    path = Run().write(tmp_path / "run")
    (path / "record.json").write_text(text)
    assert failed(verify(path)) == {"record"}


def test_a_folder_without_a_record_is_not_finished(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    (path / "record.json").unlink()
    report = verify(path)
    assert report.checks[0].detail == "there is no record.json"
    with pytest.raises(EvalkitError) as caught:
        verify(tmp_path / "nowhere")
    assert caught.value.code is Exit.MISSING


def files() -> list[str]:
    """Every file of a run but the record."""
    return [
        "plan.json",
        "plan.tokens",
        JOURNAL,
        "samples.jsonl.gz",
        "results.json",
        "lock.yaml",
        "lock.rows",
        "events/a.jsonl",
    ]


@pytest.mark.parametrize("name", files())
def test_a_changed_byte_fails_the_files_check(tmp_path: Path, name: str) -> None:
    path = Run().write(tmp_path / "run")
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(bytes(data))
    assert "files" in failed(verify(path))


@pytest.mark.parametrize("name", files())
def test_a_missing_file_fails_the_files_check(tmp_path: Path, name: str) -> None:
    path = Run().write(tmp_path / "run")
    (path / name).unlink()
    report = verify(path)
    assert "files" in failed(report)
    assert f"there is no {name}" in line(report, "files", Status.FAIL)


def test_an_unlisted_file_fails_but_for_the_two_that_come_later(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    attest.sign(path, keys.Private(Ed25519PrivateKey.generate()))
    (path / "report.html").write_text("<p>")
    assert failed(verify(path)) == set()
    (path / "events" / "more.jsonl").write_text("")
    report = verify(path)
    assert failed(report) == {"files"}
    assert "1 files that the record does not list: events/more.jsonl" in line(
        report, "files", Status.FAIL
    )


def test_a_link_in_the_folder_fails_whatever_it_points_to(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    (path / "plan.json").rename(tmp_path / "plan.json")
    (path / "plan.json").symlink_to(tmp_path / "plan.json")
    report = verify(path)
    assert "files" in failed(report)
    assert "symbolic link" in line(report, "files", Status.FAIL)


def test_a_folder_that_is_a_link_fails(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    (path / "journal").rename(tmp_path / "journal")
    (path / "journal").symlink_to(tmp_path / "journal")
    assert {"files", "journal"} <= failed(verify(path))


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    (path / "results.json").unlink()
    os.mkfifo(path / "results.json")
    assert {"files", "results"} <= failed(verify(path))


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "journal/../../secret", "a//b", "./a", "a\\b", "x\x1b[2J"],
)
def test_a_listed_name_that_leaves_the_folder_is_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("s")
    path = Run().write(tmp_path / "run")
    record = runs.read_record(path)
    record["files"][name] = {"size": 1, "sha256": runs.sha256("s")}
    runs.write_record(path, record)
    report = verify(path)
    assert {"files"} <= failed(report) <= {"files", "journal"}
    assert "is not the name of a file inside the folder" in line(report, "files", Status.FAIL)
    assert "\x1b" not in "\n".join(report.lines())


# ids, plan, journal


def scalars(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every scalar in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from scalars(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from scalars(item, (*path, index))
    else:
        yield path


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if value is None:
        return "something"
    for old, new in (("0", "1"), ("1", "0"), ("a", "b"), ("e", "a"), ("i", "a")):
        if old in value:
            return value.replace(old, new, 1)
    return f"{value}x"


# What only a signature can vouch for: nothing else in the folder says it.
AUTHORS_WORD = {"execution", "created", "command", "phases", "code", "segments", "alias"}
AUTHORS_WORD |= {"reference", "size", "parameters", "trust_remote_code", "stderr_method"}
MODEL_WORD = {"revision", "config", "chat_template", "dtype"}
ENVIRONMENT = {
    "packages",
    "image",
    "driver",
    "cuda",
    "cublas",
    "cudnn",
    "runtime",
    "lock",
    "python",
    "os",
    "cpu",
    "gpu",
}


def vouched(path: tuple[Any, ...]) -> bool:
    """Whether something else in the folder contradicts a changed field of the record."""
    if path[0] == "model":
        return path[1] not in AUTHORS_WORD | MODEL_WORD and path[-1] != "size"
    if path[0] == "environment":
        return path[1] not in ENVIRONMENT
    return path[0] not in AUTHORS_WORD and path[-1] != "stderr_method"


def test_every_field_of_the_record_that_something_vouches_for_is_checked(
    tmp_path: Path, shipped: Path
) -> None:
    path = Run().write(tmp_path / "run")
    good = runs.read_record(path)
    unnoticed = []
    for where in filter(vouched, scalars(good)):
        record = copy.deepcopy(good)
        parent = record
        for step in where[:-1]:
            parent = parent[step]
        parent[where[-1]] = changed(parent[where[-1]])
        runs.write_record(path, record)
        if verify(path).exit_code is Exit.OK:
            unnoticed.append(".".join(map(str, where)))
    assert unnoticed == []


@pytest.mark.parametrize("name", ["suite", "plan", "run", "answers"])
def test_each_id_follows_from_what_it_covers(tmp_path: Path, name: str) -> None:
    run = Run()
    run.record["ids"][name] = runs.digest("another")
    assert "ids" in failed(judged(run, tmp_path))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("numerics", "dtype", "bfloat16"), ("numerics", "tf32", True), ("engine", "level", "prefix")],
)
def test_a_changed_setting_no_longer_gives_the_run_id(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    run = Run()
    run.record[section][key] = value
    report = judged(run, tmp_path)
    assert "ids" in failed(report)
    assert "the run id" in line(report, "ids", Status.FAIL)


def replace_first_block(run: Run, block: bytes) -> None:
    """Give the first batch other token ids, and put sizes, offsets and digest right."""
    first, *others = run.plan["batches"]
    for other in others:
        other["offset"] += len(block) - first["size"]
    before, end = run.tokens[: first["offset"]], first["offset"] + first["size"]
    run.tokens = before + block + run.tokens[end:]
    first["size"] = len(block)
    run.plan["tokens"] = {"size": len(run.tokens), "sha256": runs.sha256(run.tokens)}


def test_a_changed_token_is_not_the_batch_that_was_planned(tmp_path: Path) -> None:
    run = Run()
    first = run.plan["batches"][0]
    block = bytearray(zlib.decompress(run.tokens[first["offset"] :][: first["size"]]))
    block[-4] ^= 1
    replace_first_block(run, zlib.compress(bytes(block), 6))
    report = judged(run, tmp_path)
    assert failed(report) == {"plan"}
    assert "has another digest" in line(report, "plan", Status.FAIL)


def test_a_bomb_in_the_plans_tokens_is_not_unpacked(tmp_path: Path) -> None:
    run = Run()
    replace_first_block(run, zlib.compress(bytes(200_000_000), 9))
    assert failed(judged(run, tmp_path)) == {"plan"}


def replace_trunk(run: Run, content: bytes, **entry: Any) -> None:
    """Give the plan's trunk another content and entry, and put sizes, offsets and digest right."""
    (trunk,) = run.plan["trunks"]
    block = zlib.compress(content, 9)
    run.tokens = block + run.tokens[trunk["size"] :]
    for batch in run.plan["batches"]:
        batch["offset"] += len(block) - trunk["size"]
    trunk |= {"size": len(block)} | entry
    run.plan["tokens"] = {"size": len(run.tokens), "sha256": runs.sha256(run.tokens)}


@pytest.mark.parametrize(
    ("content", "entry", "words"),
    [
        ([5, 6, 7, 9], {}, "has another digest"),
        ([5, 6, 7], {}, "another number of tokens"),
        ([5] * 100_000, {}, "another number of tokens"),
        ([5, 6, 7, 8], {"parent": 0}, "is not what the schema says"),
        ([5, 6, 7, 8], {"length": 10**9}, "bytes is claimed"),
        ([5, 6, 7, 8], {"offset": 1}, "does not start at the end of the one before"),
    ],
)
def test_a_trunk_is_the_one_that_was_planned(
    tmp_path: Path, content: list[int], entry: dict[str, int], words: str
) -> None:
    run = Run()
    replace_trunk(run, struct.pack(f"<{len(content)}I", *content), **entry)
    report = judged(run, tmp_path)
    assert "plan" in failed(report) and words in line(report, "plan", Status.FAIL)


def test_a_trunk_that_carries_nothing_is_found(tmp_path: Path) -> None:
    run = Run(leave_out=("mmlu_anatomy",))
    trunk, block = runs._trunk()
    run.plan["trunks"], run.tokens = [trunk], block + run.tokens
    for batch in run.plan["batches"]:
        batch["offset"] += len(block)
    run.plan["tokens"] = {"size": len(run.tokens), "sha256": runs.sha256(run.tokens)}
    assert "1 trunks carry no batch" in line(judged(run, tmp_path), "plan", Status.FAIL)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([0, 1, 5, 7], ""),
        ([0, 3, 5, 7], "has a target that its rows do not hold"),  # the row has three tokens
        ([2, 1, 5, 7], "has a target that its rows do not hold"),
        ([0, 1, 3, 7], "has a target that its rows do not hold"),  # scores inside the trunk
        ([0, 1, 6, 7], "has a target that its rows do not hold"),  # nothing is left to score
        ([0, 1, 5, -1], "has a target that its rows do not hold"),
    ],
)
def test_a_target_ends_in_its_row_and_scores_nothing_of_the_trunk(
    tmp_path: Path, target: list[int], words: str
) -> None:
    """Its author has put the batch's id right."""
    run = Run()
    first = run.plan["batches"][0]
    block = zlib.decompress(run.tokens[first["offset"] :][: first["size"]])
    first["targets"][0][:4] = target
    layout = {
        "kind": first["kind"],
        "settings": None,
        "trunk": run.plan["trunks"][0]["id"],
        "tokens": f"sha256:{runs.sha256(block)}",
        "targets": [[*t[:4], f"{first['task']}/{t[4]}"] for t in first["targets"]],
        "slots": 0,
        "chunk": runs.POLICY["chunk"],
    }
    first["id"] = runs.digest(layout)
    report = judged(run, tmp_path)
    assert words in line(report, "plan", Status.FAIL if words else Status.PASS)


@pytest.mark.parametrize(("level", "words"), [("prefix", "shares more"), ("none", "shares more")])
def test_a_plan_that_shares_more_than_its_level_is_found(
    tmp_path: Path, level: str, words: str
) -> None:
    run = Run()
    run.plan["level"] = level
    assert words in line(judged(run, tmp_path), "plan", Status.FAIL)


def test_a_plan_that_asks_one_request_less_is_found(tmp_path: Path) -> None:
    run = Run()
    dropped = run.plan["batches"].pop()
    run.lines.pop()
    run.tokens = run.tokens[: dropped["offset"]]
    run.plan["tokens"] = {"size": len(run.tokens), "sha256": runs.sha256(run.tokens)}
    run.plan["ids"]["plan"] = run.record["ids"]["plan"] = runs.plan_id(run.plan)
    run.record["ids"]["run"] = runs.run_id(run.record)
    run.lines = [runs.seal(old | {"run": run.record["ids"]["run"]}) for old in run.lines]
    report = judged(run, tmp_path)
    assert {"plan", "answers"} <= failed(report)
    assert "leaf tasks missing: whole_texts" in line(report, "plan", Status.FAIL)


def test_a_torn_line_is_nothing_where_its_batch_stands_elsewhere(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    data = (path / JOURNAL).read_bytes()
    torn = data.split(b"\n")[0][:100] + b"\n"
    report = verify(resealed(path, JOURNAL, torn + data + torn[:-1]))
    assert failed(report) == set()
    assert "2 torn lines stand elsewhere" in line(report, "journal", Status.PASS)


def test_a_torn_line_that_stands_nowhere_else_is_a_lost_batch(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    data = (path / JOURNAL).read_bytes()
    report = verify(resealed(path, JOURNAL, data[:-10]))
    assert "journal" in failed(report)
    assert "1 batches lost" in line(report, "journal", Status.FAIL)


def test_the_same_batch_twice_must_say_the_same(tmp_path: Path) -> None:
    run = Run()
    run.lines.append(run.lines[0])
    assert failed(judged(run, tmp_path)) == set()
    other = copy.deepcopy(run.lines[0])
    part = min(other["answers"])
    other["answers"][part]["loglikelihood"] -= 1
    run.lines.append(runs.seal(other))
    report = verify(run.write(tmp_path / "other"))
    assert failed(report) == {"journal"}
    assert "answered unequally" in line(report, "journal", Status.FAIL)


def test_an_altered_answer_without_its_checksum_is_a_lost_batch(tmp_path: Path) -> None:
    run = Run()
    part = min(run.lines[0]["answers"])
    run.lines[0]["answers"][part]["loglikelihood"] = -0.001
    report = judged(run, tmp_path)
    assert "1 batches lost" in line(report, "journal", Status.FAIL)


def test_a_resealed_altered_answer_is_not_what_the_record_digests(tmp_path: Path) -> None:
    run = Run()
    part = min(run.lines[0]["answers"])
    run.lines[0]["answers"][part]["loglikelihood"] = -0.001
    run.lines[0] = runs.seal(run.lines[0])
    report = judged(run, tmp_path)
    assert failed(report) == {"journal", "answers"}
    assert "1 leaf tasks have other answers digests: mmlu_anatomy" in line(
        report, "journal", Status.FAIL
    )


def test_an_answer_altered_in_the_journal_and_its_digests_is_not_what_was_scored(
    tmp_path: Path,
) -> None:
    run = Run()
    part = min(run.lines[0]["answers"])
    run.lines[0]["answers"][part]["loglikelihood"] = -0.001
    run.answers[part] = run.lines[0]["answers"][part]
    run.lines[0] = runs.seal(run.lines[0])
    run.record["answers"] = run.answer_digests()
    run.record["ids"]["answers"] = runs.digest(run.record["answers"])
    report = judged(run, tmp_path)
    assert failed(report) == {"answers"}
    assert f"{part} was answered" in line(report, "answers", Status.FAIL)


def test_lines_of_another_run_or_batch_or_segment_are_named(tmp_path: Path) -> None:
    for change, text in (
        ({"run": runs.digest("another run")}, "of another run"),
        ({"batch": runs.digest("another batch")}, "is not in the plan"),
        ({"segment": "another"}, "written by segment another"),
        ({"schema": "evalkit/journal/2"}, "not a journal line of schema 1"),
        ({"answers": {}}, "answers missing"),
    ):
        run = Run()
        run.lines.append(runs.seal(run.lines[0] | change))
        report = verify(run.write(tmp_path / runs.sha256(text)))
        assert failed(report) == {"journal"}, text
        assert text in line(report, "journal", Status.FAIL)


def test_an_answer_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    for value in ({"loglikelihood": "-1", "is_greedy": True, "num_tokens": 1}, 5, {"text": "a"}):
        run = Run()
        part = min(run.lines[0]["answers"])
        run.lines[0]["answers"][part] = value
        run.lines[0] = runs.seal(run.lines[0])
        report = verify(run.write(tmp_path / runs.sha256(str(value))))
        assert "is not a loglikelihood answer" in line(report, "journal", Status.FAIL)


# completeness and data


def test_a_collapsed_group_is_not_the_suite(tmp_path: Path, shipped: Path) -> None:
    """A group that lm-eval collapsed into one leaf task, in a run that agrees with itself."""
    run = Run(leave_out=("mmlu_anatomy",))
    report = judged(run, tmp_path)
    assert {"completeness"} <= failed(report) <= {"completeness", "data"}
    detail = line(report, "completeness", Status.FAIL)
    assert "lock.yaml is not the shipped one" in detail
    assert "1 leaf tasks missing: mmlu_anatomy" in detail


def test_fewer_documents_than_the_lock_asks_are_found(tmp_path: Path, shipped: Path) -> None:
    run = Run(limit=3)
    run.record["suite"] |= {"limit": None, "partial": False}
    run.record["ids"]["suite"] = run.suite_id()
    report = judged(run, tmp_path)
    assert {"completeness", "whole"} <= failed(report)
    assert "arc_challenge: samples 3, the lock asks 4" in "\n".join(
        check.detail for check in report.checks
    )


def test_a_dropped_sample_is_found(tmp_path: Path) -> None:
    run = Run()
    del run.samples[1]
    report = judged(run, tmp_path)
    assert {"completeness", "plan", "answers", "data"} <= failed(report)
    assert "arc_challenge document 2 stands where 1 should" in line(
        report, "completeness", Status.FAIL
    )


def test_a_sample_that_stands_twice_is_found(tmp_path: Path) -> None:
    run = Run()
    run.samples.insert(1, run.samples[0])
    report = judged(run, tmp_path)
    assert "completeness" in failed(report)
    assert "stands twice" in line(report, "completeness", Status.FAIL)


def test_samples_out_of_order_are_found(tmp_path: Path) -> None:
    run = Run()
    run.samples.reverse()
    assert "completeness" in failed(judged(run, tmp_path))


def test_an_exchanged_document_is_not_the_locked_one(tmp_path: Path) -> None:
    run = Run()
    sample = run.samples[0]
    sample["doc"] = sample["doc"] | {"question": "easier?"}
    report = judged(run, tmp_path)
    assert failed(report) == {"samples"}
    sample["doc_hash"] = runs.doc_hash(sample["doc"])
    run.record["tasks"]["arc_challenge"]["questions"] = runs.digest(
        [
            [s["doc_id"], s["doc_hash"], s["target_hash"]]
            for s in run.samples
            if s["task"] == "arc_challenge"
        ]
    )
    report = verify(run.write(tmp_path / "careful"))
    assert failed(report) == {"rows"}


def test_the_questions_and_prompts_digests_are_recomputed(tmp_path: Path) -> None:
    for name in ("questions", "prompts"):
        run = Run()
        run.record["tasks"]["arc_challenge"][name] = runs.digest([])
        assert failed(verify(run.write(tmp_path / name))) == {"data"}


def test_another_dataset_revision_is_not_the_locked_one(tmp_path: Path) -> None:
    run = Run()
    run.record["tasks"]["arc_challenge"]["dataset"]["revision"] = "f" * 40
    assert failed(judged(run, tmp_path)) == {"data"}


def test_other_shots_than_the_shipped_suites_are_a_warning(tmp_path: Path, shipped: Path) -> None:
    suite = yaml.safe_load((shipped / "tiny.yaml").read_text())
    suite["tasks"][0] = {"task": suite["tasks"][0], "num_fewshot": 5}
    (shipped / "tiny.yaml").write_text(yaml.safe_dump(suite))
    report = judged(Run(), tmp_path)
    assert "not asked as the shipped tiny asks: tasks" in line(report, "settings", Status.WARN)


def test_shots_that_the_suite_gives_are_the_tasks(tmp_path: Path) -> None:
    run = Run()
    run.record["suite"]["tasks"][0]["num_fewshot"] = 5
    report = judged(run, tmp_path)
    assert "arc_challenge: num_fewshot is 0, recorded 5" in "\n".join(report.lines())


def test_a_lock_that_would_blow_up_is_not_loaded(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    report = verify(resealed(path, "lock.yaml", bomb.encode()))
    assert "it uses YAML aliases" in line(report, "completeness", Status.FAIL)
    report = verify(resealed(path, "lock.yaml", b"[" * 100_000))
    assert "nested too deep" in line(report, "completeness", Status.FAIL)


# samples, answers, scores


def test_a_changed_response_in_a_sample_is_not_the_journals(tmp_path: Path) -> None:
    run = Run()
    run.samples[0]["resps"][0][0] = ["-0.5", "True"]
    run.samples[0]["filtered_resps"][0] = ["-0.5", "True"]
    report = judged(run, tmp_path)
    assert "answers" in failed(report)
    assert "arc_challenge/0/0/0 was answered" in line(report, "answers", Status.FAIL)


@pytest.mark.parametrize("name", ["target", "prompt"])
def test_a_changed_target_or_prompt_is_not_what_its_hash_says(tmp_path: Path, name: str) -> None:
    run = Run()
    if name == "target":
        run.samples[0]["target"] = "0"
    else:
        for argument in run.samples[0]["arguments"].values():
            argument["arg_0"] = "Psst, it is B. " + argument["arg_0"]
    report = judged(run, tmp_path)
    assert "samples" in failed(report)
    assert f"is not what its {name}_hash says" in line(report, "samples", Status.FAIL)


def set_score(run: Run, metric: str, value: float) -> None:
    """Give one sample a score, and put every aggregate right that follows from it."""
    sample = next(s for s in run.samples if s.get(metric, value) != value)
    sample[metric] = value
    run.aggregate()


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_a_raised_score_with_every_aggregate_put_right_is_not_the_answers(
    tmp_path: Path, metric: str
) -> None:
    run = Run()
    set_score(run, metric, 1.0)
    report = judged(run, tmp_path)
    assert failed(report) == {"scores"}
    assert f"{metric} is 1.0, should be 0.0" in line(report, "scores", Status.FAIL)


def test_a_raised_pair_of_a_perplexity_is_not_the_answers(tmp_path: Path) -> None:
    run = Run()
    sample = run.samples[-1]
    assert sample["task"] == "whole_texts"
    sample["word_perplexity"] = [-0.5, sample["word_perplexity"][1]]
    report = judged(run, tmp_path)
    assert failed(report) == {"scores", "aggregates"}


def test_a_score_raised_in_the_record_alone_is_found_twice(tmp_path: Path) -> None:
    run = Run()
    run.record["tasks"]["mmlu_anatomy"]["metrics"]["acc,none"]["value"] = 0.9
    report = judged(run, tmp_path)
    assert {"aggregates", "results"} <= failed(report)
    assert "mmlu_anatomy acc,none is 0.9, the samples give" in line(
        report, "aggregates", Status.FAIL
    )


def test_a_score_raised_in_record_and_results_is_not_the_samples(tmp_path: Path) -> None:
    run = Run()
    run.record["groups"]["science"]["metrics"]["acc,none"]["value"] = 0.9
    for section in ("results", "groups"):
        run.results[section]["science"]["acc,none"] = 0.9
    report = judged(run, tmp_path)
    assert failed(report) == {"aggregates"}


@pytest.mark.parametrize("name", ["mmlu_anatomy", "science"])
def test_a_narrowed_standard_error_is_found(tmp_path: Path, name: str) -> None:
    run = Run()
    section = "groups" if name == "science" else "tasks"
    metric = run.record[section][name]["metrics"]["acc,none"]
    metric["stderr"] /= 2
    for entry in (run.results["results"], run.results["groups"]):
        if name in entry:
            entry[name]["acc_stderr,none"] = metric["stderr"]
    assert failed(judged(run, tmp_path)) == {"aggregates"}


def test_a_group_not_weighted_by_size_is_said_to_be_one(tmp_path: Path) -> None:
    run = Run()
    run.lock["group_scores"]["science"]["metrics"]["acc"]["weight_by_size"] = False
    leaves = [run.record["tasks"][leaf]["metrics"]["acc,none"] for leaf in run.groups["science"]]
    value = sum(metric["value"] for metric in leaves) / 2
    error = sum(metric["stderr"] ** 2 for metric in leaves) ** 0.5 / 2
    run.record["groups"]["science"]["metrics"]["acc,none"] |= {"value": value, "stderr": error}
    for section in ("results", "groups"):
        run.results[section]["science"] |= {"acc,none": value, "acc_stderr,none": error}
    report = judged(run, tmp_path)
    assert failed(report) == set()
    assert "plain means, not weighted by size: science" in line(report, "aggregates", Status.PASS)


def test_an_aggregation_that_only_lm_eval_has_is_skipped_by_name(tmp_path: Path) -> None:
    run = Run()
    run.configs["arc_challenge"]["metric_list"][1] = {"metric": "acc_norm", "aggregation": "f1"}
    report = judged(run, tmp_path)
    assert "arc_challenge acc_norm,none (f1)" in line(report, "aggregates", Status.SKIP)


def test_values_that_no_run_has_are_out_of_range(tmp_path: Path) -> None:
    for key, value in (("acc,none", 1.5), ("acc,none", "nan"), ("acc_norm,none", -0.1)):
        run = Run()
        run.record["tasks"]["arc_challenge"]["metrics"][key]["value"] = value
        report = verify(run.write(tmp_path / f"{key}{value}"))
        assert "ranges" in failed(report)
    run = Run()
    run.record["tasks"]["whole_texts"]["metrics"]["word_perplexity,none"]["value"] = 0.5
    assert "ranges" in failed(verify(run.write(tmp_path / "perplexity")))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not gzip",
        gzip.compress(b'{"task": 1}\n', mtime=0),
        gzip.compress(b"[]\n" * 5, mtime=0),
        b"\x1f\x8b",
    ],
    ids=["empty", "not gzip", "wrong types", "lists", "torn"],
)
def test_unreadable_samples_are_failures_and_not_a_crash(tmp_path: Path, text: bytes) -> None:
    path = Run().write(tmp_path / "run")
    assert {"completeness", "plan"} <= failed(verify(resealed(path, "samples.jsonl.gz", text)))


def test_a_gzip_bomb_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MAX_STREAM", 150_000)
    monkeypatch.setattr(folder, "MAX_LINE", 100_000)
    path = Run().write(tmp_path / "run")
    cases = ((b"\n" * 200_000, "is over the limit of"), (b"x" * 120_000, "longer than"))
    for line_of, text in cases:
        report = verify(resealed(path, "samples.jsonl.gz", gzip.compress(line_of)))
        assert text in "\n".join(check.detail for check in report.checks)


# health and the rest


def nan_in(part: str) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """An `answer` for Run that makes one answer NaN."""
    return lambda name, answer: answer | {"loglikelihood": "nan"} if name == part else answer


def test_a_nan_answer_fails_health_and_nothing_else(tmp_path: Path) -> None:
    """lm-eval alone would score such a sample right: numpy's argmax calls a NaN the best."""
    run = Run(answer=nan_in("arc_challenge/1/1/0"))
    assert next(s for s in run.samples if s["doc_id"] == 1)["acc"] == 0.0
    report = judged(run, tmp_path)
    assert failed(report) == {"health"}
    assert line(report, "health", Status.FAIL) == "1 samples with a NaN answer"


def test_a_nan_answer_that_scores_is_found(tmp_path: Path) -> None:
    run = Run(answer=nan_in("arc_challenge/1/1/0"))
    next(s for s in run.samples if s["doc_id"] == 1)["acc"] = 1.0
    assert {"scores", "aggregates", "health"} <= failed(judged(run, tmp_path))


def test_a_nan_answer_that_the_record_does_not_own_up_to_is_found(tmp_path: Path) -> None:
    run = Run(answer=nan_in("arc_challenge/1/1/0"))
    run.record["health"]["nan_answers"] = 0
    assert failed(judged(run, tmp_path)) == {"health"}


def test_an_altered_harness_fails_and_an_unknown_one_warns(tmp_path: Path) -> None:
    run = Run()
    run.record["environment"]["harness_intact"] = False
    assert failed(judged(run, tmp_path)) == {"health"}
    run.record["environment"]["harness_intact"] = {"unknown": "no RECORD"}
    report = verify(run.write(tmp_path / "unknown"))
    assert "no RECORD" in line(report, "health", Status.WARN)


def test_counts_that_the_folder_can_tell_are_told(tmp_path: Path) -> None:
    names = ("cut_generations", "empty_generations", "truncated_prompts", "double_bos")
    for name in (*names, "answers_not_found", "exact_ties"):
        run = Run()
        run.record["health"][name] = 1
        assert failed(verify(run.write(tmp_path / name))) == {"health"}, name


def test_what_should_be_zero_is_a_warning_with_its_count(tmp_path: Path) -> None:
    def cut(part: str, answer: dict[str, Any]) -> dict[str, Any]:
        if "text" not in answer:
            return answer
        longest = {"tokens": [5] * 32, "logprobs": [-1.0] * 32, "margins": [1.0] * 32}
        return answer | longest | {"stop": "length"}

    run = Run(answer=cut)
    run.record["health"] |= {"cut_generations": 3, "split_batches": 1}
    run.lines[0] = runs.seal(run.lines[0] | {"split": 2})
    report = judged(run, tmp_path)
    assert failed(report) == set()
    detail = line(report, "health", Status.WARN)
    assert "3 generations cut at the length limit" in detail
    assert "1 batches split because memory ran out" in detail


@pytest.mark.parametrize("recorded", [0, 2])
def test_another_count_of_split_batches_than_the_journals_is_found(
    tmp_path: Path, recorded: int
) -> None:
    run = Run()
    run.lines[0] = runs.seal(run.lines[0] | {"split": 1})
    run.record["health"]["split_batches"] = recorded
    assert "split_batches is 1" in line(judged(run, tmp_path), "health", Status.FAIL)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, "1", None])
def test_a_split_that_is_no_depth_is_no_journal_line(tmp_path: Path, depth: Any) -> None:
    run = Run()
    run.lines[0] = runs.seal(run.lines[0] | {"split": depth})
    assert "journal" in failed(judged(run, tmp_path))


# the engine


def made_by(run: Run, engine: dict[str, Any], numerics: dict[str, Any] | None = None) -> Run:
    """The run as if another engine had answered it, with the ids that follow."""
    run.record["engine"] |= engine
    run.record["numerics"] |= numerics or {}
    run.record["ids"]["run"] = runs.run_id(run.record)
    run.lines = [run.line(batch) for batch in run.plan["batches"]]
    return run


def test_the_engine_has_a_line_that_says_how_it_computed(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert line(report, "engine", Status.PASS) == "evalkit, level tree, native float32"
    assert "bit-repeatable" not in report.lines()[-1]


@pytest.mark.parametrize(
    ("engine", "numerics", "words"),
    [
        ({"bit_repeatable": False}, {}, "evalkit claims bit_repeatable False"),
        ({"name": "lm-eval:hf"}, {}, "lm-eval:hf claims bit_repeatable True"),
        ({"name": "lm-eval:hf", "bit_repeatable": False}, {}, "has level tree, not none"),
        ({"args": {"a": "b"}}, {}, "has no arguments"),
        ({"versions": {"lm_eval": "1"}}, {}, "has no arguments and no versions"),
        ({}, {"tf32": {"unknown": "why"}}, "numerics that it says it does not know"),
    ],
)
def test_an_engine_that_claims_what_it_is_not_is_found(
    tmp_path: Path, engine: dict[str, Any], numerics: dict[str, Any], words: str
) -> None:
    report = judged(made_by(Run(), engine, numerics), tmp_path)
    assert failed(report) - {"agreement"} == {"engine"}
    assert words in line(report, "engine", Status.FAIL)


def untold(part: str, answer: dict[str, Any]) -> dict[str, Any]:
    """A generation of which the engine gives the text only."""
    if "text" not in answer:
        return answer
    why = {"unknown": "the text only"}
    return answer | dict.fromkeys(("tokens", "logprobs", "margins", "stop"), why)


def test_only_a_foreign_engine_may_leave_an_answers_parts_untold(tmp_path: Path) -> None:
    own = judged(Run(answer=untold), tmp_path)
    assert "is not a generate_until answer" in line(own, "journal", Status.FAIL)
    run = made_by(Run(answer=untold), {"name": "lm-eval:hf", "bit_repeatable": False})
    run.record["health"]["cut_generations"] = {"unknown": "the text only"}
    report = judged(run, tmp_path / "foreign")
    assert failed(report) == {"engine"}  # its plan's level is A here; all else is right
    assert "at the length limit: unknown (the text only)" in line(report, "health", Status.WARN)
    assert report.caveat.startswith("not bit-repeatable (lm-eval:hf)")


def test_a_count_that_can_be_known_may_not_be_called_unknown(tmp_path: Path) -> None:
    run = Run()
    run.record["health"]["cut_generations"] = {"unknown": "who knows"}
    assert "cut_generations" in line(judged(run, tmp_path), "health", Status.FAIL)


def test_segments_on_hardware_that_is_not_known_are_not_called_alike(tmp_path: Path) -> None:
    run = Run()
    run.record["segments"][0]["hardware"] = {"unknown": "a server computed it"}
    report = judged(run, tmp_path)
    assert line(report, "segments", Status.WARN) == "what they ran on is not known"


def test_segments_on_unlike_hardware_are_a_warning(tmp_path: Path) -> None:
    run = Run()
    run.record["segments"].append(runs.segment("later", 0, hardware="another processor"))
    report = judged(run, tmp_path)
    assert failed(report) == set()
    assert "2 kinds of hardware" in line(report, "segments", Status.WARN)


def test_a_journal_of_an_undescribed_segment_is_named(tmp_path: Path) -> None:
    run = Run()
    run.record["segments"] = [runs.segment("another", 1)]
    report = judged(run, tmp_path)
    assert "segments that the record does not describe" in line(report, "journal", Status.FAIL)


# nothing that a record brings is run


def payloads(marker: Path) -> list[str]:
    """Texts that write the marker where something runs them."""
    command = f"touch {marker}"
    return [
        "{{cycler.__init__.__globals__.os.popen('" + command + "').read()}}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %}",
        f"!function os.system('{command}')",
        f"!!python/object/apply:os.system ['{command}']",
        f"__import__('os').system('{command}')",
    ]


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "key", ["doc_to_text", "doc_to_target", "doc_to_choice", "process_results", "target_delimiter"]
)
def test_lm_eval_runs_no_payload_of_a_recorded_config(
    tmp_path: Path, number: int, key: str
) -> None:
    payload = payloads(tmp_path / "marker")[number]
    run = Run()
    run.configs["arc_challenge"][key] = payload
    report = judged(run, tmp_path)
    assert f"arc_challenge ({key})" in line(report, "configs", Status.WARN)
    assert not (tmp_path / "marker").exists()


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_is_not_got_around_by_another_config_in_a_shipped_suite(
    tmp_path: Path, shipped: Path
) -> None:
    run = Run()
    run.configs["arc_challenge"]["process_results"] = "def process_results(doc, results): ..."
    set_score(run, "acc", 1.0)
    report = judged(run, tmp_path)
    assert failed(report) == {"configs", "scoring"}
    assert "arc_challenge (process_results)" in line(report, "configs", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("number", range(5))
def test_lm_eval_runs_no_payload_of_a_document_or_an_answer(tmp_path: Path, number: int) -> None:
    payload = payloads(tmp_path / "marker")[number]

    def say(part: str, answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"text": payload} if "text" in answer else answer

    run = Run(answer=say)
    for sample in run.samples:
        sample["doc"] = dict.fromkeys(sample["doc"], payload)
    report = judged(run, tmp_path)
    assert {"samples", "rescoring"} <= failed(report)
    assert not (tmp_path / "marker").exists()


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_loads_no_task_from_a_path_that_the_record_names(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    marker = tmp_path / "marker"
    (tasks / "utils.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef f(x): return x\n")
    (tasks / "evil.yaml").write_text("task: evil\nprocess_docs: !function utils.f\n")
    run = Run()
    config = run.configs["whole_texts"]
    config |= {"process_docs": "!function utils.f", "dataset_path": str(tasks)}
    config |= {"metadata": {"config_source": str(tasks / "evil.yaml")}}
    run.record["command"]["config"]["include_path"] = str(tasks)
    run.lock["tasks"]["../../tasks/evil"] = run.lock["tasks"].pop("whole_texts")
    verify(run.write(tmp_path / "run"))
    assert not marker.exists()


def test_a_suite_name_is_never_made_into_a_path(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "evil.lock.yaml").write_text("!!python/object/apply:os.system ['true']")
    assert completeness.shipped("../evil", "lock.yaml") is None
    assert completeness.shipped("*", "lock.yaml") is None
    assert completeness.shipped("tiny", "lock.yaml") is not None


def test_a_record_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    run = Run()
    run.extra["events/\x1b[2J\u202e.jsonl"] = b""
    run.samples[0]["filter"] = "\x1b]0;owned\x07"
    run.record["groups"]["science"]["subtasks"] = ["\x1b[31mred"]
    text = "\n".join(judged(run, tmp_path).lines())
    assert all(c.isprintable() or c == "\n" for c in text)


# with lm-eval, and without anything


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_scores_a_good_run_the_same(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert failed(report) == set()
    assert line(report, "rescoring", Status.PASS).startswith("12 samples of 3 tasks scored again")
    report = verify(Run(answer=nan_in("arc_challenge/1/1/0")).write(tmp_path / "nan"))
    assert failed(report) == {"health"}


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_scores_a_raised_generation_otherwise(tmp_path: Path) -> None:
    run = Run()
    set_score(run, "exact_match", 1.0)
    report = judged(run, tmp_path)
    assert failed(report) == {"rescoring"}
    assert "exact_match is 1.0, should be 0.0" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_filters_otherwise_where_a_filtered_answer_is_changed(tmp_path: Path) -> None:
    run = Run()
    sample = next(s for s in run.samples if s["task"] == "bbh_cot_fewshot_navigate")
    sample["filtered_resps"] = ["Yes"]
    report = judged(run, tmp_path)
    assert failed(report) == {"rescoring"}
    assert "filter get-answer gives" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("leaf", ["arc_challenge", "mmlu_anatomy", "bbh_cot_fewshot_navigate"])
def test_lm_eval_knows_another_target_though_its_hashes_are_right(
    tmp_path: Path, leaf: str
) -> None:
    run = Run()
    mine = [sample for sample in run.samples if sample["task"] == leaf]
    mine[0]["target"] = "2"
    mine[0]["target_hash"] = runs.sha256("2")
    questions = [[s["doc_id"], s["doc_hash"], s["target_hash"]] for s in mine]
    run.record["tasks"][leaf]["questions"] = runs.digest(questions)
    report = judged(run, tmp_path)
    assert "rescoring" in failed(report)
    assert "its target is 2, lm-eval says" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_knows_exchanged_choices_and_a_prompt_that_ends_otherwise(tmp_path: Path) -> None:
    run = Run()
    arguments = run.samples[0]["arguments"]
    first, second = arguments["gen_args_0"], arguments["gen_args_1"]
    first["arg_1"], second["arg_1"] = second["arg_1"], first["arg_1"]
    report = judged(run, tmp_path)
    assert "its requests are not the task's" in line(report, "rescoring", Status.FAIL)
    run = Run()
    for argument in run.samples[0]["arguments"].values():
        argument["arg_0"] += " (B)"
    report = verify(run.write(tmp_path / "prompt"))
    assert "does not end with the task's question" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_leaves_tasks_that_score_by_code_of_their_own(tmp_path: Path) -> None:
    for name in ("ifeval", "humaneval", "mmlu", "no_such_task"):
        with pytest.raises(own_code.Refused):
            rescore.task(name, {}, {"a": 1}, chat=False)


def test_verify_needs_neither_lm_eval_nor_torch_nor_a_network(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    code = f"""
        import socket, sys
        for name in ("lm_eval", "torch", "datasets", "transformers", "numpy", "huggingface_hub"):
            sys.modules[name] = None
        socket.socket.connect = None
        from pathlib import Path
        from evalkit.judge.verify import verify
        print("\\n".join(verify(Path({str(path)!r})).lines()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert {text.split()[0] for text in lines[:-1]} <= {"PASS", "WARN", "SKIP"}
    assert lines[-1].startswith("CONSISTENT")
    assert any(text.startswith("SKIP  rescoring") for text in lines)


def test_verify_imports_nothing_heavy_where_lm_eval_is_not_needed() -> None:
    code = "import sys, evalkit.judge.verify; heavy = 'torch', 'lm_eval', 'datasets', 'numpy'"
    code += "; print([m for m in heavy if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("seed", range(40))
def test_no_change_of_a_value_makes_a_traceback(tmp_path: Path, seed: int) -> None:
    """Any scalar of any file by any other value, its digest put right."""
    rng = random.Random(seed)
    path = Run().write(tmp_path / "run")
    name = rng.choice(["record.json", "plan.json", JOURNAL, "samples.jsonl.gz", "results.json"])
    data = (path / name).read_bytes()
    texts = gzip.decompress(data).splitlines() if name.endswith("gz") else data.splitlines()
    texts = [data] if name in ("record.json", "results.json") else texts
    number = rng.randrange(len(texts))
    value = json.loads(texts[number])
    places = list(scalars(value)) + [(key,) for key in value]
    for _ in range(rng.choice([1, 1, 5])):
        where = rng.choice(places)
        _put(value, where, rng.choice([None, -1, 1e308, "", "nan", [], {}, [[]], {"": {}}, True]))
    if name.startswith("journal"):
        value = runs.seal(value) if isinstance(value, dict) else value
    texts[number] = json.dumps(value).encode()
    joined = b"\n".join(texts) + b"\n"
    joined = gzip.compress(joined) if name.endswith("gz") else joined
    if name == "record.json":
        (path / name).write_bytes(joined)
    else:
        resealed(path, name, joined)
    report = verify(path)
    assert report.lines()[-1].split(":")[0] in ("BROKEN", "CONSISTENT", "UNREADABLE")


def _put(value: Any, where: tuple[Any, ...], new: Any) -> None:
    """Replace what lies at a path; an earlier change may have cut the path short."""
    try:
        for step in where[:-1]:
            value = value[step]
        value[where[-1]] = new
    except (LookupError, TypeError):
        return


# the report


def test_failures_come_first_and_the_verdict_last(tmp_path: Path) -> None:
    run = Run()
    run.record["tasks"]["arc_challenge"]["questions"] = runs.digest([])
    report = judged(run, tmp_path)
    lines = report.lines()
    assert lines[0].startswith("FAIL  data")
    assert lines[-1].startswith("BROKEN: 1 of ")
    assert report.exit_code is Exit.FAILED
    assert report.to_json()["exit_code"] == 1


def test_many_problems_are_counted_and_the_first_are_told(tmp_path: Path) -> None:
    run = Run()
    for sample in run.samples:
        sample["prompt_hash"] = runs.sha256("other")
    detail = line(judged(run, tmp_path), "samples", Status.FAIL)
    assert detail.endswith("and 11 more")
    assert detail.count(";") == 3


def test_a_generation_may_say_nan() -> None:
    sample = {"resps": [["nan"]]}
    assert scores.has_nan(sample, "loglikelihood_rolling")
    assert not scores.has_nan(sample, "generate_until")
    assert scores.has_nan({"resps": [[["-1.0", "False"]], [["nan", "False"]]]}, "multiple_choice")


def test_equal_numbers_are_equal_to_a_billionth() -> None:
    assert scores.same(1, 1.0)
    assert scores.same("nan", float("nan"))
    assert scores.same([1.0, "-inf"], (1.0, float("-inf")))
    assert not scores.same(1.0, 1.0 + 1e-6)
    assert not scores.same("1.0", 1.0)
    assert not scores.same(None, 0.0)
