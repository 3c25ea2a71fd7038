"""What is kept between runs only saves time: it is used while all that it follows from is the same,
and is found out again when it is torn."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalkit.base import kept
from evalkit.base.errors import EvalkitError
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")
datasets = pytest.importorskip("datasets")

from lm_eval.tasks import _index  # noqa: E402

from evalkit.engine.numerics import numerics  # noqa: E402
from evalkit.engine.probe import outcome, probe  # noqa: E402
from evalkit.harness import index  # noqa: E402
from evalkit.harness.data import row_digests  # noqa: E402
from evalkit.run.processes.worker import Place, Worker  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache" / "evalkit"


@pytest.fixture
def worker(tiny_model: Callable[..., Path]) -> Callable[[], Worker]:
    """Makes a worker of a tiny model, its weights loaded."""
    model = models.resolve(str(tiny_model("llama", max_length=256)))
    inputs = {
        "engine": {"name": "evalkit", "args": {}, "level": "tree"},
        "numerics": numerics.Numerics(dtype="float32").to_json(),
    }
    return lambda: Worker(inputs, model, Place("cpu"))


# The check of a level


def test_a_check_that_passed_is_not_repeated_and_a_torn_file_costs_time_only(
    worker: Callable[[], Worker], own_cache: Path
) -> None:
    first = worker()
    assert not first.is_checked
    first.check()
    assert first.is_checked and worker().is_checked
    (own_cache / "probed.json").write_text('{"torn')
    assert not worker().is_checked
    (own_cache / "probed.json").write_text(json.dumps({first.key: "failed"}))
    assert not worker().is_checked, "only what says that it passed counts"


def test_a_check_that_failed_is_never_kept(
    worker: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = worker()
    monkeypatch.setattr(probe, "problem_at", lambda engine, level: "wrong answers")
    with pytest.raises(EvalkitError, match="wrong answers"):
        made.check()
    assert not made.is_checked and kept.read("probed") == {}


def test_everything_that_a_check_follows_from_is_in_its_key(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.resolve(str(tiny_model("llama", max_length=256)))
    wanted = numerics.Numerics(dtype="float32")
    loaded = engine.load(model, Tokenizer(model), wanted, "cpu", level="tree")
    key = outcome.key_of(loaded, model, None, "cpu")
    files = {name: dict(entry) for name, entry in model.files.items()}
    files["model.safetensors"]["sha256"] = "0" * 64
    found = {key, outcome.key_of(loaded, replace(model, files=files), None, "cpu")}
    found.add(outcome.key_of(loaded, model, {"adapter_model.safetensors": "0" * 64}, "cpu"))
    loaded.level = "prefix"
    found.add(outcome.key_of(loaded, model, None, "cpu"))
    loaded.level, loaded.numerics = "tree", replace(wanted, threads=2)
    found.add(outcome.key_of(loaded, model, None, "cpu"))
    loaded.numerics = wanted
    for target, value in (
        ("evalkit.base.kept.code", {"engine/core.py": "0" * 64}),
        ("evalkit.base.machine.stamp.versions", {"torch": "0"}),
        ("evalkit.base.machine.stamp.segment_start", {"hardware": "another CPU"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, lambda *_, value=value: value)
            found.add(outcome.key_of(loaded, model, None, "cpu"))
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        found.add(outcome.key_of(loaded, model, None, "cpu"))
    assert len(found) == 9
    assert outcome.key_of(loaded, model, None, "cpu") == key


# lm-eval's index of its tasks


def write(folder: Path, **configs: Any) -> None:
    """A folder of task YAMLs, each with its config."""
    folder.mkdir(exist_ok=True)
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What of an index decides which tasks are loaded, and from where."""
    return {
        name: (entry.name, entry.kind, entry.yaml_path, entry.tags) for name, entry in found.items()
    }


def test_the_kept_index_is_the_one_that_lm_eval_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """Made, read again, with a suite's own tasks over it, after a change and where it is torn."""
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    write(theirs, one={"task": "one", "tag": ["many", "few"]}, two={"task": "two", "tag": "many"},
          both={"group": "both", "task": ["one", "two"]}, base={"metric": "none"},
          three={"include": "base.yaml", "task": "three", "class": "C"})  # fmt: skip
    write(own, two={"task": "two"}, four={"task": "four", "tag": "many"})
    monkeypatch.setattr(_index, "__file__", os.fspath(theirs / "_index.py"))
    built = 0
    original = _index.TaskIndex.build

    def counting(paths: list[Path]) -> Any:
        nonlocal built
        built += theirs in paths
        return original(paths)

    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(counting))
    for paths in ([theirs], [theirs], [theirs, own]):
        with index.kept_index():
            found = _index.TaskIndex.build(paths)
        assert told(found) == told(original(paths))
    assert built == 1
    write(theirs, five={"task": "five", "tag": "many"})
    with index.kept_index():
        assert told(_index.TaskIndex.build([theirs])) == told(original([theirs]))
    assert built == 2
    (own_cache / "tasks.json").write_text("[torn")
    with index.kept_index():
        assert told(_index.TaskIndex.build([theirs])) == told(original([theirs]))
    assert built == 3


# Rows digests


def test_documents_are_hashed_again_only_where_their_files_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(texts: list[str], name: str) -> Any:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=str(tmp_path / name)
        )

    def digest(documents: Any) -> tuple[int, str]:
        nonlocal hashed
        hashed = 0

        def doc_hash(doc: Any) -> str:
            nonlocal hashed
            hashed += 1
            return str(doc["text"])

        monkeypatch.setattr(row_digests, "doc_hash", doc_hash)
        return row_digests.of(documents)

    hashed = 0
    first = loaded(["a", "b", "c"], "first")
    found = digest(first)
    assert found[0] == hashed == 3
    assert digest(first) == found and hashed == 0
    assert digest(first.select([0, 2]))[0] == hashed == 2, "rows picked from a file"
    assert digest(first.select([0, 2]))[0] == hashed == 2
    assert digest([{"text": text} for text in "abc"]) == found and hashed == 3, "in no file"
    other = digest(loaded(["a", "b", "d"], "other"))
    assert other != found and hashed == 3
    changed = first.map(lambda doc: {"text": doc["text"] + "!"})
    assert digest(changed) not in (found, other) and hashed == 3
