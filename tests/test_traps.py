"""lm-eval's traps: what it does quietly that changes a score, and that evalkit refuses it.

Each test shows the guard at work, and then, with the guard taken away or with lm-eval alone, the
harm that it prevents: a test that also passes without its guard would guard nothing. Tests without
such a second half were seen to fail in a copy of evalkit whose guard had been taken out.
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub as stand_in
import pytest
import yaml

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.harness import locking, tasks
from evalkit.harness.asking import requests
from evalkit.harness.data import loading, pinning
from evalkit.harness.scoring import score
from evalkit.harness.tasks import Loaded
from evalkit.inputs import suite as suites
from evalkit.judge.verify import verify
from evalkit.plan.requests.request import Terms, settings_from
from evalkit.run import evaluate as run
from evalkit.run.loading import load as load_job
from evalkit.run.preparing.prepare import Options
from evalkit.show import summary

pytest.importorskip("lm_eval")

ROOT = Path(__file__).resolve().parent.parent
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": ["yes", "no", "it depends"],
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}
DOCUMENTS = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(12)]
# Its address is in lm-eval's own account of the task's config.
ASK = """from functools import partial


def _ask(doc, word):
    return f"{word} {doc['question']}"


ask = partial(_ask, word="Well,")


def keep(dataset):
    return dataset


def drop(dataset):
    return dataset.select(range(len(dataset) - 1))


def reword(dataset):
    return dataset.map(lambda doc: {**doc, "question": doc["question"].upper()})
"""

Write = Callable[..., Path]
Value = dict[str, Any]


def write_suite(folder: Path, *members: Any, **settings: Any) -> Path:
    """A suite of the tasks in `folder`/tasks."""
    path = folder / "own.yaml"
    body = {"name": "own", "tasks": list(members), "include_path": "tasks", **settings}
    path.write_text(yaml.safe_dump(body))
    return path


def load(suite: Path, *, offline: bool = False) -> Loaded:
    """Load a suite as `evalkit eval` does: with its pinned data, held against its lock."""
    read = suites.load(str(suite))
    lock = suites.lock_of(read)
    job: Any = SimpleNamespace(options=Options("none", offline=offline), suite=read, lock=lock)
    return load_job(job, Events())


def make(suite: Path, model: Path, out: Path) -> Path:
    """A finished run of a suite; its folder."""
    if not suite.with_name("own.lock.yaml").exists():
        locking.write_lock(str(suite))
    options = Options(str(model), str(suite), out=out, device="cpu")
    return run.evaluate(options, Events(), workers=0)


def prompts(loaded: Loaded) -> list[str]:
    return [request.context for request in requests.build(loaded)]


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), **environment},
    )  # fmt: skip
    return done.stdout


def edit_lock(suite: Path, change: Callable[[Value], None]) -> None:
    path = suite.with_name("own.lock.yaml")
    lock = yaml.safe_load(path.read_text())
    change(lock)
    path.write_text(yaml.safe_dump(lock))


@pytest.fixture
def group(tmp_path: Path, write_task: Write) -> Path:
    """A suite of the group `outer`, which holds the group `inner` of two leaf tasks; locked."""
    for name in ("own_a", "own_b"):
        write_task(tmp_path / "tasks", name, DOCUMENTS, **CHOICES)
    for name, children in (("inner", ["own_a", "own_b"]), ("outer", ["inner"])):
        body = {"group": name, "task": children}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(body))
    suite = write_suite(tmp_path, "outer")
    locking.write_lock(str(suite))
    return suite


# Tasks and groups


def test_a_group_that_collapses_into_one_task_is_refused_by_name(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check, of inner's two leaf tasks one is left, and it is called inner."""
    body = {"group": "outer", "task": [{"task": "inner", "num_fewshot": 0}]}
    (group.parent / "tasks" / "outer.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(EvalkitError, match=r"group 'inner' collapsed .*`- group: inner`"):
        load(group)
    monkeypatch.setattr(tasks, "_check_collapsed", lambda *_: None)
    with pytest.raises(EvalkitError, match="2 leaf tasks missing"):
        load(group)  # the lock is a second guard
    monkeypatch.setattr(pinning, "check", lambda *_: None)
    assert list(load(group).leaves) == ["inner"]


def test_a_group_of_groups_with_scores_gives_a_record_that_is_consistent(
    tmp_path: Path, write_task: Write, tiny_model: Callable[..., Path]
) -> None:
    """lm-eval says of a group that stands before its subgroups, as mmlu does, neither that higher
    is better nor that lower is."""
    for name in ("own_a", "own_b"):
        write_task(tmp_path / "tasks", name, DOCUMENTS, **CHOICES)
    mean = [{"metric": "acc", "weight_by_size": True}]
    for name, children in (("inner", ["own_a", "own_b"]), ("outer", ["inner"])):
        body = {"group": name, "task": children, "aggregate_metric_list": mean}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(body))
    finished = make(write_suite(tmp_path, "outer"), tiny_model(), tmp_path / "out")
    groups = canon.read_json(finished / "record.json")["groups"]
    assert groups["outer"]["metrics"]["acc,none"]["higher_is_better"] is None
    assert groups["inner"]["metrics"]["acc,none"]["higher_is_better"] is True
    report = verify(finished)
    assert report.consistent, report.verdict


