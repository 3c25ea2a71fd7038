"""Rows are pinned one by one, and so are those that shots are drawn from: which one is another is
said by name, on a first download, offline, and by verify."""

import base64
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub as stand_in
import pytest
import runs
import support
import yaml
from hypothesis import given
from hypothesis import strategies as st
from runs import Run
from support import steady

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs import rows
from evalkit.inputs import suite as suites
from evalkit.inputs.locked import pinned_shots
from evalkit.inputs.rows import SIZE, Rows
from evalkit.judge.verify import Report, Status, verify
from evalkit.show import summary

Write = Callable[..., Path]
Value = dict[str, Any]

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}
DOCUMENTS = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(8)]
EXAMPLES = [{"answer": 1 - n % 2, "question": f"Is {n} odd?"} for n in range(5)]  # as YAML sorts
COMMIT = "c0ffee" * 6 + "c0ff"
REASON = "nobody has a copy that is known to be the Hub's"

single = st.binary(max_size=40).map(lambda data: data[: len(data) // SIZE * SIZE])
leaves = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=9),
    st.builds(Rows, single, st.none() | single, single, single),
    max_size=4,
)


# the file


@given(leaves)
@steady
def test_what_is_written_is_read_again_and_has_one_form(found: dict[str, Rows]) -> None:
    text = rows.text(found)
    assert rows.parse(text.encode(), "here") == found
    assert rows.text(dict(reversed(found.items()))) == text


def line(task: str = "a", documents: str = "", **more: Any) -> str:
    body = {"schema": rows.SCHEMA, "task": task, "documents": documents, "prompts": "",
            "targets": "", "shots": None, **more}  # fmt: skip
    return f"{json.dumps(body)}\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (line("b") + line("a"), "line 2: it stands out of order"),
        (line("a") + line("a"), "line 2: it stands out of order, or twice"),
        (line(documents="AAAA"), "not a multiple of 8 bytes"),
        (line(documents="AAAAAAAAAA"), "not base64"),
        (line(documents="no base64"), "does not match"),
        (line(surprise=1), "Additional properties"),
        (line(schema="evalkit/rows/2"), "evalkit/rows/1"),
        (line()[:-5], "damaged in line 1"),
        ('{"task":"a","task":"a"}', "damaged in line 1"),
        ("[" * 100_000, "damaged in line 1"),
        ("\n" * (rows.MAX_LEAVES + 1), "more than 64 MiB or 20,000 leaf tasks"),
    ],
    ids=range(11),
)
def test_what_is_no_such_file_is_refused_in_one_line(text: str, word: str) -> None:
    with pytest.raises(EvalkitError, match=word) as caught:
        rows.parse(text.encode(), "here")
    assert caught.value.code is Exit.FAILED and "evalkit lock" in str(caught.value)


@given(st.lists(st.binary(min_size=SIZE, max_size=SIZE), max_size=6), st.data())
@steady
def test_the_first_row_that_differs_is_named(locked: list[bytes], data: st.DataObject) -> None:
    assert rows.difference(b"".join(locked), b"".join(locked)) == ""
    changed = data.draw(st.sets(st.sampled_from(range(len(locked))))) if locked else set()
    made = b"".join(
        bytes(255 - byte for byte in row) if index in changed else row
        for index, row in enumerate(locked)
    )
    said = rows.difference(made, b"".join(locked))
    if changed:
        assert said.startswith(f"document {min(changed)} (counted from 0) is not the locked one")
        assert said.endswith(f", {len(changed)} of {len(locked)} differ")
    longer = rows.difference(b"".join([*locked, bytes(SIZE)]), b"".join(locked), "row")
    assert longer == f"row {len(locked)} (counted from 0) is not in the lock"
    if locked:
        said = rows.difference(b"".join(locked[:-1]), b"".join(locked))
        assert said == f"document {len(locked) - 1} (counted from 0) is missing"


@pytest.mark.parametrize("name", ["core", "demo", "leaderboard"])
def test_the_shipped_files_hold_each_row_that_their_locks_count(name: str) -> None:
    lock = suites.lock_of(suites.load(name))
    assert lock.each.keys() == lock.tasks.keys()
    for leaf, task in lock.tasks.items():
        assert len(lock.each[leaf].documents) == SIZE * task["documents"], leaf
        drawn = lock.each[leaf].shots
        if pinned_shots(task):
            assert task["shots"] is not None and drawn is not None
            assert len(drawn) == SIZE * task["shots"]["rows"], leaf
        else:
            assert drawn is None, leaf


