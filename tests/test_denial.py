"""Whatever a reader is given, each command ends in the time and memory that bounded.py says, opens
nothing but plain files, and says in a line what is wrong; one bad input leaves the others judged.

Each input is made smaller by default, and at its size by `make test-trust-full`, which writes the
table of docs/limits.md.
"""

import json
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import denial
import pages
import pytest
import support
from denial import INPUTS, Input, odd_sample
from runs import Run
from support import call, spawn
from test_judge import plain

from evalkit.base import bounded, canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs import suite as suites
from evalkit.inputs import untrusted
from evalkit.judge.verify import Wanted, judge, results_folder

pytestmark = pytest.mark.usefixtures("without_lm_eval")

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
WRITING = bool(os.environ.get("EVALKIT_WRITE_TABLE"))


def read_by(asked: Input, place: Path, scale: float) -> list[str | Path]:
    """The command line that reads an input."""
    made = asked.make(place, scale)
    words: list[str | Path] = [*asked.command, made]
    if asked.command == ("check-table",):
        (place / "beside").mkdir()
        words.append(denial.run(place / "beside"))
    return [*words, "--out", place / "out"] if asked.command == ("import",) else words


@pytest.mark.parametrize("asked", INPUTS, ids=lambda i: f"{i.what} {i.command[0]}")
def test_an_input_that_takes_everything_ends_in_a_line(asked: Input, tmp_path: Path) -> None:
    began = time.process_time() + sum(os.times()[2:4])
    ran = call(*read_by(asked, tmp_path, 0.001))
    taken = time.process_time() + sum(os.times()[2:4]) - began
    assert ran.code in (0, 1, 2, 3) and "a bug" not in ran.err, ran.err + ran.traceback
    assert taken < 20


@pytest.mark.trust_full
@pytest.mark.timeout(1800)
def test_the_times_of_such_inputs_are_those_of_the_page(tmp_path: Path) -> None:
    """Seconds of processor time, and the memory of the largest process."""
    lines = []
    for number, asked in enumerate(INPUTS):
        place = tmp_path / str(number)
        place.mkdir()
        words = read_by(asked, place, 1.0)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = spawn(*words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert ran.code in (0, 1, 2, 3) and "a bug" not in ran.err, (asked, ran.err)
        assert seconds < bounded.SECONDS + 10, asked
        told = (ran.out + ran.err).strip().splitlines()[-1]
        limit = "over the limit" in ran.out + ran.err
        end = "over a limit" if limit else told.partition(":")[0][:12] if ran.out else "refused"
        end = {"BROKEN": "BROKEN", "CONSISTENT": "CONSISTENT"}.get(end, end if limit else "refused")
        lines.append(f"| {asked.what} | `{' '.join(asked.command)}` | {end} | {seconds:.0f} |")
    if WRITING:
        pages.write(PAGE, lines)


def slow() -> int:
    while True:
        pass


def large() -> int:
    return len([b"x" * (1 << 20) for _ in range(3000)])


def wrong() -> int:
    raise ValueError("of our own")


def refused() -> int:
    raise EvalkitError("not so", where="there", fix="do this", code=Exit.MISSING)


def test_a_child_ends_at_its_limits_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1)
    with pytest.raises(bounded.OverLimit, match="over the limit of 1 seconds of processor time"):
        bounded.run(slow, [tmp_path])
    monkeypatch.setattr(bounded, "SECONDS", 60)  # on a busy machine a GiB takes more than one
    monkeypatch.setattr(bounded, "MEMORY", 1 << 30)
    with pytest.raises(bounded.OverLimit, match="over the limit of 1 GiB of memory"):
        bounded.run(large, [tmp_path])


def test_what_a_child_makes_or_raises_comes_to_its_parent(tmp_path: Path) -> None:
    assert bounded.run(lambda: {"a": [1, 2]}, [tmp_path]) == {"a": [1, 2]}
    with pytest.raises(EvalkitError, match="not so") as raised:
        bounded.run(refused, [tmp_path])
    assert str(raised.value) == "not so (there): do this" and raised.value.code is Exit.MISSING
    with pytest.raises(bounded.Crashed, match="a bug in evalkit: ValueError: of our own") as crash:
        bounded.run(wrong, [tmp_path])
    assert "Traceback" in crash.value.trace


