"""A Hub that is busy, broken or changed, a dataset cache that was altered, weights that are no
numbers: the answers of a run without faults, or one clear line and what came before it kept.

huggingface_hub reads its environment once, so where a Hub is asked the command line runs in a
process of its own, with a cache of its own.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faulty_hub
import hub as stand_in
import models
import pytest
import support
import yaml
from faulty_hub import FaultyHub, alter, cut, refuse, reset, tear
from support import Ran, call, spawn

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.harness import locking
from evalkit.harness import tasks as tasks_
from evalkit.harness.data import cache, loading, pinning
from evalkit.inputs import hub as hubs
from evalkit.inputs import suite as suites

datasets = pytest.importorskip("datasets")
errors = pytest.importorskip("huggingface_hub.errors")
pytestmark = [pytest.mark.faults, pytest.mark.shared]

Tell = Callable[[str, str, int], None]

# Run before the command line: every wait is over at once, for faults that don't pass.
HASTE = "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(seconds / 50)"
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}
SHOTS = {"num_fewshot": 2, "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
MMLU = {"dataset_path": "cais/mmlu", "test_split": "test", **CHOICES, **SHOTS}
TASKS: dict[str, dict[str, Any]] = {
    "own_anatomy": {"dataset_name": "anatomy", **MMLU},
    "own_astronomy": {"dataset_name": "astronomy", **MMLU},
    "own_questions": {"dataset_path": "own/questions", "test_split": "test", **CHOICES},
}
TEXTS = "".join(json.dumps({"question": f"which {n}?", "answer": n}) + "\n" for n in range(4))
LOUDER = """
def louder(dataset):
    return dataset.map(lambda doc: {**doc, "question": doc["question"].upper()})
"""
SHA = "c" * 40  # the commit of own/questions, whatever its files are


def questions(word: str) -> dict[str, str]:
    """The files of own/questions."""
    lines = [json.dumps({"question": f"{word} {n}?", "answer": n % 4}) + "\n" for n in range(6)]
    return {"data/test.jsonl": "".join(lines), ".hub.json": json.dumps({"sha": SHA})}


@dataclass(frozen=True)
class Bench:
    """A suite of three tasks in two datasets, a tiny model, and a proxy to the Hub that has both
    for commands that run in `folder`."""

    suite: Path
    model: Path
    proxy: FaultyHub
    hub: stand_in.Hub
    folder: Path

    def arguments(self, command: str = "eval", **options: str) -> list[str | Path]:
        """A command line."""
        chosen = {"model": str(self.model), "out": str(self.folder / "results")} | options
        flags = [word for name, value in chosen.items() for word in (f"--{name}", value)]
        fixed = ["--suite", self.suite, "--limit", "3", "--level", "none", "--device", "cpu"]
        here = ["--workers", "0"] if command == "eval" else []  # each would import torch again
        return [command, *flags, *fixed, *here]

    def run(self, command: str = "eval", *, before: str = "", **options: str) -> Ran:
        """Run a command line that asks the proxy, with caches of the test's own."""
        env = {
            "HF_ENDPOINT": self.proxy.url,
            "HF_HOME": os.fspath(self.folder / "hf"),
            "XDG_CACHE_HOME": os.fspath(self.folder / "xdg"),
        }
        return spawn(*self.arguments(command, **options), before=before, env=env)


@pytest.fixture(scope="module")
def suite(hub: stand_in.Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite, locked."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tasks").mkdir()
    for name, config in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **config}))
    path = folder / "own.yaml"
    body = {"name": "own", "tasks": list(TASKS), "include_path": "tasks"}
    path.write_text(yaml.safe_dump(body))
    hub.repo("own/questions", questions("Which"))
    locking.write_lock(str(path))
    return path


@pytest.fixture(scope="module")
def proxy(hub: stand_in.Hub) -> Iterator[FaultyHub]:
    """The proxy, one for the module."""
    with faulty_hub.faulty(hub.url) as made:
        yield made