def test_shots_are_pinned_where_they_are_drawn_and_hellaswags_are_unknown() -> None:
    core, board = (suites.lock_of(suites.load(name)) for name in ("core", "leaderboard"))
    assert {n for n, t in core.tasks.items() if t["shots"]} == {n for n in core.tasks if "bbh" in n}
    unpinned = {n: t["shots"] for n, t in board.tasks.items() if not pinned_shots(t)}
    assert unpinned.keys() == {"hellaswag"} and "unknown" in (unpinned["hellaswag"] or {})
    assert board.tasks["mmlu_anatomy"]["shots"] == {
        "split": "dev", "rows": 5, "digest": board.tasks["mmlu_anatomy"]["shots"]["digest"],  # type: ignore[index]
    }  # fmt: skip


# locks


def write_suite(folder: Path, *members: Any, **settings: Any) -> Path:
    path = folder / "own.yaml"
    body = {"name": "own", "tasks": list(members), "include_path": "tasks", **settings}
    path.write_text(yaml.safe_dump(body))
    return path


def lock_file(suite: Path) -> Path:
    return suite.with_name("own.lock.yaml")


def edit(suite: Path, change: Callable[[Value], None]) -> None:
    """Change a suite's lock by hand."""
    lock = yaml.safe_load(lock_file(suite).read_text())
    change(lock)
    lock_file(suite).write_text(yaml.safe_dump(lock))


def as_unknown(lock: Value) -> None:
    lock["tasks"]["own_a"]["shots"] = {"unknown": REASON}


@pytest.fixture
def shots(tmp_path: Path, write_task: Write) -> Path:
    """A suite of two tasks that draw shots, of a split and of the YAML, and one that draws none."""
    pytest.importorskip("lm_eval")
    from evalkit.harness import locking

    tasks = tmp_path / "tasks"
    path = write_task(tasks, "own_a", DOCUMENTS, **CHOICES, fewshot_split="dev")
    examples = "".join(json.dumps(example) + "\n" for example in EXAMPLES)
    (tasks / "dev.jsonl").write_text(examples)
    body = yaml.safe_load(path.read_text())
    body["dataset_kwargs"]["data_files"]["dev"] = "dev.jsonl"
    path.write_text(yaml.safe_dump(body))
    inline = {"sampler": "first_n", "samples": EXAMPLES[:3]}
    write_task(tasks, "own_b", DOCUMENTS, **CHOICES, fewshot_config=inline, num_fewshot=3)
    write_task(tasks, "own_c", DOCUMENTS, **CHOICES, num_fewshot=0)
    suite = write_suite(tmp_path, {"task": "own_a", "num_fewshot": 2}, "own_b", "own_c")
    locking.write_lock(str(suite))
    return suite


def load(suite: Path) -> Any:
    from evalkit.harness import tasks

    read = suites.load(str(suite))
    return tasks.load_locked(read, suites.lock_of(read), offline=True)


def digest(documents: list[Value]) -> str:
    """As the lock has it, by hand."""
    return f"sha256:{runs.sha256(''.join(map(runs.doc_hash, documents)))}"


def test_a_lock_pins_what_shots_are_drawn_from_where_any_are(shots: Path) -> None:
    lock = suites.read_lock(lock_file(shots))
    pinned = {name: task["shots"] for name, task in lock.tasks.items()}
    assert pinned == {
        "own_a": {"split": "dev", "rows": 5, "digest": digest(EXAMPLES)},
        "own_b": {"split": None, "rows": 3, "digest": digest(EXAMPLES[:3])},
        "own_c": None,
    }
    assert lock.each["own_a"].shots == rows.joined(map(runs.doc_hash, EXAMPLES))
    each = lock.each["own_c"]
    assert (each.documents, each.shots) == (rows.joined(map(runs.doc_hash, DOCUMENTS)), None)
    prompts = [rows.of_prompts([f"{doc['question']}\nAnswer:"]) for doc in DOCUMENTS]
    targets = [rows.of_target(str(doc["answer"]), [" yes", " no"]) for doc in DOCUMENTS]
    assert (each.prompts, each.targets) == (b"".join(prompts), b"".join(targets))
    identity = suites.identity(suites.load(str(shots)), lock)
    assert identity["shots"] == {name: said for name, said in pinned.items() if said}


