"""A task's own data, in every form that lm-eval takes: the same rows, pinned by their bytes.

Whatever somebody changes takes effect at once, though caches between file and prompt go by names
and times; and nothing that is written holds a path of this host.
"""

import gzip
import json
import os
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import hub as stand_in
import pytest
import yaml

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness import locking, tasks
from evalkit.harness.asking import requests
from evalkit.harness.data import loading
from evalkit.inputs import suite as suites

pytest.importorskip("lm_eval")

ROWS = [{"q": f"Where is number {n}?", "a": "yes" if n % 2 else "no"} for n in range(5)]
TASK = {
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"max_gen_toks": 4, "until": ["\n"]},
    "metric_list": [{"metric": "exact_match"}],
}


def files(split: Any, loader: str = "json", **others: Any) -> dict[str, Any]:
    return {"dataset_path": loader, "dataset_kwargs": {"data_files": {"test": split}, **others}}


FORMS: dict[str, dict[str, Any]] = {
    "one": files("d.jsonl"),
    "absolute": files("ABSOLUTE/d.jsonl"),
    "csv": files("s.csv", "csv", sep=";"),
    "gz": files("z.jsonl.gz"),
    "arrow": files("disk/saved/test/data-00000-of-00001.arrow", "arrow"),
    "parquet": files("p.parquet", "parquet"),
    "list": files(["parts/one.jsonl", "parts/two.jsonl"]),
    "glob": files("parts/*.jsonl"),
    "dir": {"dataset_path": "json", "dataset_kwargs": {"data_dir": "data"}},
    "folder": {"dataset_path": "./data"},
    "absolute_folder": {"dataset_path": "ABSOLUTE/data"},
    "plain_folder": {"dataset_path": "data"},
    "text": {
        **files("d.jsonl"),
        "dataset_kwargs": {"data_files": "d.jsonl"},
        "test_split": "train",
    },
}
CUSTOM = """import json, os
from datasets import Dataset, DatasetDict

def made(**_):
    lines = open(os.path.join(os.path.dirname(__file__), "d.jsonl")).read().splitlines()
    return DatasetDict(test=Dataset.from_list([json.loads(line) for line in lines]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task folder with the same rows in every form."""
    from datasets import Dataset, DatasetDict

    place = tmp_path / "tasks"
    for name in ("d", "parts/one", "parts/two", "data/test"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        write(place / f"{name}.jsonl", ROWS)
    (place / "z.jsonl.gz").write_bytes(gzip.compress((place / "d.jsonl").read_bytes(), mtime=0))
    table = Dataset.from_list(ROWS)
    table.to_csv(place / "s.csv", sep=";", index=False)
    table.to_parquet(place / "p.parquet")
    DatasetDict(test=table).save_to_disk(place / "disk" / "saved")
    (place / "made.py").write_text(CUSTOM)
    return place


def write(path: Path, rows: list[dict[str, Any]], *, same_time: bool = False) -> None:
    """Write rows; with `same_time` the file looks as old as before, as rsync or a backup does."""
    stat = path.stat() if path.exists() else None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if same_time and stat:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def suite_of(folder: Path, forms: dict[str, dict[str, Any]], extra: str = "") -> Path:
    """A suite of a task for each of these forms."""
    for name, form in forms.items():
        text = yaml.safe_dump({"task": f"l_{name}", **TASK, **form})
        (folder / f"{name}.yaml").write_text(text.replace("ABSOLUTE", str(folder)) + extra)
    path = folder.parent / "own.yaml"
    body = {"name": "own", "tasks": [f"l_{n}" for n in forms], "include_path": "tasks"}
    path.write_text(yaml.safe_dump(body))
    return path


def loaded(path: Path, *, lock: bool = True) -> tasks.Loaded:
    if lock:
        locking.write_lock(str(path), offline=True)
    suite = suites.load(str(path))
    return tasks.load_locked(suite, suites.lock_of(suite), offline=True)


def prompts(path: Path, *, lock: bool = True) -> list[str]:
    return [request.context for request in requests.build(loaded(path, lock=lock))]


def test_what_lm_eval_takes_gives_the_rows_that_lm_eval_gives(folder: Path) -> None:
    from lm_eval.tasks import TaskManager

    custom = "custom_dataset: !function made.made\n"
    path = suite_of(folder, FORMS)
    (folder / "custom.yaml").write_text(
        yaml.safe_dump({"task": "l_custom", "dataset_path": "me/any", **TASK}) + custom
    )
    body = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(body | {"tasks": [*body["tasks"], "l_custom"]}))
    ours = loaded(path).leaves
    with chdir(folder):
        theirs = TaskManager(include_path=".", include_defaults=False)
        for name, leaf in ours.items():
            wanted = list(theirs.load([name])["tasks"][name].eval_docs)
            assert list(leaf.task.eval_docs) == wanted, name
            assert len(wanted) in (5, 10)
    lock = (folder.parent / "own.lock.yaml").read_text()
    assert str(folder) not in lock and str(folder.parent) not in lock
    named = {
        name: task["dataset"] for name, task in suites.lock_of(suites.load(str(path))).tasks.items()
    }
    assert named["l_absolute"] == named["l_one"] == "files:d.jsonl"
    assert named["l_glob"] == "files:parts/*.jsonl" and named["l_dir"] == "files:data/"
    assert named["l_custom"] == "files:made.py"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (files("../outside.jsonl"), "lies outside the suite's task folder"),
        (files("/etc/hostname"), "'hostname' lies outside the suite's task folder"),
        (files("https://example.org/x.jsonl"), "at an address (https://example.org/x.jsonl)"),
        (files("one.jsonl"), "did you mean parts/one.jsonl?"),
        (files("nothing*.jsonl"), "'nothing*.jsonl' is not in the suite's task folder"),
        ({"dataset_path": "arrow", "dataset_kwargs": {"data_dir": "disk/saved"}}, "save_to_disk"),
        ({"dataset_path": "json"}, "neither data_files nor data_dir"),
        ({"dataset_path": "./gone"}, "'gone' is not in the suite's task folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_is_refused_with_the_true_reason(
    form: dict[str, Any], words: str, folder: Path
) -> None:
    with pytest.raises(EvalkitError) as raised:
        loaded(suite_of(folder, {"bad": form}))
    assert words in str(raised.value)
    assert "l_bad" in str(raised.value)
    assert "mend its YAML" not in str(raised.value)


