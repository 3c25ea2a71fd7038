"""Plans are kept by what they follow from, and only save time."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import yaml
from support import Ran, call

from evalkit.base.errors import EvalkitError
from evalkit.harness import tasks
from evalkit.harness.asking import requests
from evalkit.harness.data import loading
from evalkit.inputs.models import model as models
from evalkit.plan import cache

BEFORE = "planned before: the same requests in the same tokens"
Plan = Callable[..., Ran]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache" / "evalkit" / "plans"


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Callable[..., Path]) -> Plan:
    """Plans one task for a model, in a results folder of its own each time."""
    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    count = 0

    def planned(*options: str, model: Path | None = None, suite: Path = suite) -> Ran:
        nonlocal count
        count += 1
        given = ("--model", model or tiny_model(), "--suite", suite)
        return call("plan", *given, "--out", tmp_path / f"results{count}", *options).done()

    return planned


def kept(folder: Path) -> list[Path]:
    """The folders of the plans in the cache."""
    return sorted(folder.iterdir())


def test_a_second_model_with_the_same_tokenizer_builds_no_request(
    plan: Plan, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was asked for")

    first = plan()
    assert BEFORE not in first.err
    monkeypatch.setattr(requests, "build", refuse)
    monkeypatch.setattr(loading, "_load", refuse)
    second = plan(model=tiny_model(seed=1, num_hidden_layers=3))
    assert BEFORE in second.err
    for name in ("plan.json", "plan.tokens"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    bodies = [support.read(ran.folder, "run.json") for ran in (first, second)]
    assert bodies[0]["ids"]["plan"] == bodies[1]["ids"]["plan"]
    assert bodies[0]["ids"]["run"] != bodies[1]["ids"]["run"]
    assert bodies[0]["unique_tokens"] == bodies[1]["unique_tokens"] > 0


def test_a_run_from_a_kept_plan_ends_in_the_same_answers(tmp_path: Path) -> None:
    assert BEFORE not in call("plan", *support.DEMO, "--out", tmp_path / "first").done().err
    ran = call("eval", *support.DEMO, "--out", tmp_path / "second").done()
    assert support.read(ran.folder)["answers"] == support.demo_answers()
    assert BEFORE in ran.err and "CONSISTENT" in ran.err


def test_data_that_cannot_be_loaded_ends_a_run_from_a_kept_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = (*support.DEMO, "--limit", "2")
    call("plan", *some, "--out", tmp_path / "first").done()

    def refuse(*_: Any, **__: Any) -> Any:
        raise EvalkitError("document 3 is not the locked one")

    monkeypatch.setattr(tasks, "load_locked", refuse)  # beside the workers
    ran = call("eval", *some, "--out", tmp_path / "second")
    assert ran.code == 2 and "document 3 is not the locked one" in ran.err
    assert "Traceback" not in ran.err
    assert not list((tmp_path / "second").glob("*/*/record.json"))


def other_lock(suite: Path) -> Path:
    """The same suite with another rows digest in its lock."""
    path = suite.with_name("other.yaml")
    path.write_text(suite.read_text().replace("name: mine", "name: other"))
    lock = yaml.safe_load(suite.with_name("mine.lock.yaml").read_text())
    lock["suite"] = "other"
    lock["tasks"]["demo_qa"]["rows"] = "sha256:" + "0" * 64
    path.with_name("other.lock.yaml").write_text(yaml.safe_dump(lock))
    return path


def test_the_same_files_read_by_another_class_of_tokenizer_miss(
    plan: Plan, tiny_model: Callable[..., Path]
) -> None:
    """config.json says which class reads them, and Qwen2's makes other ids of them than Llama's: a
    Qwen2 model was once asked with a Llama's plan."""
    one, other = tiny_model(), tiny_model("qwen2", tokenizer="llama3")
    files = [models.resolve(str(folder)).tokenizer_files() for folder in (one, other)]
    assert files[0] == files[1]
    assert BEFORE not in plan("--level", "none", model=one).err
    assert BEFORE not in plan("--level", "none", model=other).err
    assert BEFORE in plan("--level", "none", model=one).err