def test_shots_are_pinned_the_same_whatever_was_loaded_or_built_before(
    shots: Path, write_task: Write
) -> None:
    """The code of own_r shuffles its rows by Python's and numpy's generators."""
    from evalkit.harness.asking import requests
    from evalkit.harness.data import pinning

    tasks = shots.parent / "tasks"
    (tasks / "utils.py").write_text(
        "import random\nimport numpy\n\n\ndef mix(rows):\n"
        "    order = list(range(len(rows)))\n    random.shuffle(order)\n"
        "    numpy.random.shuffle(order)\n    return rows.select(order)\n"
    )
    path = write_task(tasks, "own_r", DOCUMENTS, **CHOICES, fewshot_split="test")
    path.write_text(path.read_text() + "fewshot_config:\n  process_docs: !function utils.mix\n")
    found = []
    mixed: Value = {"task": "own_r", "num_fewshot": 2}
    for members in (
        [mixed],
        ["own_b", mixed, "own_c"],
        [mixed, {"task": "own_a", "num_fewshot": 1}],
    ):
        suite = write_suite(shots.parent, *members, limit=len(members))
        support.call("lock", suite).done()
        loaded = load(suite)
        requests.build(loaded)  # draws shots
        again = {n: pinning.describe_shots(leaf.task) for n, leaf in loaded.leaves.items()}
        assert {n: leaf.locked["shots"] for n, leaf in loaded.leaves.items()} == again
        found.append(suites.read_lock(lock_file(suite)).tasks["own_r"]["shots"])
    assert found[0] is not None and found[0]["digest"] != digest(DOCUMENTS), "it is mixed"
    assert found == [found[0]] * 3


def test_a_changed_document_is_named_with_what_to_do(shots: Path, write_task: Write) -> None:
    """A task's own code, whose data files' digest stays, rewrites one document."""
    tasks = shots.parent / "tasks"
    (tasks / "utils.py").write_text(
        "def mend(rows):\n    return rows.map(lambda doc, index: {**doc, 'question':"
        " doc['question'] + '?' * (index in (5, 6))}, with_indices=True)\n"
    )
    write_task(tasks, "own_c", DOCUMENTS, "process_docs: !function utils.mend\n", **CHOICES)
    ran = support.call("plan", "--model", "demo", "--suite", shots, "--out", shots.parent / "out")
    said = "task 'own_c': document 5 (counted from 0) is not the locked one, 2 of 8 differ"
    ran.refused(1, said, str(lock_file(shots)), f"refresh the lock with `evalkit lock {shots}`")


def test_a_changed_example_in_a_tasks_yaml_is_named(shots: Path, write_task: Write) -> None:
    samples = [EXAMPLES[0], EXAMPLES[1], EXAMPLES[4]]
    inline = {"sampler": "first_n", "samples": samples}
    tasks = shots.parent / "tasks"
    write_task(tasks, "own_b", DOCUMENTS, **CHOICES, fewshot_config=inline, num_fewshot=3)
    said = (
        "task 'own_b': shots of its own YAML: row 2 .counted from 0. is not the locked one, 1 of 3"
    )
    with pytest.raises(EvalkitError, match=said):
        load(shots)


def test_shots_that_the_lock_does_not_know_are_refused(shots: Path) -> None:
    write_suite(shots.parent, {"task": "own_a", "num_fewshot": 0}, "own_b", "own_c")
    with pytest.raises(EvalkitError, match="it draws no shots, the lock says shots from the split"):
        load(shots)
    edit(shots, lambda lock: lock["tasks"]["own_a"].update(shots=None))
    write_suite(shots.parent, {"task": "own_a", "num_fewshot": 1}, "own_b", "own_c")
    with pytest.raises(EvalkitError, match=r"from the split 'dev', the lock says no shots"):
        load(shots)