@pytest.mark.parametrize("name", ["one", "gz", "glob", "dir", "folder", "csv"])
def test_changed_data_is_seen_at_once_and_by_the_lock(name: str, folder: Path) -> None:
    """`datasets` finds an unpacked file by its path, and a prepared one by its path and time: with
    either as it was, an edit would not take effect."""
    path = suite_of(folder, {name: FORMS[name]})
    before = prompts(path)
    other = [row | {"q": row["q"].replace("Where", "Since")} for row in ROWS]
    for file in sorted(folder.rglob("*.jsonl")):
        write(file, other, same_time=True)
    for file, text in (("z.jsonl.gz", None), ("s.csv", "Since")):
        place = folder / file
        stat = place.stat()
        made = (
            gzip.compress((folder / "d.jsonl").read_bytes(), mtime=0)
            if text is None
            else place.read_bytes().replace(b"Where", b"Since")
        )
        place.write_bytes(made)
        os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(EvalkitError, match="is not the data that the suite is locked to") as raised:
        prompts(path, lock=False)
    assert raised.value.code == Exit.FAILED
    assert prompts(path) == [prompt.replace("Where", "Since") for prompt in before]


CODE = "def rows(docs):\n    return docs.map(one)\n"
CODE += "def one(doc):\n    return {{'q': '{0}' + doc['q']}}\n"
CODE += "def text(doc):\n    return '{0} ' + doc['q']\n"


def test_changed_code_is_seen_at_once(folder: Path) -> None:
    """`datasets` keeps rewritten documents by the function's name, Python's compiled files go by
    size and whole seconds, lm-eval's modules by time."""
    form = {key: value for key, value in {**FORMS["one"], **TASK}.items() if key != "doc_to_text"}
    extra = "process_docs: !function code.rows\ndoc_to_text: !function code.text\n"
    code = folder / "code.py"
    code.write_text(CODE.format("A"))
    path = suite_of(folder, {"one": FORMS["one"]})
    (folder / "one.yaml").write_text(yaml.safe_dump({"task": "l_one", **form}) + extra)
    assert prompts(path)[0] == "A AWhere is number 0?"
    stat = code.stat()
    code.write_text(CODE.format("B"))
    os.utime(code, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(EvalkitError, match="document 0"):
        prompts(path, lock=False)
    assert prompts(path)[0] == "B BWhere is number 0?"
    assert not (folder / "__pycache__").exists()


@pytest.mark.parametrize(
    ("code", "reason", "fix"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence", "mend its YAML"),
        ("raise Exception('what for?')", "Exception: what for?", "mend its YAML"),
        ("raise SystemExit('no swipl')", "SystemExit: no swipl", "mend its YAML"),
        ("def (", "SyntaxError: invalid syntax", "mend its YAML"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module", "install nowhere_at_all"),
        ("import json.nowhere", "ModuleNotFoundError: No module", "for another version of json"),
        ("raise ImportError('get a, b')", "ImportError: get a, b", "install what it names"),
    ],
)
def test_whatever_a_tasks_code_raises_is_one_line_with_the_tasks_name(
    code: str, reason: str, fix: str, folder: Path
) -> None:
    """A crash with a traceback, until `make census` tried all of lm-eval's own tasks."""
    (folder / "code.py").write_text(code + "\n")
    path = suite_of(folder, {"one": FORMS["one"]}, "process_docs: !function code.rows\n")
    with pytest.raises(EvalkitError, match=f"^task 'l_one' can't be built: {reason}") as caught:
        loaded(path)
    assert fix in str(caught.value)
    assert caught.value.code == (Exit.MISSING if "mport" in code else Exit.USAGE)


def test_choices_that_are_no_list_are_one_line_with_the_tasks_name(folder: Path) -> None:
    form = FORMS["one"] | {"output_type": "multiple_choice", "doc_to_choice": "{{q}}",
                           "metric_list": [{"metric": "acc"}]}  # fmt: skip
    with pytest.raises(EvalkitError, match=r"^task 'l_one' can't be built: SyntaxError"):
        loaded(suite_of(folder, {"one": form}))


def test_a_metric_that_cannot_be_had_is_refused_before_anything_is_computed(
    folder: Path,
) -> None:
    """lm-eval looks for it on the Hub, whose program it would run."""
    metric = {"metric": "own_f1", "aggregation": "mean", "higher_is_better": True}
    path = suite_of(folder, {"one": FORMS["one"] | {"metric_list": [metric]}})
    with pytest.raises(EvalkitError, match="'l_one' is scored with own_f1: a program") as caught:
        loaded(path)
    assert caught.value.code == Exit.USAGE


def test_a_yaml_included_from_elsewhere_is_refused(folder: Path) -> None:
    """Nothing that is pinned would tell that it was changed."""
    (folder.parent / "common.yaml").write_text("num_fewshot: 0\n")
    path = suite_of(folder, {"one": FORMS["one"]}, "include: ../common.yaml\n")
    with pytest.raises(EvalkitError, match=r"includes a YAML from outside .*common"):
        loaded(path)
    shutil.move(folder.parent / "common.yaml", folder / "common.yaml")
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text().replace("../", ""))
    assert len(prompts(path)) == 5


def test_more_shots_than_rows_names_the_suites_shots(folder: Path) -> None:
    path = suite_of(folder, {"one": FORMS["one"] | {"fewshot_split": "test"}})
    body = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(body | {"tasks": [{"task": "l_one", "num_fewshot": 5}]}))
    with pytest.raises(EvalkitError, match=r"5 shots, and there are 5 rows .*num_fewshot: 4"):
        loaded(path)


