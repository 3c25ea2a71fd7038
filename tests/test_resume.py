"""A run's answers are the same whatever happens to it: killed, torn, repeated, in another order.

The identity of the answers is read from the journal where the record would say no more, because
scoring takes seconds and is the same code.
"""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from support import DEMO, call

from evalkit.base import canon, lease
from evalkit.base.errors import EvalkitError
from evalkit.base.events import Events
from evalkit.base.machine import stamp
from evalkit.inputs import suite as suites
from evalkit.inputs.models import model as models
from evalkit.judge.verify import verify
from evalkit.record import auditlog, journal, record
from evalkit.run import execute, means
from evalkit.run import folder as folders
from evalkit.run.preparing import prepare
from evalkit.run.processes import worker

# Run before the command line: stop after the third batch, at its end or in the middle of its line,
# and wait there to be killed.
PAUSE = """
import sys, time
from evalkit.base import canon
append, count = canon.Appender.append, 0
def paused(self, value, **how):
    global count
    count += self.path.parent.name == "journal"
    if count < 3 or self.path.parent.name != "journal":
        return append(self, value, **how)
    if {middle}:
        line = canon.dumps(value).encode()
        self._handle.write(line[: len(line) // 2])
        self._handle.flush()
    else:
        append(self, value, **how)
    print("PAUSED", file=sys.stderr, flush=True)
    time.sleep(120)
canon.Appender.append = paused
"""


def stop(folder: Path, kind: int, *, middle: bool) -> tuple[int, str]:
    """Continue a run in another process and send it a signal in its third batch."""
    out = folder.parent.parent
    process = support.start(
        "eval", *DEMO, "--out", out, "--workers", "0", "--grace", "0",
        before=PAUSE.format(middle=middle),
    )  # fmt: skip
    assert process.stderr
    seen = ""
    for line in process.stderr:
        seen += line
        if line == "PAUSED\n":
            break
    else:
        pytest.fail(f"it did not come to its third batch:\n{seen}")
    process.send_signal(kind)
    _, rest = process.communicate(timeout=60)
    return process.returncode, rest