def test_unknown_shots_are_written_by_hand_and_stay_until_they_are_updated(shots: Path) -> None:
    pinned = lock_file(shots).read_text()
    edit(shots, as_unknown)
    assert load(shots).leaves["own_a"].locked["shots"]["rows"] == 5, "whatever they are"
    support.call("lock", shots).done()
    kept = suites.read_lock(lock_file(shots))
    assert kept.tasks["own_a"]["shots"] == {"unknown": REASON} and kept.each["own_a"].shots is None
    assert pinned_shots(kept.tasks["own_b"])
    support.call("lock", shots, "--update").done()
    assert lock_file(shots).read_text() == pinned


def test_unknown_shots_warn_in_the_summary_and_in_verify(shots: Path) -> None:
    edit(shots, as_unknown)
    ran = support.call("eval", "--model", "demo", "--suite", shots, "--out", shots.parent / "out")
    note = f"the rows that own_a's shots are drawn from are not pinned: {REASON}"
    assert note in " ".join(ran.done().err.split())
    record = support.read(ran.folder)
    assert record["suite"]["shots"]["own_a"] == {"unknown": REASON}
    assert note in summary.notes(record)
    report = verify(ran.folder)
    assert report.consistent
    assert detail(report, "shots", Status.WARN) == (
        f"1 leaf tasks' shots are drawn from rows that no lock pins: own_a ({REASON});"
        " 1 leaf tasks' shots are drawn from locked rows"
    )
    assert detail(report, "rows", Status.PASS) == "3 leaf tasks' documents are the locked ones"


def test_a_lock_of_an_earlier_evalkit_says_what_to_do_and_is_brought_up_with_its_revisions(
    shots: Path,
) -> None:
    now = lock_file(shots).read_text()
    rows.beside(lock_file(shots)).unlink()

    def earlier(lock: Value) -> None:
        del lock["rows_file"]
        lock["schema"] = "evalkit/lock/1"
        for task in lock["tasks"].values():
            del task["shots"]

    edit(shots, earlier)
    out = shots.parent / "out"
    ran = support.call("plan", "--model", "demo", "--suite", shots, "--out", out)
    ran.refused(3, "of an earlier evalkit", f"run `evalkit lock {shots}` once")
    support.call("lock", shots).done()
    assert lock_file(shots).read_text() == now
    load(shots)


def test_a_lock_whose_single_rows_are_missing_or_anothers_says_what_to_do(shots: Path) -> None:
    file = rows.beside(lock_file(shots))
    text = file.read_text()
    out = shots.parent / "out"
    file.unlink()
    ran = support.call("plan", "--model", "demo", "--suite", shots, "--out", out)
    ran.refused(3, "single rows is missing", str(file), "`evalkit lock`")
    file.write_text(text.replace("own_c", "own_d"))
    ran = support.call("plan", "--model", "demo", "--suite", shots, "--out", out)
    ran.refused(1, "not the one that the lock beside it names", str(file), "`evalkit lock`")
    support.call("lock", shots).done()
    assert file.read_text() == text


# the Hub


def serve(hub: stand_in.Hub, documents: list[Value], examples: list[Value]) -> None:
    """The same commit, whatever it holds: a mirror that serves other rows than the Hub's."""
    files = {"test": documents, "train": examples}
    data = {
        f"data/{split}.jsonl": "".join(json.dumps(row) + "\n" for row in found)
        for split, found in files.items()
    }
    head = {".hub.json": json.dumps({"sha": COMMIT}), "README.md": "---\nlicense: mit\n---\n"}
    hub.repo("own/shots", head | data)


# Several command lines in one process, which saves the seconds that importing takes.
COMMANDS = """import json, sys
import support
ran = [support.call(*line) for line in json.loads(sys.argv[1])]
print(json.dumps([[each.code, each.out, each.err] for each in ran]))"""