def test_what_changes_a_plan_misses(
    tmp_path: Path, plan: Plan, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT", 99)
    chat = tiny_model(chat_template=True)
    changed = shutil.copytree(chat, tmp_path / "changed")
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    talking = tmp_path / "talking.yaml"
    plan("--level", "none")
    talking.write_text(support.suite(tmp_path, "talking", ["demo_qa"]).read_text()
                       + "apply_chat_template: true\n")  # fmt: skip
    misses: dict[str, Ran] = {
        "tokenizer": plan("--level", "none", model=tiny_model(tokenizer="gpt2")),
        "level": plan("--level", "prefix"),
        "limit": plan("--level", "none", "--limit", "5"),
        "seed": plan("--level", "none", "--seed", "3"),
        "context": plan("--level", "none", model=tiny_model(max_length=512)),
        "engine": plan("--engine", "lm-eval:local-completions"),  # its rows are shorter
        "chat": plan("--level", "none", model=chat, suite=talking),
        "template": plan("--level", "none", model=changed, suite=talking),
    }
    assert [name for name, ran in misses.items() if BEFORE in ran.err] == []
    assert BEFORE in plan("--level", "none").err
    assert BEFORE in plan("--level", "none", model=changed, suite=talking).err


def test_another_lock_is_another_plan(tmp_path: Path, plan: Plan) -> None:
    """It is not served the old one: the data is loaded, and is not what this lock says."""
    plan()
    suite = other_lock(tmp_path / "mine.yaml")
    with pytest.raises(AssertionError, match="rows"):
        plan(suite=suite)


def test_another_version_of_evalkits_code_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key({"suite": "x"})
    assert cache.key({"suite": "y"}) != before
    code = cache.kept.code()
    monkeypatch.setattr(cache.kept, "code", lambda: code | {"plan.py": "0" * 64})
    assert cache.key({"suite": "x"}) != before


@pytest.mark.parametrize(
    ("name", "damage"),
    [("plan.json", "changed"), ("plan.json", "cut"), ("plan.tokens", "changed"),
     ("plan.tokens", "gone"), ("digests.json", "changed"), ("digests.json", "gone")],
)  # fmt: skip
def test_a_damaged_plan_is_made_again(plan: Plan, own_cache: Path, name: str, damage: str) -> None:
    first = plan()
    (folder,) = kept(own_cache)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    middle = len(good[name]) // 2
    if damage == "gone":
        path.unlink()
    else:
        byte = bytes([good[name][middle] ^ 1]) if damage == "changed" else b""
        end = good[name][middle + 1 :] if damage == "changed" else b""
        path.write_bytes(good[name][:middle] + byte + end)
    second = plan()
    assert BEFORE not in second.err
    assert (first.folder / "plan.json").read_bytes() == (second.folder / "plan.json").read_bytes()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    assert BEFORE in plan().err


def test_only_the_newest_plans_are_kept(own_cache: Path) -> None:
    for number in range(cache.KEPT + 3):
        planned = cache.Planned({"number": number}, b"tokens", number)
        cache.write(f"{number:064x}", planned)
        os.utime(own_cache / f"{number:064x}", (number, number))
    names = [path.name for path in kept(own_cache)]
    assert names == [f"{number:064x}" for number in range(3, cache.KEPT + 3)]
    assert cache.read(names[0]) == cache.Planned({"number": 3}, b"tokens", 3)


def test_a_cache_that_can_not_be_written_costs_time_only(plan: Plan, own_cache: Path) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert BEFORE not in plan().err


def test_what_a_plan_cost_is_in_its_events(plan: Plan) -> None:
    for is_kept in (False, True):
        (path,) = (plan().folder / "events").glob("*.jsonl")
        (event,) = [e for e in map(json.loads, path.open()) if e["event"] == "planned"]
        assert event["kept"] is is_kept and event["batches"] > 0