def test_a_leaf_task_that_is_missing_is_named(group: Path) -> None:
    """lm-eval itself loads what is left of the group and averages over that."""
    body = {"group": "inner", "task": ["own_a"]}
    (group.parent / "tasks" / "inner.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(EvalkitError, match=r"1 leaf tasks missing \(own_b\)") as caught:
        load(group)
    assert caught.value.code == Exit.FAILED


@pytest.mark.parametrize(
    ("process_docs", "complaint"),
    [
        ("drop", r"documents is 11, locked 12; document 11 \(counted from 0\) is missing"),
        ("reword", r"document 0 \(counted from 0\) is not the locked one, 12 of 12 differ"),
    ],
)
def test_changed_documents_are_named(
    process_docs: str, complaint: str, tmp_path: Path, write_task: Write
) -> None:
    """The task's code drops or rewrites a document: its data files' digests don't move."""
    folder = tmp_path / "tasks"
    write_task(folder, "own_a", DOCUMENTS, "process_docs: !function utils.keep\n", **CHOICES)
    (folder / "utils.py").write_text(ASK)
    suite = write_suite(tmp_path, "own_a")
    locking.write_lock(str(suite))
    assert len(load(suite).leaves["own_a"].task.eval_docs) == 12
    extra = f"process_docs: !function utils.{process_docs}\n"
    write_task(folder, "own_a", DOCUMENTS, extra, **CHOICES)
    with pytest.raises(EvalkitError, match=f"task 'own_a': {complaint}"):
        load(suite)


def test_a_changed_data_file_is_named(tmp_path: Path, write_task: Write) -> None:
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, **CHOICES)
    suite = write_suite(tmp_path, "own_a")
    locking.write_lock(str(suite))
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS[::-1], **CHOICES)
    with pytest.raises(EvalkitError, match=r"files:own_a\.jsonl is not the data .* locked to"):
        load(suite)


def test_an_unknown_task_is_answered_with_the_nearest_names(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    original = lm_eval.tasks.TaskManager

    def own_only(include_path: str, include_defaults: bool = False) -> Any:
        return original(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_only)  # 14,000 names take ten seconds
    with pytest.raises(EvalkitError, match=r"unknown task 'iner'.*did you mean inner") as caught:
        locking.write_lock(str(write_suite(group.parent, "iner")))
    assert str(group) in str(caught.value)
    assert caught.value.code == Exit.USAGE


def test_shots_that_lm_eval_would_ignore_are_refused(tmp_path: Path, write_task: Write) -> None:
    """A task whose YAML says 0 shots keeps 0, whatever --num_fewshot says: lm-eval logs it."""
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, num_fewshot=0, **CHOICES)
    with pytest.raises(EvalkitError, match="task 'own_a' fixes num_fewshot at 0, so 5"):
        locking.write_lock(str(write_suite(tmp_path, {"task": "own_a", "num_fewshot": 5})))