def elsewhere(place: Path, *lines: tuple[str | Path, ...]) -> list[support.Ran]:
    """Command lines with caches of their own, the datasets' and that of plans."""
    tests = os.fspath(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS,
         json.dumps([list(map(str, line)) for line in lines])],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(support.ROOT), tests]),
             "HF_HOME": os.fspath(place / "hf"), "XDG_CACHE_HOME": os.fspath(place / "cache")},
    )  # fmt: skip
    return [support.Ran(*found) for found in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.faults
@pytest.mark.shared
@pytest.mark.timeout(900)
def test_another_row_than_the_locked_is_noticed_on_a_download_offline_and_by_a_deep_verify(
    hub: stand_in.Hub, tmp_path: Path, write_task: Write
) -> None:
    """The revision is the locked one, and so is every document that is asked."""
    path = write_task(tmp_path / "tasks", "own_h", [], **CHOICES, training_split="train")
    body = yaml.safe_load(path.read_text()) | {"dataset_path": "own/shots", "dataset_kwargs": None}
    path.write_text(yaml.safe_dump(body))
    suite = write_suite(tmp_path, {"task": "own_h", "num_fewshot": 2})
    serve(hub, DOCUMENTS, EXAMPLES)
    support.call("lock", suite).done()
    plan = ("plan", "--model", "demo", "--suite", suite, "--out", tmp_path / "planned")
    eval_ = ("eval", "--model", "demo", "--suite", suite, "--out", tmp_path / "out")
    run = support.call(*eval_).done().folder
    deep = ("verify", run, "--deep", "--suite", suite)
    support.call(*deep).done()
    other = [*EXAMPLES[:3], {"answer": 0, "question": "Is 3 odd, then?"}, EXAMPLES[4]]
    serve(hub, DOCUMENTS, other)
    said = "shots from the split 'train': row 3 (counted from 0) is not the locked one, 1 of 5"
    todo = f"compare it with own/shots at {COMMIT[:12]} on the Hub"
    first, offline, deeper = elsewhere(
        tmp_path / "a", plan, (*plan, "--offline"), (*deep, "--offline")
    )
    first.refused(1, f"task 'own_h': {said}", todo)
    offline.refused(1, f"task 'own_h': {said}", todo)
    assert deeper.code == 1 and said in deeper.out and "FAIL  deep" in deeper.out, deeper
    serve(hub, [*DOCUMENTS[:2], *DOCUMENTS[3:]], EXAMPLES)
    (ran,) = elsewhere(tmp_path / "b", plan)
    said = "documents is 7, locked 8; document 2 (counted from 0) is not the locked one"
    ran.refused(1, f"task 'own_h': {said}", todo, f"`evalkit lock {suite}`")


@pytest.mark.shared
@pytest.mark.parametrize(
    "names",
    [
        ["bbh_cot_fewshot_movie_recommendation", "bbh_cot_fewshot_ruin_names"],
        pytest.param(["hellaswag"], marks=pytest.mark.oracle),  # of 10,042 rows
    ],
    ids=["bbh", "hellaswag"],
)
def test_real_rows_are_the_locked_ones(names: list[str], hub: stand_in.Hub, tmp_path: Path) -> None:
    """The three leaf tasks of core whose locks once were of other rows."""
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump({"name": "some", "tasks": names}))
    support.lock_part("core", "some", names, tmp_path / "some.lock.yaml")
    from evalkit.harness import tasks

    suite = suites.load(str(path))
    loaded = tasks.load_locked(suite, suites.lock_of(suite), offline=False)
    assert loaded.leaves.keys() == set(names)


# verify


def detail(report: Report, name: str, status: Status) -> str:
    return next(c.detail for c in report.checks if c.name == name and c.status is status)


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.status is Status.FAIL}


def test_a_limit_that_took_other_documents_than_the_first_is_found(tmp_path: Path) -> None:
    """Two documents of four, with every digest of the record right: but the second is the third."""
    run = Run(limit=2)
    leaf = "arc_challenge"
    assert failed(verify(run.write(tmp_path / "good"))) == set()
    run.hashes[leaf][1:3] = run.hashes[leaf][2:0:-1]
    run.lock["rows_file"] = f"sha256:{runs.sha256(run.rows())}"
    report = verify(run.write(tmp_path / "run"))
    assert failed(report) == {"rows"}
    said = "arc_challenge: document 1 (counted from 0) is not the locked one, 1 of 2 differ"
    assert detail(report, "rows", Status.FAIL) == said