@pytest.mark.parametrize("split", [None, "test"])
def test_documents_among_their_own_shots_are_counted(split: str | None, folder: Path) -> None:
    """lm-eval keeps them out only where the split that shots come from is named."""
    form = FORMS["one"] | ({"fewshot_split": split} if split else {})
    path = suite_of(folder, {"one": form})
    body = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(body | {"tasks": [{"task": "l_one", "num_fewshot": 3}]}))
    built = requests.build(loaded(path))
    holding = [r.context.count(r.context.rsplit("\n\n", 1)[1]) > 1 for r in built]
    assert [request.leaks for request in built] == holding
    assert any(holding) == (split is None)


# The Hub


def served(name: str, hub: stand_in.Hub) -> None:
    row = {"q": "a word", "a": "yes"}
    line = json.dumps(row) + "\n"
    hub.repo(name, {"README.md": "---\nlicense: mit\n---\n", "a/test.jsonl": line,
                    "b/test.jsonl": 2 * line})  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "count"),
    [({"data_dir": "b"}, 2), ({"data_files": {"test": "a/test.jsonl"}}, 1)],
    ids=["data_dir", "data_files"],
)
def test_a_dataset_with_arguments_is_there_offline_once_it_was_loaded(
    arguments: dict[str, Any], count: int, hub: stand_in.Hub, tmp_path: Path
) -> None:
    name = f"me/kwds{count}"
    served(name, hub)
    (tmp_path / "tasks").mkdir()
    form = {"dataset_path": name, "dataset_kwargs": arguments}
    path = suite_of(tmp_path / "tasks", {"kwds": form})
    locking.write_lock(str(path))
    suite = suites.load(str(path))
    found = tasks.load_locked(suite, suites.lock_of(suite), offline=True)
    assert len(found.leaves["l_kwds"].task.eval_docs) == count
    pins = loading.Pins({name: suites.lock_of(suite).datasets[name]["revision"]}, offline=True)
    with pytest.raises(EvalkitError, match="not in the cache"), loading.pinned(pins):
        import datasets

        datasets.load_dataset(name, data_dir="a")


def test_a_dataset_that_is_a_program_is_refused(hub: stand_in.Hub, tmp_path: Path) -> None:
    hub.repo(
        "me/script", {"README.md": "---\nlicense: mit\n---\n", "script.py": "import datasets\n"}
    )
    (tmp_path / "tasks").mkdir()
    path = suite_of(tmp_path / "tasks", {"script": {"dataset_path": "me/script"}})
    with pytest.raises(EvalkitError, match="scripts are no longer supported") as raised:
        locking.write_lock(str(path))
    assert raised.value.code == Exit.MISSING


def test_a_cache_that_cannot_be_made_is_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    place = folder / "d.jsonl" / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place)
    with pytest.raises(EvalkitError, match="set HF_HOME to a folder") as raised:
        loaded(suite_of(folder, {"one": FORMS["one"]}))
    assert "mend its YAML" not in str(raised.value)
