"""verify, the record: a good run is consistent; a record that is none, and files that it does not
list or lists otherwise, fail. No folder makes a traceback."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import runs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from forgeries import recorded
from runs import Run
from verifying import JOURNAL, failed, judged, line, resealed, scalars

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Status, verify
from evalkit.record.signing import attest, keys

pytestmark = pytest.mark.usefixtures("without_lm_eval")


def test_a_good_run_is_consistent(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert failed(report) == set()
    assert report.exit_code is Exit.OK
    assert report.lines()[-1].startswith("CONSISTENT: nothing in it contradicts itself")


def test_a_record_that_was_written_in_the_future_says_so(tmp_path: Path) -> None:
    """A clock was wrong, here or there: no lie, and nothing to rely on."""
    run = recorded(lambda r: r.update(created="2126-11-30T08:07:39.312Z"))
    report = judged(run, tmp_path)
    assert "2126-11-30T08:07:39.312Z" in line(report, "created", Status.WARN)
    assert report.verdict.startswith("CONSISTENT")


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
    run.extra[f"journal/{other}.jsonl"] = f"{canon.dumps(moved)}\n".encode()
    assert failed(judged(run, tmp_path)) == set()


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