def test_single_rows_that_the_lock_does_not_name_are_found(tmp_path: Path) -> None:
    run = Run()
    lock = run.lock["rows_file"]
    run.hashes["arc_challenge"][0] = "0" * 64
    report = verify(run.write(tmp_path / "other"))
    assert failed(report) == {"completeness"}
    assert "lock.rows is not the file that the lock names" in detail(
        report, "completeness", Status.FAIL
    )
    run = Run()
    run.lock["rows_file"] = f"sha256:{runs.sha256('no rows')}"
    assert lock != run.lock["rows_file"]
    path = run.write(tmp_path / "none")
    (path / "lock.rows").write_text("no rows")
    record = runs.read_record(path)
    record["files"]["lock.rows"] = {"size": 7, "sha256": runs.sha256("no rows")}
    runs.write_record(path, record)
    report = verify(path)
    assert failed(report) == {"completeness"}
    assert "damaged in line 1" in detail(report, "completeness", Status.FAIL)


def test_single_rows_that_contradict_the_lock_beside_them_are_found(tmp_path: Path) -> None:
    """Of a suite of the author's own, whose lock names whatever file its author likes."""
    run = Run()
    run.hashes["arc_challenge"].pop()
    run.lock["rows_file"] = f"sha256:{runs.sha256(run.rows())}"
    report = verify(run.write(tmp_path / "fewer"))
    assert failed(report) == {"completeness", "rows"}
    said = "lock.rows does not fit the lock: arc_challenge is 3, shipped 4"
    assert said in detail(report, "completeness", Status.FAIL)
    run = Run()
    run.hashes["arc_challenge"][2] = "0" * 64
    run.lock["rows_file"] = f"sha256:{runs.sha256(run.rows())}"
    report = verify(run.write(tmp_path / "others"))
    assert failed(report) == {"rows"}
    said = "arc_challenge: document 2 (counted from 0) is not the locked one, 1 of 4 differ"
    assert detail(report, "rows", Status.FAIL) == said


def test_shots_that_a_record_says_otherwise_than_its_lock_are_found(tmp_path: Path) -> None:
    report = verify(Run().write(tmp_path / "good"))
    assert detail(report, "shots", Status.PASS) == "1 leaf tasks' shots are drawn from locked rows"
    leaf = "bbh_cot_fewshot_navigate"
    changes: dict[str, Callable[[Run], Any]] = {
        "other": lambda run: run.record["suite"]["shots"][leaf].update(rows=4),
        "unknown": lambda run: run.record["suite"]["shots"].update({leaf: {"unknown": "why"}}),
        "none": lambda run: run.record["suite"]["shots"].clear(),
        "more": lambda run: run.record["suite"]["shots"].update(
            arc_challenge=run.record["suite"]["shots"][leaf]
        ),
    }
    for name, change in changes.items():
        run = Run()
        change(run)
        report = verify(run.write(tmp_path / name))
        assert "shots" in failed(report), name
        assert "suite.shots is not the lock's" in detail(report, "shots", Status.FAIL)
    run = Run()
    run.record["tasks"]["arc_challenge"]["num_fewshot"] = 5
    said = detail(verify(run.write(tmp_path / "shots")), "shots", Status.FAIL)
    assert said.startswith("arc_challenge has 5 shots, but suite.shots does not name the rows")


def test_an_earlier_record_is_not_called_broken(tmp_path: Path) -> None:
    run = Run()
    run.record["schema"] = "evalkit/record/3"
    report = verify(run.write(tmp_path / "run"))
    assert report.exit_code is Exit.USAGE
    assert report.lines() == [
        "FAIL  record        record from an earlier schema (evalkit/record/3); this evalkit"
        " reads 4: verify this record with the evalkit that wrote it",
        "UNREADABLE: verify this record with the evalkit that wrote it",
    ]


def test_single_rows_are_left_out_of_a_public_pack(shots: Path, tmp_path: Path) -> None:
    """By a document's own digest whoever has the question could try out the right answer."""
    ran = support.call(
        "eval", "--model", "demo", "--suite", shots, "--out", tmp_path / "out"
    ).done()
    assert (ran.folder / "lock.rows").read_bytes() == rows.beside(lock_file(shots)).read_bytes()
    packed = support.call("pack", "--public", ran.folder).done().folder
    with tarfile.open(packed) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert "lock.yaml" in names and "lock.rows" not in names
    assert support.call("verify", packed).code == 0
    short = base64.b64encode(rows.short(runs.doc_hash(DOCUMENTS[0])))[:10]
    assert short in (ran.folder / "lock.rows").read_bytes()
    assert (
        canon.digest_bytes((ran.folder / "lock.rows").read_bytes())
        in (ran.folder / "lock.yaml").read_text()
    )