def test_a_task_that_is_asked_for_twice_is_refused(group: Path) -> None:
    """lm-eval keeps one of the two by its name, with the shots of whichever came last."""
    with pytest.raises(EvalkitError, match="'own_b' is asked for twice, by 'inner' and 'own_b'"):
        locking.write_lock(str(write_suite(group.parent, "inner", "own_b")))


def test_a_task_that_would_run_a_models_code_is_refused(tmp_path: Path, write_task: Write) -> None:
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, unsafe_code=True, **CHOICES)
    with pytest.raises(EvalkitError, match="'own_a' runs code that a model wrote"):
        locking.write_lock(str(write_suite(tmp_path, "own_a")))


def test_each_task_keeps_its_own_shots(tmp_path: Path, write_task: Write) -> None:
    """lm-eval's one global number would override every task that does not say 0."""
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, num_fewshot=1, **CHOICES)
    write_task(tmp_path / "tasks", "own_b", DOCUMENTS, **CHOICES)
    suite = write_suite(tmp_path, "own_a", {"task": "own_b", "num_fewshot": 3})
    locking.write_lock(str(suite))
    built = requests.build(load(suite))
    shots = {request.task: request.context.count("Answer:") - 1 for request in built}
    assert shots == {"own_a": 1, "own_b": 3}


def test_a_generation_setting_that_evalkit_does_not_know_is_refused(
    tmp_path: Path, write_task: Write
) -> None:
    """Ignoring one would change a score: lm-eval hands it on to transformers."""
    settings = {"until": ["\n"], "num_beams": 4}
    with pytest.raises(EvalkitError, match=r"task 'own_g' sets .* does not know: num_beams"):
        settings_from(settings, task="own_g", terms=Terms())
    generation = {"output_type": "generate_until", "doc_to_text": "{{question}}",
                  "doc_to_target": "no"}  # fmt: skip
    write_task(tmp_path / "tasks", "own_g", DOCUMENTS, generation_kwargs=settings, **generation)
    suite = write_suite(tmp_path, "own_g")
    locking.write_lock(str(suite))
    with pytest.raises(EvalkitError, match="num_beams"):
        requests.build(load(suite))


# Few-shot examples


PROMPTS = """
import json, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_traps
print(json.dumps(test_traps.prompts(test_traps.load(Path(sys.argv[1])))))
"""


@pytest.fixture
def shots(tmp_path: Path, write_task: Write) -> Path:
    """A locked suite whose task draws two examples for each document."""
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, num_fewshot=2, **CHOICES)
    suite = write_suite(tmp_path, "own_a")
    locking.write_lock(str(suite))
    return suite