def test_a_larger_input_may_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1)
    monkeypatch.setattr(bounded, "PORTION", 1000)
    (tmp_path / "a").write_bytes(bytes(1500))
    (tmp_path / "link").symlink_to("/dev/zero")
    limit = partial(resource.getrlimit, resource.RLIMIT_CPU)
    assert bounded.run(limit, [tmp_path])[0] == 2 and bounded.run(limit, [])[0] == 1


def test_several_inputs_are_judged_each_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there ended the command and left the others unsaid."""
    good = Run().write(tmp_path / "good")
    words = ["verify", good, tmp_path / "absent", denial.a_key_twice(tmp_path / "twice", 0.001)]
    ran = call(*words)
    assert ran.code == Exit.FAILED
    assert f"{tmp_path / 'absent'}\n  not judged: there is no such run folder" in ran.out
    assert ran.out.splitlines()[-1] == "1 BROKEN, 1 CONSISTENT, 1 not judged"
    ran = call("verify", good, tmp_path / "absent")
    assert ran.code == Exit.MISSING and "1 CONSISTENT, 1 not judged" in ran.out
    told = json.loads(call("verify", "--json", good, tmp_path / "absent").out)
    assert list(told["errors"]) == [str(tmp_path / "absent")]
    call("verify", tmp_path / "absent").refused(3, "there is no such run folder")


def test_a_run_that_goes_over_a_limit_is_broken_and_the_next_is_judged(tmp_path: Path) -> None:
    good, other = Run().write(tmp_path / "a"), Run().write(tmp_path / "b")

    def over(work: Callable[[], Any], paths: Any) -> Any:
        if paths == [good]:
            raise bounded.OverLimit("60 seconds")
        return work()

    found = judge([good, other], Wanted(), over)
    assert found.reports[str(good)].verdict == "BROKEN: 1 of 1 checks failed (limits)"
    assert found.reports[str(other)].consistent


# odd values


def set_in(*where: Any) -> Callable[[dict[str, Any]], None]:
    """Puts the last of `where` at the place that the others name."""
    *keys, last, value = where

    def change(body: dict[str, Any]) -> None:
        for key in keys:
            body = body[key]
        body[last] = value

    return change


LEAF = "arc_challenge"
ODD = [
    set_in("results", []),
    set_in("results", LEAF, []),
    set_in("results", LEAF, "acc,none", "x"),
    set_in("results", LEAF, "acc,none", 10**400),
    set_in("results", LEAF, "acc_stderr,none", []),
    set_in("configs", None),
    set_in("configs", LEAF, 1),
    set_in("configs", LEAF, "filter_list", [{}]),
    set_in("configs", LEAF, "metric_list", [1]),
    set_in("n-samples", 3),
    set_in("n-samples", LEAF, {}),
    set_in("n-samples", LEAF, "effective", "x"),
    set_in("n-samples", LEAF, "original", None),
    set_in("n-shot", []),
    set_in("n-shot", LEAF, "x"),
    set_in("higher_is_better", LEAF, "acc", "x"),
    set_in("higher_is_better", []),
    set_in("group_subtasks", "science", 3),
    set_in("group_subtasks", "science", ["science"]),
    set_in("group_subtasks", "science", [[]]),
    set_in("group_subtasks", [1]),
    set_in("versions", 1),
    set_in("config", "limit", "x"),
    set_in("config", "limit", float("inf")),
    set_in("n-samples", "arc_challenge", "effective", 5e-324),
    set_in("n-samples", "arc_challenge", "original", 10**400),
    set_in("results", "science", "sample_len", -1),
    set_in("config", 7),
    set_in("model_name", {}),
    set_in("model_name", "../../x\x1b[2J"),
    set_in("chat_template", 3),
    set_in("lm_eval_version", []),
]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("number", range(len(ODD)))
def test_odd_results_of_lm_eval_are_a_line_for_every_command(number: int, tmp_path: Path) -> None:
    """`import`, `compare` and `report` ended in tracebacks."""
    odd = odd_sample(ODD[number])(tmp_path / "odd", 1)
    good = plain(Run(), tmp_path / "good")
    for words in (
        ["verify", odd],
        ["compare", odd, good],
        ["compare", good, odd],
        ["report", odd, "--out", tmp_path / "report.html"],
        ["import", odd, "--out", tmp_path / "out"],
        ["export", odd, "--to", "every-eval-ever", "--unverified"],
    ):
        ran = call(*words)
        assert ran.code in (0, 1, 2, 3), f"{words[0]}: {ran.traceback}"
        assert "\x1b" not in ran.out + ran.err


def _submitted(run: Path) -> Path:
    """A submission that a run is part of, as a stranger may have left it."""
    folder = run.parent.parent / "submissions" / "demo-0123456789ab"
    for name in ("logs", "failures"):
        (folder / name).mkdir(parents=True)
    members = [{"run": str(run), "model": None}]
    (folder / "submission.json").write_text(json.dumps({"members": members, "shards": 2}))
    return folder


@pytest.mark.parametrize(
    "place",
    ["jobs.jsonl", "failures/0", "logs/0.log", "run: journal/a.jsonl", "run: events/a.jsonl"],
)
def test_status_waits_for_no_pipe_wherever_it_lies(place: str, tmp_path: Path) -> None:
    """Each hung."""
    run = support.planned(tmp_path)
    folder = _submitted(run)
    for name in ("journal", "events"):
        (run / name).mkdir()
    in_run = place.startswith("run: ")
    os.mkfifo((run if in_run else folder) / place.removeprefix("run: "))
    for words in ([folder], [folder, "--logs"], [run]):
        ran = call("status", *words)
        assert ran.code in (0, 1, 2), f"exit code {ran.code} {ran.traceback}"
        assert not in_run or "it is not a plain file" in ran.err


def test_status_of_more_shards_than_there_can_be_and_of_odd_causes_is_a_line(
    tmp_path: Path,
) -> None:
    """The one went on for ever, the others were tracebacks."""
    folder = _submitted(support.planned(tmp_path))
    (folder / "failures" / "0").write_bytes(b"n1\n\xff\x1b[2J evil\n")
    ran = call("status", folder).done()
    assert "\x1b" not in ran.out and "\\x1b[2J evil (on n1)" in ran.out
    for shards in (10**9, 0, -1, None, "x", [], 1e999):
        body = json.loads((folder / "submission.json").read_text()) | {"shards": shards}
        (folder / "submission.json").write_text(json.dumps(body).replace("Infinity", "1e999"))
        call("status", folder).refused(2, "is not of this evalkit")


def _circle(body: dict[str, Any]) -> None:
    """Trunks each of which stands behind the next."""
    trunk = {"id": "sha256:" + "0" * 64, "length": 1, "size": 1, "offset": 0}
    body["trunks"] = [trunk | {"parent": 1}, trunk | {"parent": 0}]
    body["batches"] = [entry | {"trunk": 0} for entry in body["batches"]]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plan.json", _circle),
        ("plan.json", lambda body: body.update(batches=["x"])),
        ("plan.json", lambda body: body.update(batches=body["batches"] * 2)),
        ("run.json", lambda body: body.update(model={})),
        ("run.json", lambda body: body.update(model="x")),
    ],
)
def test_status_of_a_plan_that_no_evalkit_made_is_a_line(
    name: str, change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    """The circle had no end, the others were tracebacks."""
    run = support.planned(tmp_path)
    folder = _submitted(run)
    body = json.loads((run / name).read_text())
    change(body)
    (run / name).write_text(json.dumps(body))
    for words in ([folder], [run], [run, folder]):
        ran = call("status", *words)
        assert ran.code in (0, 1, 2, 3), ran.traceback
    if change is _circle:
        assert "does not stand after its parent" in call("execute", run, "--shard", "1/2").err
    if name == "plan.json":
        for words in (["execute", run, "--workers", 0], ["finish", run]):
            ran = call(*words)
            assert ran.code in (1, 2, 3, 75), ran.traceback


def test_a_log_that_takes_too_long_is_over_a_limit_and_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read in the process that judges all."""
    results = tmp_path / "results"
    Run().write(results / "made-up" / "tiny-1")
    (results / "audit.jsonl").write_bytes(b"{}\n" * 1000)

    def endless(*_: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(bounded, "SECONDS", 1)
    monkeypatch.setattr(results_folder, "check_log", endless)
    ran = call("verify", results)
    assert ran.code == Exit.FAILED
    assert "log           over the limit of 1 seconds of processor time" in ran.out
    assert ran.out.splitlines()[-1] == "1 CONSISTENT; the audit log is BROKEN"


def test_a_date_that_is_none_is_no_records(tmp_path: Path) -> None:
    run = Run()
    run.record["created"] = "2026-99-01T00:00:00Z"
    folder = run.write(tmp_path / "run")
    for words in (["verify"], ["export", "--to", "every-eval-ever"], ["report"], ["pack"]):
        ran = call(*words, folder)
        assert ran.code in (1, 2) or words == ["report"], words
        assert "2026-99" in (ran.out + ran.err) or words == ["report"]
    run.record["created"] = "2026-02-30T00:00:00Z"
    folder = run.write(tmp_path / "run2")
    for to in ("every-eval-ever", "lm-eval"):
        assert call("export", "--to", to, "--out", tmp_path / to, folder).code in (1, 2)


# parsers


def test_a_key_that_stands_twice_is_found_in_one_pass() -> None:
    text = "{" + ",".join(f'"k{i}":0' for i in range(200_000)) + ',"k7":1}'
    began = time.process_time()
    with pytest.raises(ValueError, match="duplicate keys k7"):
        canon.loads(text)
    assert time.process_time() - began < 5


def test_yaml_has_no_key_twice_no_dates_and_no_numbers_to_the_base_of_sixty() -> None:
    for text in ("a: 1\na: 2", "x: {b: 1, 'b': 2}", "[{c: 1, c: 1}]"):
        with pytest.raises(ValueError, match="stands twice, line"):
            untrusted.load_yaml(text)
    value = untrusted.load_yaml(
        "a: 1:30\nb: 2026-99-01\nc: 010\nd: 1_000\ne: 1.5\nf: .inf\n"
        "g: yes\nh: 0x1F\ni: -3\nj: ~\nk: 1e5\nl: 2024-01-01\n"
    )
    assert value == {
        "a": "1:30", "b": "2026-99-01", "c": 8, "d": 1000, "e": 1.5, "f": float("inf"),
        "g": True, "h": 31, "i": -3, "j": None, "k": "1e5", "l": "2024-01-01",
    }  # fmt: skip
    with pytest.raises(ValueError, match="over the limit of 1,000,000 parts"):
        untrusted.load_foreign_yaml(b"- a\n" * 1_000_001)


BOMB = "[&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 1_000_000, "nested too deep"),
        ("- " * 100_000, "nested too deep"),
        ("{tasks: " + BOMB + ", *i]}", "over the limit"),
        (f"[&a {'x' * 10_000_000}, {', '.join(['*a'] * 100)}]", "over the limit"),
        ("tasks: &t [*t]", "names nothing before it"),
        ("limit: !!int ''", "does not fit its tag"),
        ("limit: !!bool x", "does not fit its tag"),
        ("limit: !!timestamp x", "does not fit its tag"),
        ("tasks: !!set [a]", "does not fit its tag|expected a mapping"),
    ],
)
def test_a_suite_or_a_lock_that_takes_everything_is_refused(
    text: str, said: str, tmp_path: Path
) -> None:
    """The first ended the process without a word, the next ones had no end, the last ones were
    tracebacks."""
    path = tmp_path / "odd.lock.yaml"
    path.write_text(text)
    for read in (suites.read_lock, lambda path: suites.load(str(path))):
        with pytest.raises(EvalkitError, match=said):
            read(path)


