"""A journal that was torn, flipped, doubled, shuffled or split: what is intact counts, and only the
rest is repeated."""

import json
import random
import shutil
from pathlib import Path

import fire
import pytest
import support
from fire import Fire, Tell
from support import call

from evalkit.base import canon
from evalkit.record import journal

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def executed(runs: Fire, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executed run without a record; never to be changed."""
    out = tmp_path_factory.mktemp("executed") / "out"
    folder = runs.planned(out)
    call("execute", folder, "--model", runs.model).done()
    return folder


def damaged(source: random.Random, lines: list[bytes]) -> list[bytes]:
    """Journal files after a few accidents."""
    found = list(lines)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(found))
        match source.choice(["torn", "flipped", "doubled", "shuffled", "dropped", "garbage"]):
            case "torn":
                found[at] = found[at][: source.randrange(len(found[at]))]
            case "flipped":
                byte = source.randrange(len(found[at]) - 1) if len(found[at]) > 1 else 0
                data = bytearray(found[at] or b"x")
                data[byte] ^= 1 << source.randrange(8)
                found[at] = bytes(data)
            case "doubled":
                found.insert(source.randrange(len(found)), found[at])
            case "shuffled":
                source.shuffle(found)
            case "dropped":
                found.pop(at)
            case "garbage":
                found.insert(at, source.randbytes(source.randrange(1, 200)) + b"\n")
    number = source.randint(1, 3)
    return [b"".join(found[first::number]) for first in range(number)]


def intact(files: list[bytes], lines: list[bytes]) -> set[str]:
    """The batches of which a line still stands that says what it said: a flipped
    bit may make 1E-05 of 1e-05."""
    whole = {canonical(line): json.loads(line)["batch"] for line in lines}
    found = {canonical(line) for file in files for line in file.split(b"\n")[:-1]}
    return {batch for line, batch in whole.items() if line in found}


def canonical(line: bytes) -> str:
    """A line as canonical JSON; itself where it is none."""
    try:
        return canon.dumps(canon.loads(line))
    except (ValueError, RecursionError):
        return repr(line)


def test_what_is_intact_counts_and_only_the_rest_is_asked_again(
    runs: Fire, executed: Path, tmp_path: Path, tell: Tell
) -> None:
    body, plan = support.read(executed, "run.json"), support.read(executed, "plan.json")
    batches = {entry["id"] for entry in plan["batches"]}
    lines = fire.lines(executed)
    answers = {json.loads(line)["batch"]: json.loads(line)["answers"] for line in lines}
    for seed in range(500):
        folder = tmp_path / "journal"
        shutil.rmtree(folder, ignore_errors=True)
        files = damaged(random.Random(seed), lines)
        for number, data in enumerate(files):
            canon.make_folder(folder)
            (folder / f"segment{number}.jsonl").write_bytes(data)
        done = journal.done(folder, body["ids"]["run"], batches)
        assert done.batches == intact(files, lines), seed
        writer = journal.Writer(folder, body["ids"]["run"], "repeats")
        for batch in sorted(batches - done.batches):
            writer.append(batch, answers[batch])
        writer.close()
        found = journal.read(folder, body["ids"]["run"], batches)
        digests = journal.digests(journal.assemble(found.answers()))
        assert canon.digest(digests) == runs.answers, seed
    tell("a journal torn, flipped, doubled, shuffled, dropped or split at random",
         "only what is not intact is repeated, the same answers", 500)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_run_is_continued_to_the_same_answers(
    runs: Fire, executed: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "out"
    shutil.copytree(executed.parent.parent, out)
    folder = out / executed.parent.name / executed.name
    lines = fire.lines(folder)
    (path,) = (folder / "journal").glob("*.jsonl")
    files = damaged(random.Random(100 + seed), lines)
    for number, data in enumerate(files):
        path.with_name(f"{path.stem}.{number}.jsonl").write_bytes(data)
    path.unlink()
    missing = runs.batches - len(intact(files, lines))
    ran = call("execute", folder, "--model", runs.model).done()
    new = set((folder / "journal").glob("*.jsonl"))
    new -= {path.with_name(f"{path.stem}.{number}.jsonl") for number in range(len(files))}
    assert sum(len(p.read_bytes().splitlines()) for p in new) == missing, ran.err
    assert fire.journal_id(folder) == runs.answers


def test_lines_of_another_run_or_plan_are_set_aside(runs: Fire, executed: Path) -> None:
    body = support.read(executed, "run.json")
    found = journal.done(executed / "journal", "sha256:" + "0" * 64, {"x"})
    assert not found.batches and len(found.set_aside) == runs.batches
    found = journal.done(executed / "journal", body["ids"]["run"], set())
    assert not found.batches and len(found.set_aside) == runs.batches