def test_prompts_are_the_same_in_two_builds(shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seed before each build, two builds of one process differ."""
    loaded = load(shots)
    first = prompts(loaded)
    assert prompts(loaded) == first
    random.seed(99)
    assert prompts(load(shots)) == first
    monkeypatch.setattr("lm_eval.api.task.Task.set_fewshot_seed", lambda *_, **__: None)
    assert prompts(loaded) != first


@pytest.mark.oracle
def test_prompts_are_the_same_in_two_processes(shots: Path) -> None:
    """The other one imports lm-eval, for two seconds, which is why the oracle has it."""
    other = python(PROMPTS, str(shots), os.fspath(Path(__file__).parent), PYTHONHASHSEED="7")
    assert json.loads(other) == prompts(load(shots))


# Datasets and their revisions


def repo_of(*questions: str) -> dict[str, str]:
    """A dataset repo's files: one test split of these questions."""
    lines = [json.dumps({"question": question, "answer": 0}) + "\n" for question in questions]
    return {"data/test.jsonl": "".join(lines), "README.md": "---\nlicense: mit\n---\n"}


@pytest.fixture
def two_revisions(
    hub: stand_in.Hub, tmp_path: Path, write_task: Write
) -> Iterator[tuple[Path, str, str]]:
    """A suite of a Hub dataset, locked to its first commit, and both commits; both are cached."""
    from huggingface_hub import HfApi

    folder = tmp_path / "tasks"
    path = write_task(folder, "own_a", [], **CHOICES)
    body = yaml.safe_load(path.read_text()) | {"dataset_path": "own/questions"}
    path.write_text(yaml.safe_dump(body | {"dataset_kwargs": None}))
    suite = write_suite(tmp_path, "own_a")
    commits = []
    for name in ("first", "second"):
        hub.repo("own/questions", repo_of(f"the {name} commit's"))
        commits.append(str(HfApi().dataset_info("own/questions").sha))
        locking.write_lock(str(suite), update=True)
    edit_lock(suite, lambda lock: pin(lock, commits[0]))
    hub.repo("own/questions", repo_of("the first commit's"))
    locking.write_lock(str(suite))
    yield suite, commits[0], commits[1]


def pin(lock: Value, commit: str) -> None:
    lock["datasets"]["own/questions"]["revision"] = commit


OFFLINE = """
import json, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import datasets, test_traps
suite = Path(sys.argv[1])

def ours(offline):
    try:
        return test_traps.prompts(test_traps.load(suite, offline=offline))[0]
    except test_traps.EvalkitError as error:
        return f"{int(error.code)} {error}"

said = []
for commit in sys.argv[3:]:
    alone = datasets.load_dataset("own/questions", revision=commit)["test"][0]["question"]
    test_traps.edit_lock(suite, lambda lock: test_traps.pin(lock, commit))
    said.append([alone, ours(True), ours(False)])
print(json.dumps(said))
"""


@pytest.mark.faults
@pytest.mark.shared
def test_the_pinned_revision_is_served_whatever_else_is_cached(
    two_revisions: tuple[Path, str, str],
) -> None:
    """Offline, `datasets` itself serves whichever revision came last, for any that is asked for."""
    suite, first, second = two_revisions
    assert "the first commit's" in prompts(load(suite))[0]
    bogus = "0" * 40
    said = python(
        OFFLINE, str(suite), os.fspath(Path(__file__).parent), first, second, bogus,
        HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    alone, ours, untold = zip(*json.loads(said), strict=True)
    assert len(set(alone)) == 1, f"datasets alone serves the pinned one by now: {alone}"
    assert ours[0] == "the first commit's\nAnswer:"
    assert ours[1].startswith("1 suite 'own' is not what its lock says: task 'own_a': document 0 (")
    assert ours[2].startswith(f"3 dataset own/questions at revision {bogus} is not in the cache")
    # nor is anything else served when we don't know that `datasets` can't reach the Hub
    assert untold[:2] == ours[:2]
    assert untold[2].startswith(f"3 dataset own/questions at revision {bogus} is not in the cache")
    assert "the Hub can't be reached" in untold[2]


def test_what_an_older_cache_serves_is_held_against_the_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` still serves folders that its older releases made, whose names tell no commit."""
    import datasets

    (tmp_path / "0.0.0" / "abc").mkdir(parents=True)
    cached = [{"filename": os.fspath(tmp_path / "0.0.0" / "abc" / "test.arrow")}]
    old = SimpleNamespace(cache_files=cached)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"test": old})
    pinned = loading.pinned(loading.Pins({"own/questions": "0" * 40}))
    with pinned, pytest.raises(EvalkitError, match=r"pinned to 0000.* served an unknown revision"):
        datasets.load_dataset("own/questions")


@pytest.mark.shared
def test_a_revision_that_the_hub_does_not_have_is_an_error_online_too(
    two_revisions: tuple[Path, str, str],
) -> None:
    suite = two_revisions[0]
    edit_lock(suite, lambda lock: pin(lock, "0" * 40))
    with pytest.raises(EvalkitError, match="does not serve dataset own/questions at 0000") as found:
        load(suite)
    assert found.value.code == Exit.MISSING


def test_a_dataset_that_the_lock_does_not_name_is_refused(tmp_path: Path) -> None:
    import datasets

    with (
        loading.pinned(loading.Pins({}, include_path=tmp_path)),
        pytest.raises(EvalkitError, match="dataset own/questions is not in the suite's lock"),
    ):
        datasets.load_dataset("own/questions")


def test_a_folder_of_a_datasets_name_does_not_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    for path, text in repo_of("the folder's").items():
        (tmp_path / "own/questions" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own/questions" / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    with (
        loading.pinned(loading.Pins({"own/questions": "0" * 40})),
        pytest.raises(EvalkitError, match="named 'own/questions' in the working directory"),
    ):
        datasets.load_dataset("own/questions")
    alone = datasets.load_dataset("own/questions", revision="0" * 40)
    assert alone["test"][0]["question"] == "the folder's"


# Answers and scores


@pytest.fixture
def nan_model(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A model that gives NaN for every token."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model(), tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_nan_is_wrong_and_counted(
    nan_model: Path, tmp_path: Path, write_task: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy's argmax takes a NaN for the largest: lm-eval scores the first choice as chosen."""
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, **CHOICES)
    suite = write_suite(tmp_path, "own_a")
    record = canon.read_json(make(suite, nan_model, tmp_path / "out") / "record.json")
    assert record["tasks"]["own_a"]["metrics"]["acc,none"]["value"] == 0
    assert record["health"]["nan_answers"] == len(DOCUMENTS)
    monkeypatch.setattr(score, "zero_when_nan", lambda process_results: process_results)
    unguarded = canon.read_json(make(suite, nan_model, tmp_path / "unguarded") / "record.json")
    assert unguarded["tasks"]["own_a"]["metrics"]["acc,none"]["value"] == 0.5


def test_one_nan_among_the_choices_scores_nothing(
    tmp_path: Path, write_task: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN for the right choice alone makes lm-eval call it right."""
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, **CHOICES)
    suite = write_suite(tmp_path, "own_a")
    locking.write_lock(str(suite))

    def accuracy() -> float:
        loaded = load(suite)
        answers = {
            each.id: {
                "loglikelihood": float("nan") if DOCUMENTS[each.doc_id]["answer"] == each.index
                else -1.0 - each.index,
                "is_greedy": False,
                "num_tokens": 1,
            }
            for each in requests.build(loaded)
        }  # fmt: skip
        scoring = score.Scoring(loaded, lambda _: answers)
        assert len(list(scoring.samples())) == len(DOCUMENTS)
        value: float = scoring.results()["results"]["own_a"]["acc,none"]
        return value

    assert accuracy() == 0.0
    monkeypatch.setattr(score, "zero_when_nan", lambda process_results: process_results)
    assert accuracy() == 1.0


def test_two_models_never_share_a_run_or_an_answer(
    runs_of_two: tuple[Path, Path],
) -> None:
    """lm-eval's --use_cache is not keyed by the model: the second is given the first's answers."""
    one, two = (canon.read_json(folder / "record.json") for folder in runs_of_two)
    assert runs_of_two[0] != runs_of_two[1]
    assert runs_of_two[0].parent == runs_of_two[1].parent, "both models are called `model`"
    assert one["ids"]["suite"] == two["ids"]["suite"]
    assert one["ids"]["plan"] == two["ids"]["plan"], "the tokenizer is the same"
    assert one["ids"]["run"] != two["ids"]["run"]
    assert one["ids"]["answers"] != two["ids"]["answers"]


@pytest.fixture(scope="session")
def runs_of_two(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path], write_task: Write
) -> tuple[Path, Path]:
    """Finished runs of two models of one name on one suite, with code of its own, in one folder."""
    folder = tmp_path_factory.mktemp("two-models")
    config = {key: value for key, value in CHOICES.items() if key != "doc_to_text"}
    write_task(
        folder / "tasks", "own_a", DOCUMENTS, "doc_to_text: !function utils.ask\n", num_fewshot=2,
        **config,
    )  # fmt: skip
    (folder / "tasks" / "utils.py").write_text(ASK)
    suite = write_suite(folder, "own_a")
    models: list[Path] = []
    for seed in (0, 1):
        models.append(shutil.copytree(tiny_model(seed=seed), folder / str(seed) / "model"))
    return make(suite, models[0], folder / "out"), make(suite, models[1], folder / "out")


def test_no_path_of_this_host_and_no_address_is_published(
    runs_of_two: tuple[Path, Path],
) -> None:
    """lm-eval's own account of the task holds the YAML's path and a function's address."""
    folder = runs_of_two[0]
    suite_folder = folder.parents[2]
    own = str(load(suite_folder / "own.yaml").leaves["own_a"].task.dump_config())
    assert str(suite_folder) in own and " at 0x" in own
    texts = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.suffix in (".json", ".yaml", ".jsonl")
    }
    with gzip.open(folder / "samples.jsonl.gz", "rt") as lines:
        texts["samples.jsonl.gz"] = lines.read()
    assert {"results.json", "record.json", "plan.json", "lock.yaml"} <= texts.keys()
    for name, text in texts.items():
        for private in (str(suite_folder), str(ROOT), sys.prefix, os.environ["HF_HOME"], " at 0x"):
            assert private not in text, f"{name} holds {private}"


def test_a_chat_model_that_is_asked_without_its_template_is_pointed_out() -> None:
    """lm-eval looks for "inst" or "chat" in the model's name, and only logs a warning."""
    record = {
        "model": {"chat_template": "sha256:0"},
        "suite": {"apply_chat_template": False, "shots": {}, "datasets": {}},
        "engine": {"bit_repeatable": True},
        "segments": [],
    }
    assert summary.notes(record) == [
        "the model has a chat template, and the suite does not apply it"
    ]
    assert summary.notes(record | {"suite": record["suite"] | {"apply_chat_template": True}}) == []
    assert summary.notes(record | {"model": {"chat_template": None}}) == []


def test_lm_evals_request_cache_is_not_used(runs_of_two: tuple[Path, Path]) -> None:
    """--cache_requests goes stale, and writes into lm-eval's own folder."""
    from lm_eval.caching import cache

    assert runs_of_two and not list(Path(cache.PATH).glob("*"))


# Saving


def test_a_results_file_that_cannot_be_written_stops_the_run(
    tiny_model: Callable[..., Path], tmp_path: Path, write_task: Write
) -> None:
    """lm-eval logs a warning, exits 0, and the results are gone."""
    write_task(tmp_path / "tasks", "own_a", DOCUMENTS, **CHOICES)
    suite = write_suite(tmp_path, "own_a")
    locking.write_lock(str(suite))
    options = Options(str(tiny_model()), str(suite), out=tmp_path / "out", device="cpu")
    folder = run.plan_only(options, Events())
    (folder / "results.json").mkdir()
    with pytest.raises(EvalkitError, match=r"can't write results\.json") as caught:
        run.evaluate(options, Events(), workers=0)
    assert caught.value.code == Exit.MISSING
    assert not (folder / "record.json").exists()
    (folder / "results.json").rmdir()
    assert run.evaluate(options, Events(), workers=0) == folder
    assert (folder / "record.json").is_file()

    from lm_eval.loggers import EvaluationTracker

    (tmp_path / "file").write_text("no folder")
    tracker = EvaluationTracker(output_path=str(tmp_path / "file"))
    tracker.general_config_tracker.model_name_sanitized = "model"
    tracker.save_results_aggregated({"results": {}}, {})  # says nothing, saves nothing
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_at_the_first_line() -> None:
    journal = canon.Appender(Path("/dev/full"))
    with pytest.raises(EvalkitError, match="can't write full: No space left on device"):
        journal.append({"answers": {}})