def test_a_suite_may_have_aliases(tmp_path: Path) -> None:
    text = "base: &b {until: [x]}\nmade: {<<: *b, more: *b}\n"
    made = untrusted.load_yaml(text)["made"]
    assert made == {"until": ["x"], "more": {"until": ["x"]}}


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "file").write_text("x")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    for name in ("pipe", "link"):
        for read in (canon.reader, canon.sha256_file, partial(canon.read_bytes, limit=5)):
            with pytest.raises(OSError, match="not a plain file"):
                read(tmp_path / name)
    assert canon.read_bytes(tmp_path / "good", 1) == b"x"
    with pytest.raises(OSError, match="larger than 0 bytes"):
        canon.read_bytes(tmp_path / "file", 0)


def test_a_pattern_of_a_schema_ends_with_the_text() -> None:
    """A suite was called `demo` and a line feed: Python's `$` stands before it too."""
    run = Run()
    run.record["suite"]["name"] += "\n"
    told = "$.suite.name: 'tiny\\n' does not match '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'"
    assert told in schema.check("record", run.record)


def test_rules_whose_aliases_name_each_other_are_refused(tmp_path: Path) -> None:
    """A policy may be a stranger's: ten names of ten names and so on are ten thousand million."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 10):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    policy, run = tmp_path / "policy.yaml", Run().write(tmp_path / "run")
    policy.write_text("\n".join([*lines, "name: mine", "suites: *a9\n"]))
    call("verify", run, "--policy", policy).refused(2, "it uses YAML aliases")
    call("compare", run, run, "--gate", policy).refused(2, "it uses YAML aliases")