@pytest.mark.faults
@pytest.mark.parametrize(
    ("kind", "middle", "code"),
    [
        (signal.SIGINT, False, 75),
        (signal.SIGTERM, True, 75),
        (signal.SIGKILL, True, -signal.SIGKILL),
    ],
    ids=["SIGINT at a boundary", "SIGTERM in a line", "SIGKILL in a line"],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_answers(
    tmp_path: Path, kind: int, middle: bool, code: int
) -> None:
    folder = support.planned(tmp_path)
    returned, said = stop(folder, kind, middle=middle)
    assert returned == code
    if code == 75:
        assert said.strip().splitlines()[-1].startswith("evalkit: stopped; what is done is kept")
        assert "Traceback" not in said
    done = 2 if middle else 3
    assert len(support.read_journal(folder).batches) == done
    assert (folder / ".lock").exists() == (kind == signal.SIGKILL)
    total = support.num_batches(folder)
    assert call("status", folder).done().out.count(f"{done} of {total} batches")
    ran = call("eval", *DEMO, "--out", tmp_path / "results").done()
    assert ran.folder == folder and f"continuing: {done} of {total} batches are done" in ran.err
    assert ("set aside a torn or altered journal line" in ran.err) == middle
    assert support.read(folder)["answers"] == support.demo_answers()
    assert verify(folder).consistent, verify(folder).lines()
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("moment", ["write_samples", "write"])
def test_a_run_that_is_stopped_while_it_is_scored_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    folder = support.executed(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(record, moment, interrupt)
        call("finish", folder).refused(75, "the same command continues it")
    assert not (folder / "record.json").exists() and not (folder / ".lock").exists()
    call("finish", folder).done()
    assert support.read(folder)["answers"] == support.demo_answers()


def test_a_run_that_is_stopped_while_it_is_planned_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("plan", *DEMO, "--out", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(canon, "write_json", interrupt)  # run.json, the last of its files
        patched.setattr(models, "digests", lambda *_: {})
        assert call(*command).code == 75
    assert not list(tmp_path.glob("demo/demo-*"))
    assert len(list(tmp_path.glob("demo/.demo-*"))) <= 1
    folder = call(*command).done().folder
    assert folder.is_dir()


def test_the_same_command_continues_a_killed_run_to_its_record(tmp_path: Path) -> None:
    folder = support.executed(tmp_path)
    path = support.journal_file(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    altered = lines[1].replace(b'"logprobs":[-', b'"logprobs":[-1', 1)
    assert altered != lines[1]
    path.write_bytes(b"".join([lines[0], altered, *lines[2:-1], lines[-1][:100]]))
    ran = call("eval", *DEMO, "--out", tmp_path / "results").done()
    assert ran.folder == folder and ran.err.count("set aside a torn or altered") == 2
    found = support.read(folder)
    assert found["answers"] == support.demo_answers()
    batches = sorted(segment["batches"] for segment in found["segments"])
    assert batches == [2, len(lines) - 2]
    assert verify(folder).consistent, verify(folder).lines()


def test_only_the_batches_of_torn_and_altered_lines_are_repeated(tmp_path: Path) -> None:
    folder = support.executed(tmp_path)
    path = support.journal_file(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    last = len(lines) - 1
    bad = [json.loads(lines[index])["batch"] for index in (3, last)]
    altered = lines[3].replace(b"-", b"+", 1)
    path.write_bytes(b"".join([*lines[:3], altered, *lines[4:last], lines[last][:-1]]))
    ran = call("execute", folder).done()
    assert f"({path.name} line 4)" in ran.err and f"({path.name} line {last + 1})" in ran.err
    (new,) = set((folder / "journal").glob("*.jsonl")) - {path}
    repeated = [json.loads(line)["batch"] for line in new.read_text().splitlines()]
    assert sorted(repeated) == sorted(bad)
    assert support.digests(folder) == support.demo_answers()


def test_nothing_is_repeated_when_every_batch_is_answered(tmp_path: Path) -> None:
    folder = support.executed(tmp_path)
    before = support.contents(folder / "journal")
    ran = call("execute", folder).done()
    assert "loading" not in ran.err and support.contents(folder / "journal") == before


# Laws


def answered(folder: Path) -> dict[str, str]:
    """Execute a planned run in this process; its answers map."""
    found = folders.read(folder)
    has = means.Means(worker.Place("cpu"), number=0)
    execute.execute(found, models.resolve("demo"), has, Events())
    return support.digests(folder)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_the_order_of_batches_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    left = execute.unanswered

    def shuffled(*given: Any) -> list[int]:
        return random.Random(seed).sample(left(*given), support.num_batches(folder))

    folder = support.planned(tmp_path)
    monkeypatch.setattr(execute, "unanswered", shuffled)
    assert answered(folder) == support.demo_answers()
    order = [json.loads(line)["batch"] for line in support.journal_file(folder).open()]
    planned = [batch["id"] for batch in support.read(folder, "plan.json")["batches"]]
    assert order != planned and sorted(order) == sorted(planned)


def test_a_run_stopped_at_every_batch_boundary_has_the_same_answers(tmp_path: Path) -> None:
    """As if ten processes had each answered one batch and died."""
    folder = support.executed(tmp_path)
    path = support.journal_file(folder)
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        if number % 2:
            (path.parent / f"{path.stem}-{number}.jsonl").write_bytes(line)
    path.unlink()
    assert answered(folder) == support.demo_answers()
    assert len(list((folder / "journal").iterdir())) > 3


def test_another_execution_of_a_finished_run_has_the_same_answers(tmp_path: Path) -> None:
    first = support.finished(tmp_path)
    ran = call("eval", *DEMO, "--out", tmp_path / "results", "--again").done()
    assert ran.folder.name == f"{first.name}.2"
    one, two = support.read(first), support.read(ran.folder)
    assert one["ids"] == two["ids"] and one["execution"] != two["execution"]
    for name in ("plan.json", "plan.tokens", "lock.yaml", "samples.jsonl.gz", "results.json"):
        assert (first / name).read_bytes() == (ran.folder / name).read_bytes(), name


@pytest.mark.parametrize("task", ["demo_letters", "demo_endings", "demo_qa", "demo_cot"])
def test_a_task_has_the_same_answers_alone_as_among_others(tmp_path: Path, task: str) -> None:
    suite = support.suite(tmp_path, "alone", [task])
    ran = call("plan", "--model", "demo", "--suite", suite, "--out", tmp_path / "out").done()
    found = answered(ran.folder)
    leaves = suites.read_lock(suite.with_name("alone.lock.yaml")).tasks
    assert found == {leaf: support.demo_answers()[leaf] for leaf in leaves}


def test_a_limited_task_gives_its_documents_the_same_answers(tmp_path: Path) -> None:
    """The batches are others, so float32 may differ in its last bits: nothing more."""
    ran = call("plan", *DEMO, "--limit", "5", "--out", tmp_path / "out").done()
    answered(ran.folder)
    (tmp_path / "whole").mkdir()
    whole = support.read_journal(support.executed(tmp_path / "whole")).answers()
    part = support.read_journal(ran.folder).answers()
    assert 5 * 6 <= len(part) < len(whole)
    for request, answer in part.items():
        if "text" in answer:
            assert answer["tokens"] == whole[request]["tokens"]
        else:
            assert answer["loglikelihood"] == pytest.approx(whole[request]["loglikelihood"], 1e-5)


# Another process


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("command", ["eval", "execute", "finish"])
def test_a_run_that_another_process_works_on_is_refused_and_names_it(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]", command: str
) -> None:
    folder = (support.executed if command == "finish" else support.planned)(tmp_path)
    support.lock(folder, sleeper.pid)
    before = support.contents(folder)
    arguments = [*DEMO, "--out", tmp_path / "results"] if command == "eval" else [folder]
    ran = call(command, *arguments)
    ran.refused(3, f"process {sleeper.pid} on {socket.gethostname()} is already working here")
    assert support.contents(folder) == before


def test_a_run_whose_process_died_is_taken_over(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    folder = support.executed(tmp_path)
    sleeper.kill()
    sleeper.wait()
    support.lock(folder, sleeper.pid)
    call("execute", folder).done()
    assert not (folder / ".lock").exists()


def test_a_run_that_another_process_plans_just_now_is_not_planned_twice(tmp_path: Path) -> None:
    """The same command twice at once planned the run twice, and computed everything twice."""
    out = tmp_path / "results"
    canon.make_folder(out / "demo")
    with lease.held(out / "demo", ".demo.planning.lock"):
        ran = call("plan", *DEMO, "--out", out)
        ran.refused(3, f"process {os.getpid()}", "is already working here")
    folder = call("plan", *DEMO, "--out", out).done().folder
    assert list((out / "demo").glob("demo-*")) == [folder]


# Another identity


def test_an_unfinished_run_with_another_input_is_named_and_kept(tmp_path: Path) -> None:
    folder = support.planned(tmp_path)
    before, out = support.contents(folder), ("--out", tmp_path / "results")
    for option, words in (
        (("--dtype", "bfloat16"), ["numerics.dtype: float32 -> bfloat16"]),
        (("--limit", "3"), ["suite.limit: None -> 3"]),
        (("--seed", "7"), ["suite.seeds.random: 0 -> 7"]),
    ):
        ran = call("eval", *DEMO, *out, *option)
        ran.refused(2, "an unfinished run differs in", *words, str(folder), "--fresh")
    assert support.contents(folder) == before
    fresh = call("plan", *DEMO, *out, "--dtype", "bfloat16", "--fresh").done()
    assert fresh.folder != folder and support.contents(folder) == before


def test_an_upgrade_is_named_before_anything_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    support.planned(tmp_path)
    now = stamp.versions()
    monkeypatch.setattr(stamp, "versions", lambda: now | {"transformers": "99.0"})
    ran = call("eval", *DEMO, "--out", tmp_path / "results")
    ran.refused(2, f"differs in versions.transformers: {now['transformers']} -> 99.0")


def test_an_unfinished_run_of_another_suite_is_no_obstacle(tmp_path: Path) -> None:
    """`demo-hard`'s folder begins with `demo-` as `demo`'s does."""
    folder = support.planned(tmp_path)
    body = support.read(folder, "run.json")
    body["suite"]["name"], body["inputs"]["numerics"]["dtype"] = "demo-hard", "bfloat16"
    other = folder.rename(folder.with_name("demo-hard-0123456789ab"))
    (other / "run.json").write_text(json.dumps(body))
    job = prepare.prepare(prepare.Options("demo", "demo", out=tmp_path / "results"))
    assert folders.find(job) is None


def test_an_unfinished_execution_is_continued_before_another_is_begun(tmp_path: Path) -> None:
    first = support.finished(tmp_path)
    second = shutil.copytree(first, first.with_name(f"{first.name}.2"))
    (second / "record.json").unlink()
    for again in (False, True):
        job = prepare.prepare(
            prepare.Options("demo", "demo", out=tmp_path / "results", again=again)
        )
        found = folders.find(job)
        assert found is not None and found.folder == second


# The disk


class Disk:
    """A disk that is full from some moment on, until space is freed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder

    def full_at(self, moment: str) -> None:
        """Fill it just before the third batch, the samples or the record is written."""
        owner, name = {
            "journal": (journal.Writer, "append"),
            "samples": (record, "write_samples"),
            "record": (record, "write"),
        }[moment]
        write, count = getattr(owner, name), 0

        def last(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if moment != "journal" or count == 3:
                self.fill()
            return write(*arguments, **named)

        self.monkeypatch.setattr(owner, name, last)

    def fill(self) -> None:
        """No byte more."""
        raise NotImplementedError

    def free(self) -> None:
        """Space is freed, and the moment is over."""
        self.monkeypatch.undo()


class SmallDisk(Disk):
    """A file system in memory, filled to its last byte."""

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self) -> None:
        (self.folder / "filler").unlink()
        super().free()


class FailingDisk(Disk):
    """The same where no file system can be mounted: nothing gets through to the disk any more."""

    def fill(self) -> None:
        def fsync(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[pytest.MonkeyPatch], Disk]]:
    """Makes a disk on which a run is about to be executed, in tmp_path/disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", os.fspath(folder)]
    real = shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode
    kind = SmallDisk if real else FailingDisk
    yield lambda monkeypatch: kind(monkeypatch, folder)
    if real:
        subprocess.run(["umount", os.fspath(folder)], check=True)


@pytest.mark.faults
def test_a_full_disk_loses_nothing_and_the_same_command_goes_on_when_space_is_freed(
    tmp_path: Path, disk: Callable[[pytest.MonkeyPatch], Disk]
) -> None:
    """Full in the middle of the journal, then at the samples, then at the record."""
    folder = support.planned(tmp_path / "disk")
    command = ("eval", *DEMO, "--out", tmp_path / "disk" / "results")
    for moment in ("journal", "samples", "record"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(prepare, "FREE_BYTES", 0)
            filled = disk(patched)
            filled.full_at(moment)
            call(*command).refused(3, "No space left on device", "free space or")
            filled.free()
        assert not (folder / "record.json").exists()
        # where syncing fails and not writing, the third batch is in the file after all
        done = len(support.read_journal(folder).batches)
        assert done in ((2, 3) if moment == "journal" else (support.num_batches(folder),))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepare, "FREE_BYTES", 0)
        assert call(*command).done().folder == folder
    found = support.read(folder)
    assert found["answers"] == support.demo_answers()
    assert found["ids"]["answers"] == canon.digest(support.demo_answers())
    assert not [name for name in found["files"] if name.endswith(".part")]


def test_a_failure_that_can_not_be_logged_is_still_the_one_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(what: str) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise EvalkitError(what)

        return fail

    support.planned(tmp_path)
    monkeypatch.setattr(execute, "execute", fails("the journal can't be written"))
    monkeypatch.setattr(auditlog, "append", fails("the log can't be written either"))
    ran = call("eval", *DEMO, "--out", tmp_path / "results")
    ran.refused(2, "the journal can't be written")


def test_too_little_space_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "FREE_BYTES", 10**18)
    ran = call("eval", *DEMO, "--out", tmp_path)
    ran.refused(3, "MB are free for results", str(tmp_path), "--out")


# What a killed process leaves


def test_a_half_written_file_of_a_killed_process_is_not_in_the_record(tmp_path: Path) -> None:
    folder = support.executed(tmp_path)
    left = folder / ".samples.jsonl.gz.4194305.part"
    left.write_bytes(b"half")
    call("eval", *DEMO, "--out", tmp_path / "results").done()
    assert left.name not in support.read(folder)["files"]
    assert verify(folder).consistent


def test_a_run_killed_while_it_is_planned_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = support.planned(tmp_path)
    left = folder.with_name(f".{folder.name}.4194305")
    folder.rename(left)
    (left / "run.json").unlink()
    ran = call("plan", *DEMO, "--out", tmp_path / "results").done()
    assert ran.folder == folder
    assert (folder / "plan.json").read_bytes() == (left / "plan.json").read_bytes()


def test_a_damaged_plan_stops_the_run_and_keeps_what_was_answered(tmp_path: Path) -> None:
    folder = support.executed(tmp_path)
    path = support.journal_file(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    tokens = bytearray((folder / "plan.tokens").read_bytes())
    tokens[-20] ^= 0xFF
    (folder / "plan.tokens").write_bytes(tokens)
    ran = call("eval", *DEMO, "--out", tmp_path / "results")
    ran.refused(1, "plan.tokens is damaged", str(folder), "start again")
    done = len(support.read_journal(folder).batches)
    assert done == support.num_batches(folder) - 1  # all but the last one, which is damaged
    audit = (tmp_path / "results" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in audit] == ["failed"]


def test_two_unlike_answers_to_one_batch_stop_the_run(tmp_path: Path) -> None:
    folder = support.executed(tmp_path)
    line = json.loads(support.journal_file(folder).read_text().splitlines()[-1])
    answer = next(iter(line["answers"].values()))
    answer["loglikelihood"] -= 0.25
    line["sha256"] = journal.checksum(line)
    canon.write_atomic(folder / "journal" / "unlike.jsonl", canon.dumps(line) + "\n")
    ran = call("eval", *DEMO, "--out", tmp_path / "results")
    ran.refused(1, "was answered unequally by segments", "and unlike", "unlike hardware")


def test_every_run_that_ends_is_in_the_audit_log(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    (line,) = (tmp_path / "results" / "audit.jsonl").read_text().splitlines()
    entry, found = json.loads(line), support.read(folder)
    assert entry["status"] == "finished" and entry["run"] == f"demo/{folder.name}"
    for key in ("ids", "execution"):
        assert entry[key] == found[key]
    assert entry["datasets"] == found["suite"]["datasets"]
    assert entry["seeds"] == found["suite"]["seeds"] and entry["commit"] == found["code"]["commit"]


def test_a_run_that_is_recorded_but_not_logged_is_logged_by_the_same_command(
    tmp_path: Path,
) -> None:
    """Killed between the record and its line in the audit log, a run would never be in the log."""
    support.finished(tmp_path)
    (tmp_path / "results" / "audit.jsonl").unlink()
    call("eval", *DEMO, "--out", tmp_path / "results").done()
    assert (tmp_path / "results" / "audit.jsonl").is_file()