@pytest.fixture
def bench(
    suite: Path,
    proxy: FaultyHub,
    hub: stand_in.Hub,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> Iterator[Bench]:
    """Everything in order, and put in order again afterwards."""
    hub.repo("own/questions", questions("Which"))
    shutil.copytree(tiny_model(), hub.models / "org__tiny", dirs_exist_ok=True)
    proxy.heal()
    yield Bench(suite, tiny_model(), proxy, hub, tmp_path)
    hub.repo("own/questions", questions("Which"))
    shutil.rmtree(hub.models / "org__tiny")


@pytest.fixture(scope="module")
def expected(
    suite: Path, hub: stand_in.Hub, tiny_model: Callable[..., Path], tmp_path_factory: Any
) -> dict[str, str]:
    """The ids of the run that meets no fault."""
    healthy = FaultyHub(hub.url, hub.url)
    bench = Bench(suite, tiny_model(), healthy, hub, tmp_path_factory.mktemp("healthy"))
    ran = bench.run()
    return {"answers": answers(ran), "plan": planned(ran)}


def answers(ran: Ran) -> str:
    """The answers id of a finished run."""
    found: str = support.read(ran.done().folder)["ids"]["answers"]
    return found


def planned(ran: Ran) -> str:
    """The plan id of a planned run."""
    found: str = support.read(ran.done().folder, "plan.json")["ids"]["plan"]
    return found


# Faults that pass


def test_datasets_are_fetched_through_faults_that_pass(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    rules = [
        bench.proxy.add(refuse(503), "cais/mmlu.*README.md", "HEAD", 2),
        bench.proxy.add(reset, "own/questions.*README.md", "HEAD", 1),
        bench.proxy.add(refuse(429, Retry_After="2"), "/api/datasets/own", "", 1),
        bench.proxy.add(refuse(500), r"anatomy/dev.*\.parquet$", "GET", 1),
        bench.proxy.add(cut, r"anatomy/test.*\.parquet$", "GET", 1),
        bench.proxy.add(tear, r"astronomy/test.*\.parquet$", "GET", 1),
    ]
    ran = bench.run()
    assert [rule.hits for rule in rules] == [2, 1, 1, 1, 1, 1]
    for told in (
        "the Hub answered 500 when asked for dataset cais/mmlu (anatomy)",
        "the connection to the Hub broke when asked for dataset cais/mmlu (astronomy)",
        "the connection to the Hub broke when asked for dataset own/questions",
    ):
        assert f"{told} of task 'own_" in ran.err, ran.err
    assert answers(ran) == expected["answers"]
    tell("a Hub that answers 429, 500 or 503, cuts or resets", "asked again, the same answers", 1)


def test_a_model_is_fetched_through_faults_that_pass(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    rules = [
        bench.proxy.add(refuse(429, Retry_After="2"), "/api/models/[^/]*/tiny$", "", 1),
        bench.proxy.add(refuse(500), "/config.json$", "GET", 1),
        bench.proxy.add(tear, "model.safetensors$", "GET", 1),
        bench.proxy.add(cut, "model.safetensors$", "GET", 1),
    ]
    ran = bench.run(model="org/tiny")
    assert [rule.hits for rule in rules] == [1, 1, 1, 1]
    assert "the Hub answered 429 when asked for model org/tiny: asking again in 2 s" in ran.err
    assert answers(ran) == expected["answers"]
    tell("a Hub that answers 429, 500 or 503, cuts or resets", "asked again, the same answers", 1)


# Faults that stay


@pytest.mark.faults_full
def test_a_dataset_that_is_not_served_is_one_line_and_the_same_command_goes_on(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    """One after the other, each further on than the last. With another configuration of a dataset
    in the cache, `datasets` does not say what the Hub said."""
    faults: list[tuple[Any, str, tuple[str, ...]]] = [
        (refuse(403), "README.md", ("cais/mmlu (anatomy)", "answered 403", "HF_TOKEN")),
        (refuse(429, Retry_After="1"), "cais/mmlu", ("cais/mmlu (anatomy)", "answered 429")),
        (tear, r"\.parquet$", ("cais/mmlu (anatomy)", "the connection to the Hub broke")),
        (refuse(500), "astronomy", ("cais/mmlu (astronomy)", "answered 500", "own_astronomy")),
        (reset, "own/questions", ("own/questions", "the connection to the Hub broke")),
    ]
    for fault, path, words in faults:
        bench.proxy.heal()
        bench.proxy.add(fault, path)
        started = time.monotonic()
        bench.run(before=HASTE).refused(3, *words, "what was fetched is kept")
        assert time.monotonic() - started < 60
    bench.proxy.heal()
    assert answers(bench.run()) == expected["answers"]
    tell("a Hub that does so all the time", "3 and a line, then the same answers", len(faults))


def test_a_model_that_is_not_served_is_one_line_and_the_same_command_goes_on(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    faults: list[tuple[Any, str, str]] = [
        (refuse(500), "/api/models/", "answered 500"),
        (refuse(429), "model.safetensors", "answered 429"),
        (tear, "model.safetensors$", "the connection to the Hub broke"),
    ]
    for fault, path, told in faults:
        bench.proxy.heal()
        bench.proxy.add(fault, path)
        bench.run(before=HASTE, model="org/tiny").refused(3, "model org/tiny", told)
    bench.proxy.heal()
    assert answers(bench.run(model="org/tiny")) == expected["answers"]
    tell("a Hub that does so all the time", "3 and a line, then the same answers", len(faults))


def test_what_no_patience_helps_against_is_not_asked_for_again(bench: Bench) -> None:
    """An hour's wait that the Hub asks for is the user's to decide; a no is a no."""
    hour = bench.proxy.add(refuse(429, Retry_After="3600"), "cais/mmlu")
    ran = bench.run("plan")
    ran.refused(3, "answered 429", "to wait 3,600 s", "datasets/cais/mmlu", "run the same command")
    assert hour.hits == 1
    bench.proxy.heal()
    no = bench.proxy.add(refuse(404), "/api/models/")
    bench.run("plan", model="org/tiny").refused(3, "answered 404", "org/tiny")
    assert no.hits == 1


# A changed file


def test_a_changed_dataset_under_the_same_revision_is_refused_by_its_tasks_name(
    bench: Bench, tell: Tell
) -> None:
    bench.hub.repo("own/questions", questions("What"))
    ran = bench.run()
    document = "task 'own_questions': document 0 (counted from 0) is not the locked one"
    ran.refused(1, document, "compare it with own/questions", "refresh the lock")
    assert "loading" not in ran.err, "the model was loaded"
    tell("a dataset or model changed under its revision", "refused, naming task or file", 1)


@pytest.mark.faults_full
def test_a_file_that_was_altered_on_its_way_is_not_used(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    """Its size and ETag are right: only its sha256 tells. The dev split is few-shot examples,
    of which a lock knows only where a task has shots."""
    for split in ("test", "dev"):
        bench.proxy.heal()
        bench.proxy.add(alter, rf"anatomy/{split}.*\.parquet$", "GET")
        line = bench.run().refused(1, f"{split}-00000-of", "not the file that the Hub announced")
        blob(line).unlink()  # as the line says
    bench.proxy.heal()
    assert planned(bench.run("plan")) == expected["plan"]
    tell("a download altered on its way or in the cache", "refused, naming it", 2)


def test_weights_that_were_altered_on_their_way_are_not_used(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    bench.proxy.add(alter, "model.safetensors$", "GET")
    ran = bench.run(model="org/tiny")
    line = ran.refused(1, "model.safetensors is not the file that the Hub announced")
    bench.proxy.heal()
    blob(line).unlink()
    assert planned(bench.run("plan", model="org/tiny")) == expected["plan"]
    tell("a download altered on its way or in the cache", "refused, naming it", 1)


def blob(line: str) -> Path:
    """The file that an error is about."""
    return Path(line.partition("(")[2].partition(")")[0])


def test_a_changed_model_under_the_same_revision_is_named(bench: Bench, tell: Tell) -> None:
    """Its files' digests are in the run's identity, so the planned run is not continued with it."""
    folder = bench.hub.models / "org__tiny"
    (folder / ".hub.json").write_text(json.dumps({"sha": SHA}))
    bench.run("plan", model="org/tiny").done()
    models.tiny(folder, seed=1)
    shutil.rmtree(bench.folder / "hf" / "hub" / "models--org--tiny")
    ran = bench.run(model="org/tiny")
    ran.refused(2, "an unfinished run differs in model.model.safetensors:", "--fresh")
    tell("a dataset or model changed under its revision", "refused, naming task or file", 1)


# An altered cache


@dataclass(frozen=True)
class Cached:
    """A cache of the test's own in which everything is prepared, and the plan that comes of it."""

    root: Path
    bench: Bench
    plan: str

    def folder(self, config: str = "anatomy") -> Path:
        """The prepared tables of a configuration of cais/mmlu."""
        (found,) = self.root.glob(f"cais___mmlu/{config}/*/{'[0-9a-f]' * 40}")
        return found

    def again(self, *options: str) -> Ran:
        """Plan in this process, as if for the first time."""
        xdg, out = (self.bench.folder / name for name in ("xdg", "results"))
        for left in (xdg, out):
            shutil.rmtree(left, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", os.fspath(xdg))
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", self.root)
            return call(*self.bench.arguments("plan"), *options)

    def good(self, *options: str) -> None:
        """Assert that planning gives the plan of the undamaged cache."""
        assert planned(self.again(*options)) == self.plan


@pytest.fixture(scope="module")
def prepared(
    suite: Path, hub: stand_in.Hub, tiny_model: Callable[..., Path], tmp_path_factory: Any
) -> tuple[Path, str]:
    """A filled cache, never to be changed, and the plan id."""
    bench = Bench(
        suite, tiny_model(), FaultyHub(hub.url, hub.url), hub, tmp_path_factory.mktemp("prepared")
    )
    hub.repo("own/questions", questions("Which"))
    return bench.folder / "hf" / "datasets", planned(bench.run("plan"))


@pytest.fixture
def cached(prepared: tuple[Path, str], bench: Bench) -> Cached:
    """A copy of the filled cache."""
    root = shutil.copytree(prepared[0], bench.folder / "datasets")
    return Cached(root, bench, prepared[1])


def reword(path: Path, old: bytes, new: bytes) -> None:
    """Change a text within a file, not its length."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def halve(path: Path) -> None:
    """Cut a file in two."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "name", "told"),
    [
        (lambda path: reword(path, b"the", b"teh"), "mmlu-test.arrow", "is not what it was"),
        (lambda path: reword(path, b"the", b"teh"), "mmlu-dev.arrow", "is not what it was"),
        (halve, "mmlu-test.arrow", "is not what it was"),
        (Path.unlink, "mmlu-dev.arrow", "is gone"),
        (halve, "dataset_info.json", "is not what it was"),
        (halve, cache.SEAL, "can't be read"),
    ],
    ids=["a question", "an example", "truncated", "deleted", "its description", "the seal"],
)
def test_a_cache_that_was_altered_is_named_and_made_anew_once_it_is_deleted(
    cached: Cached, damage: Callable[[Path], None], name: str, told: str, tell: Tell
) -> None:
    damage(cached.folder() / name)
    words = ("dataset cais/mmlu (anatomy) of task 'own_anatomy'", f"{name} {told}", "delete that")
    cached.again("--offline").refused(1, *words, str(cached.folder()))
    cached.again().refused(1, *words)
    shutil.rmtree(cached.folder())  # as the line says
    cached.good()
    cached.good("--offline")
    tell("a prepared dataset altered, truncated or deleted", "refused, naming dataset and task", 1)


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (lambda path: reword(path, b"the", b"teh"), "mmlu-test.arrow", ("is not the locked one",)),
        (halve, "mmlu-test.arrow", ("is damaged", "of task 'own_anatomy'")),
        (Path.unlink, "mmlu-dev.arrow", ("is damaged", "mmlu-dev.arrow")),
        (halve, "dataset_info.json", ("is damaged", "of task 'own_anatomy'")),
        (Path.unlink, "dataset_info.json", ("is damaged", "of task 'own_anatomy'")),
    ],
    ids=["a question", "truncated", "deleted", "half a description", "no description"],
)
def test_a_damaged_cache_without_a_seal_is_one_line_too(
    cached: Cached, damage: Callable[[Path], None], name: str, words: tuple[str, ...], tell: Tell
) -> None:
    """As an older evalkit or another program left it."""
    (cached.folder() / cache.SEAL).unlink()
    damage(cached.folder() / name)
    cached.again("--offline").refused(1, *words, "own_anatomy", "cais/mmlu")
    tell("a prepared dataset altered, truncated or deleted", "refused, naming dataset and task", 1)


def test_a_configuration_that_was_deleted_is_fetched_again(cached: Cached) -> None:
    shutil.rmtree(cached.folder("astronomy"))
    cached.again("--offline").refused(3, "cais/mmlu (astronomy)", "not in the cache", "offline")
    cached.good()


def test_a_cache_that_can_not_be_written_to_is_used_as_it_is(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise EvalkitError("can't write")

    for seal in cached.root.rglob(cache.SEAL):
        seal.unlink()
    parts = {"read_json": canon.read_json, "sha256_file": canon.sha256_file}
    monkeypatch.setattr(cache, "canon", SimpleNamespace(**parts, write_json=read_only))
    cached.good("--offline")
    assert not list(cached.root.rglob(cache.SEAL))


def test_a_cached_download_that_was_altered_is_not_prepared(
    bench: Bench, expected: dict[str, str], tell: Tell
) -> None:
    """A large file, which the Hub names by its sha256, and a small one, which git named."""
    bench.run("plan").done()
    snapshot = next((bench.folder / "hf" / "hub" / "datasets--cais--mmlu" / "snapshots").iterdir())
    for name in ("anatomy/test-00000-of-00001.parquet", "README.md"):
        for left in (bench.folder / "hf" / "datasets", bench.folder / "xdg"):
            shutil.rmtree(left, ignore_errors=True)
        for left in bench.folder.glob("results/*"):
            shutil.rmtree(left)
        damaged = (snapshot / name).resolve()
        halve(damaged)
        bench.run("plan").refused(1, "not the file that the Hub announced", str(damaged))
        damaged.unlink()
    assert planned(bench.run("plan")) == expected["plan"]
    tell("a download altered on its way or in the cache", "refused, naming it", 2)


def test_documents_that_a_task_rewrote_are_sealed_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` keeps them beside the tables, and takes them from there the next time."""
    bench.hub.repo("own/examples", {"data/train.jsonl": TEXTS, "data/test.jsonl": TEXTS})
    config = {"dataset_path": "own/examples", "test_split": "test", "fewshot_split": "train"}
    body = {"task": "own_examples", "num_fewshot": 2, **config, **CHOICES}
    tasks = bench.folder / "tasks"
    tasks.mkdir()
    text = yaml.safe_dump(body) + "process_docs: !function utils.louder\n"
    (tasks / "own_examples.yaml").write_text(text)
    (tasks / "utils.py").write_text(LOUDER)
    path = bench.folder / "own.yaml"
    suite = {"name": "own", "tasks": ["own_examples"], "include_path": "tasks"}
    path.write_text(yaml.safe_dump(suite))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", bench.folder / "datasets")
    lock = suites.read_lock(locking.write_lock(str(path)))
    (folder,) = bench.folder.glob("datasets/own___examples/*/*/*/")
    rewritten = list(folder.glob("cache-*.arrow"))
    assert len(rewritten) == 2, "one of each split"
    assert {path.name for path in rewritten} < support.read(folder, cache.SEAL).keys()
    read = suites.load(str(path))
    pins = loading.Pins(
        {"own/examples": lock.datasets["own/examples"]["revision"]}, read.include_path
    )
    rewritten[0].unlink()
    tasks_.load(read, pins)
    reword(rewritten[1], b"WHICH", b"WITCH")
    with pytest.raises(EvalkitError, match=f"{rewritten[1].name} is not what it was"):
        tasks_.load(read, pins)


def test_the_prepared_copy_of_a_suites_own_file_is_sealed_too(
    write_task: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's digest is the lock's, but `datasets` serves what it made of it before."""
    texts = [{"question": f"which {n}?", "answer": n} for n in range(4)]
    write_task(tmp_path / "tasks", "own_a", texts, **CHOICES)
    path = tmp_path / "own.yaml"
    body = {"name": "own", "tasks": ["own_a"], "include_path": "tasks"}
    path.write_text(yaml.safe_dump(body))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    lock = suites.read_lock(locking.write_lock(str(path)))
    read = suites.load(str(path))
    pins = loading.Pins(
        {name: d["revision"] for name, d in lock.datasets.items()}, read.include_path
    )
    (table,) = tmp_path.glob("datasets/evalkit-files/*/json/*/*/*/json-test.arrow")
    for damage in (lambda: reword(table, b"which", b"witch"), lambda: halve(table)):
        damage()
        told = r"files:own_a\.jsonl of task 'own_a' was altered .* json-test\.arrow is not what"
        with pytest.raises(EvalkitError, match=told):
            tasks_.load(read, pins)
    shutil.rmtree(table.parent)
    pinning.check(tasks_.load(read, pins), lock)


# Weights that are no numbers


def test_nan_weights_are_counted_score_nothing_and_break_the_record(
    tiny_model: Callable[..., Path], tmp_path: Path, tell: Tell
) -> None:
    """One NaN in one weight, in a suite of choices and of generations."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model(), tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    ran = call(
        "eval",
        "--model",
        folder,
        "--suite",
        "demo",
        "--limit",
        "2",
        "--out",
        tmp_path,
        "--workers",
        "0",
    )
    assert ran.code == 1 and "BROKEN" in ran.err, ran.err + ran.traceback
    record = support.read(ran.folder)
    asked = sum(task["n"] for task in record["tasks"].values())
    assert record["health"]["nan_answers"] == asked, "generations among them"
    for name in ("demo_letters_days", "demo_endings"):
        assert record["tasks"][name]["metrics"]["acc,none"]["value"] == 0
    told = call("verify", ran.folder)
    assert told.code == 1 and f"{asked} samples with a NaN answer" in told.out, told.out
    tell("weights with a NaN", "every answer counted, verify says BROKEN", 1)


# How the Hub is asked


def answered(status: int, path: str = "", **headers: str) -> Exception:
    """The error that huggingface_hub raises for an answer."""
    request = SimpleNamespace(url=f"http://hub{path}")
    response: Any = SimpleNamespace(status_code=status, headers=headers, request=request)
    error: Exception = errors.HfHubHTTPError("no", response=response)
    return error


def test_errors_that_another_try_does_not_help_against_are_told_apart() -> None:
    for status in (400, 401, 403, 404, 416):
        assert not hubs.may_pass(answered(status))
    for status in hubs.BUSY:
        assert hubs.may_pass(answered(status, "/api/models/org/tiny"))
    assert hubs.may_pass(OSError("Consistency check failed: file should be of size 2 but has 1"))
    for other in (ConnectionError("offline"), OSError(13, "Permission denied", "cache")):
        assert not hubs.may_pass(other)


def test_what_huggingface_hub_asks_again_for_itself_is_not_asked_for_once_more() -> None:
    for status in hubs.BUSY:
        metadata = errors.LocalEntryNotFoundError("no")
        metadata.__cause__ = answered(status, "/org/tiny/resolve/main/config.json")
        assert not hubs.may_pass(metadata) and hubs.status(metadata) == status
        assert not hubs.may_pass(answered(status, "/api/models/org/tiny/tree/main"))
        file = answered(status, "/org/tiny/resolve/main/config.json")
        assert hubs.may_pass(file) == (status not in (408, 429))


def test_an_error_is_not_taken_for_one_that_was_dealt_with_before() -> None:
    """`datasets` goes on from within its handler of a 404, for a script that it looks for."""
    broke = hubs._client().ReadError("the other end is gone")
    broke.__cause__ = ConnectionResetError()
    broke.__cause__.__context__ = answered(404)
    assert hubs.status(broke) is None and hubs.may_pass(broke)
    assert hubs.reason(broke) == "the connection to the Hub broke"


def test_a_wait_is_as_long_as_the_hub_says_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = [
        answered(429, **{"retry-after": "7"}),
        answered(429, ratelimit='"api";r=0;t=55'),
        answered(503, **{"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)

    def ask() -> str:
        if said:
            raise said.pop(0)
        return "an answer"

    assert hubs.patiently("model org/tiny", ask) == "an answer"
    assert waits == [7, 56, hubs.WAITS_S[-1]]
    assert "the Hub answered 429 when asked for model org/tiny: asking again in 56 s" in caplog.text


def test_what_went_wrong_is_said_in_words() -> None:
    assert hubs.reason(answered(500)) == "the Hub answered 500"
    assert hubs.reason(OSError(28, "No space left on device")) == "the disk is full"
    assert hubs.reason(OSError("Cannot find it.\nNo space left on device")) == "the disk is full"
    assert hubs.reason(ConnectionError("offline")) == "the Hub can't be reached"
    assert "Permission denied (cache)" in hubs.reason(OSError(13, "Permission denied", "cache"))
