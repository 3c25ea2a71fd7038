"""verify, the ids and the plan: each id follows from what it covers, and the plan's trunks, batches
and targets are what they say."""

import copy
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import runs
from runs import Run
from verifying import changed, failed, judged, line, scalars

from evalkit.base.errors import Exit
from evalkit.judge.verify import Status, verify
from evalkit.plan import store

pytestmark = pytest.mark.usefixtures("without_lm_eval")

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


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.trust)])
def test_every_field_of_the_record_that_something_vouches_for_is_checked(
    every: int, tmp_path: Path, shipped: Path
) -> None:
    """One in five by default: tests/test_tamper.py changes each of them in a signed record, too."""
    path = Run().write(tmp_path / "run")
    good = runs.read_record(path)
    unnoticed = []
    for where in [*filter(vouched, scalars(good))][::every]:
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
    run, (trunk,) = Run(leave_out=("mmlu_anatomy",)), Run().plan["trunks"]
    block = Run().tokens[: trunk["size"]]
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
    run.plan["ids"]["plan"] = run.record["ids"]["plan"] = store.plan_id(run.plan)
    run.record["ids"]["run"] = runs.run_id(run.record)
    run.lines = [runs.seal(old | {"run": run.record["ids"]["run"]}) for old in run.lines]
    report = judged(run, tmp_path)
    assert {"plan", "answers"} <= failed(report)
    assert "leaf tasks missing: whole_texts" in line(report, "plan", Status.FAIL)
