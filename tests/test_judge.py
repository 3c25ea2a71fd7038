"""What verify is pointed at: several runs, a results folder and its log, plain lm-eval's folders;
and what is asked of a record beyond being consistent."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import scored
import support
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs import Run
from support import ROOT, call
from verifying import changed, scalars, set_score

from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Deep, Judged, Report, Status, Trust, Wanted, judge, policy, verify
from evalkit.record.reading import identity
from evalkit.record.reading.folder import Folder
from evalkit.record.signing import attest, keys

pytestmark = pytest.mark.usefixtures("without_lm_eval")

LEADERBOARD = ROOT / "policies" / "leaderboard.yaml"


def failed(report: Report) -> dict[str, str]:
    """The failing checks."""
    return {check.name: check.detail for check in report.checks if check.status is Status.FAIL}


def detail(report: Report, name: str, status: Status) -> str:
    """What the check of that name and status says."""
    return next(c.detail for c in report.checks if c.name == name and c.status is status)


def rewritten(run: Path, change: Callable[[Any], None]) -> dict[str, Any]:
    """Change run.json and the record alike, and put the digest right; the record."""
    record, body = support.read(run), support.read(run, "run.json")
    change(record)
    change(body)
    reseal(run, "run.json", json.dumps(body).encode(), record)
    support.write(run, record)
    return record


def reseal(run: Path, name: str, data: bytes, record: dict[str, Any]) -> None:
    """Replace a file, and its digest in a record that is yet to be written."""
    (run / name).write_bytes(data)
    record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}


# a results folder and its log


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder of two finished runs, as evalkit leaves it."""
    support.finished(tmp_path)
    folder = tmp_path / "results"
    (run,) = (folder / "demo").glob("demo-*")
    other = shutil.copytree(run, run.with_name(f"{run.name}.2"))
    rewritten(other, lambda body: body.update(execution="0" * 32))
    from evalkit.run import folder as folders
    from evalkit.run.finishing.finish import log_finished

    log_finished(folders.read(other))
    return folder


def log_of(results: Path) -> tuple[Judged, str]:
    """What is found, and what the log's check says."""
    found = judge([results], Wanted())
    return found, found.logs[str(results)].detail


def test_a_results_folder_is_judged_with_its_log(results: Path) -> None:
    found, said = log_of(results)
    assert found.exit_code is Exit.OK and len(found.reports) == 2
    assert said == ("2 lines, each bound to the one before; 2 records, each as its line says")
    assert found.lines()[-1] == "2 CONSISTENT"


def test_a_removed_record_is_named_by_its_line(results: Path) -> None:
    shutil.rmtree(next((results / "demo").glob("*.2")))
    found, said = log_of(results)
    assert found.exit_code is Exit.FAILED
    assert "1 records were removed: demo/demo-" in said and said.endswith(".2")
    assert found.lines()[-1] == "1 CONSISTENT; the audit log is BROKEN"


def test_an_altered_record_is_not_as_its_line_says(results: Path) -> None:
    """Nothing else in the folder tells the weights' number, and the record is not signed."""
    run = next((results / "demo").glob("*.2"))
    rewritten(run, lambda body: body["model"].update(parameters=7))
    found, said = log_of(results)
    assert "1 records are not as their lines say: demo/demo-" in said
    assert all(report.consistent for report in found.reports.values())


def test_a_record_without_a_line_and_one_that_stands_twice_are_named(results: Path) -> None:
    log = results / "audit.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    assert "1 records have no line: demo/demo-" in log_of(results)[1]
    run = next((results / "demo").glob("*.2"))
    shutil.copytree(run, run.with_name("copy"))
    assert "are one execution" in log_of(results)[1]


def test_a_line_that_was_changed_breaks_the_chain(results: Path) -> None:
    log = results / "audit.jsonl"
    first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first.replace(b"finished", b"failed") + second)
    assert "line 2 is not what was written after" in log_of(results)[1]


@pytest.mark.parametrize("text", [b"", b"[", b"[" * 100_000 + b"\n", b"{}\n", b"\xff\n"])
def test_a_log_that_is_none_is_a_failure_and_not_a_crash(results: Path, text: bytes) -> None:
    (results / "audit.jsonl").write_bytes(text)
    assert log_of(results)[0].exit_code is Exit.FAILED


def test_a_linked_log_and_linked_runs_are_not_followed(results: Path, tmp_path: Path) -> None:
    (results / "audit.jsonl").rename(tmp_path / "audit.jsonl")
    (results / "audit.jsonl").symlink_to(tmp_path / "audit.jsonl")
    (results / "linked").symlink_to(results / "demo")
    found, said = log_of(results)
    assert "symbolic link" in said and len(found.reports) == 2


def test_one_models_runs_are_sent_to_the_log_one_folder_up(results: Path) -> None:
    found, said = log_of(results / "demo")
    assert found.exit_code is Exit.OK and said.endswith("holds them against it")
    assert f"`evalkit verify {results}`" in said


def test_runs_without_a_log_are_a_warning(results: Path) -> None:
    (results / "audit.jsonl").unlink()
    found, _ = log_of(results)
    assert found.exit_code is Exit.OK
    assert [check.status for check in found.logs.values()] == [Status.WARN]
    shutil.rmtree(results / "demo")
    (results / "audit.jsonl").write_text("")
    with pytest.raises(EvalkitError, match="no finished run lies here"):
        judge([results], Wanted())


def test_several_runs_have_one_exit_code_and_one_json(tmp_path: Path) -> None:
    good, bad = Run().write(tmp_path / "good"), Run().write(tmp_path / "bad")
    (bad / "plan.json").write_text("{}")
    ran = call("verify", good, bad, "--json")
    assert ran.code == 1
    told = json.loads(ran.out)
    assert told["exit_code"] == 1 and told["verdict"] == "1 BROKEN, 1 CONSISTENT"
    assert told["runs"][str(good)]["verdict"].startswith("CONSISTENT")
    shown = call("verify", good, bad).out.splitlines()
    assert shown[-1] == "1 BROKEN, 1 CONSISTENT"
    assert any(line.startswith("  FAIL  files") for line in shown)
    call("verify", tmp_path / "nowhere").refused(3, "no such run folder")


# plain lm-eval


def plain(run: Run, folder: Path) -> Path:
    """The run as plain lm-eval would have left it: samples by task, and by filter in each."""
    date = "2026-01-02T03-04-05.678901"
    place = folder / "some__model"
    place.mkdir(parents=True)
    (place / f"results_{date}.json").write_text(json.dumps(run.results))
    for leaf in run.configs:
        mine = [sample for sample in run.samples if sample["task"] == leaf]
        mine.sort(key=lambda sample: sample["filter"])
        lines = [{k: v for k, v in sample.items() if k != "task"} for sample in mine]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (place / f"samples_{leaf}_{date}.jsonl").write_text(text)
    return folder


def judged(run: Run, folder: Path) -> Report:
    """What is found in it."""
    (report,) = judge([plain(run, folder)], Wanted()).reports.values()
    return report


def unwhole(run: Run) -> None:
    """A part that says it is the whole."""
    for count in run.results["n-samples"].values():
        count["original"] = count["effective"]
    run.results["config"]["limit"] = None


def renamed(run: Run) -> None:
    """The mean of nothing, called a perplexity, is 1."""
    leaf = "bbh_cot_fewshot_navigate"
    for sample in run.samples:
        if sample["task"] == leaf:
            sample["exact_match"] = 0.0
    run.configs[leaf]["metric_list"][0]["aggregation"] = "perplexity"
    made = {"exact_match,get-answer": 1.0, "exact_match_stderr,get-answer": "N/A"}
    run.results["results"][leaf] |= made


@pytest.mark.parametrize(
    ("run", "change", "words"),
    [
        (Run(limit=2), lambda _: None, "3 tasks are partial"),
        (Run(limit=2), unwhole, "3 tasks' documents are not those of our locks"),
        (Run(), renamed, "1 tasks are scored otherwise than our locks say"),
    ],
)
def test_the_last_line_of_a_plain_folder_says_how_it_is_not_as_our_locks_have_it(
    tmp_path: Path, run: Run, change: Callable[[Run], None], words: str
) -> None:
    """Each passed without a word in it."""
    change(run)
    report = judged(run, tmp_path / "out")
    assert report.verdict.startswith("CONSISTENT") and words in report.verdict


def test_the_last_line_of_a_plain_folder_says_if_no_number_was_computed_again(
    tmp_path: Path,
) -> None:
    folder = plain(Run(), tmp_path / "out")
    for path in folder.glob("*/samples_*"):
        path.unlink()
    (report,) = judge([folder], Wanted()).reports.values()
    assert "so no number can be recomputed" in report.verdict


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results["groups"].update(made_up={"acc,none": 1.0}),
        lambda results: results["groups"].update(science={"acc,none": 1.0}),
        lambda results: results["higher_is_better"]["arc_challenge"].update(acc=False),
    ],
)
def test_a_plain_folder_that_says_a_thing_in_two_ways_is_broken(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    run = Run()
    change(run.results)
    assert "results" in failed(judged(run, tmp_path / "out"))


def test_a_plain_results_folder_is_recomputed_as_far_as_it_goes(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path / "out")
    assert failed(report) == {}
    assert "4 tasks' samples are as many" in detail(report, "completeness", Status.PASS)
    assert detail(report, "scores", Status.PASS).startswith("11 samples of 3 tasks")
    assert "recomputed from the samples, equal" in detail(report, "aggregates", Status.PASS)
    assert "the weights" in detail(report, "unknown", Status.SKIP)
    assert "which model answered, and whether it did, can't be known" in report.verdict


def drop(run: Run) -> None:
    """A document that was answered wrong."""
    run.samples.remove(next(s for s in run.samples if s.get("acc") == 0.0))


def twice(run: Run) -> None:
    """One that was answered right."""
    run.samples.append(next(s for s in run.samples if s.get("acc") == 1.0))


def raise_value(run: Run) -> None:
    run.results["results"]["arc_challenge"]["acc,none"] = 0.99


def raise_group(run: Run) -> None:
    run.results["results"]["science"]["acc,none"] = 0.99


def raise_sample(run: Run) -> None:
    next(s for s in run.samples if s.get("acc") == 0.0)["acc"] = 1.0


def change_doc(run: Run) -> None:
    run.samples[0]["doc"] = run.samples[0]["doc"] | {"question": "easier?"}


def collapse(run: Run) -> None:
    """`- task: mmlu` with an override runs one subject, and is still called mmlu."""
    for section in ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better"):
        run.results[section]["mmlu"] = run.results[section].pop("mmlu_anatomy")
    run.configs = run.results["configs"]
    for sample in run.samples:
        sample["task"] = "mmlu" if sample["task"] == "mmlu_anatomy" else sample["task"]
    run.results["group_subtasks"] = {}
    run.results["groups"] = {}
    del run.results["results"]["science"]


def thin_group(run: Run) -> None:
    run.results["group_subtasks"]["mmlu"] = ["mmlu_anatomy"]
    run.results["results"]["mmlu"] = {"alias": "mmlu"}


def no_task(run: Run) -> None:
    run.samples = [s for s in run.samples if s["task"] != "whole_texts"]
    del run.configs["whole_texts"]


def not_counted(run: Run) -> None:
    """A task whose raised score no check looked at."""
    del run.results["n-samples"]["arc_challenge"]
    run.results["results"]["arc_challenge"]["acc,none"] = 0.99
    run.results["group_subtasks"] = {"science": ["mmlu_anatomy"]}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (drop, "completeness", "stands where"),
        (twice, "completeness", "stands twice for a filter"),
        (raise_value, "aggregates", "arc_challenge acc,none is 0.99"),
        (raise_group, "aggregates", "science acc,none is 0.99"),
        (raise_sample, "scores", "acc is 1.0, should be 0.0"),
        (change_doc, "samples", "is not what its doc_hash says"),
        (collapse, "groups", "mmlu is a group and was run as one task (mmlu_anatomy)"),
        (thin_group, "groups", "4 members of mmlu missing"),
        (no_task, "completeness", "1 tasks without samples: whole_texts"),
        (not_counted, "counted", "1 tasks that n-samples does not count: arc_challenge"),
    ],
)
def test_what_is_wrong_with_a_plain_results_folder_is_found(
    tmp_path: Path, change: Callable[[Run], None], name: str, words: str
) -> None:
    run = Run()
    change(run)
    found = failed(judged(run, tmp_path / "out"))
    assert words in found.get(name, ""), found


def test_a_plain_folder_without_samples_or_with_a_part_says_so(tmp_path: Path) -> None:
    run = Run(limit=2)
    report = judged(run, tmp_path / "out")
    assert failed(report) == {} and "partial" in detail(report, "whole", Status.WARN)
    for path in (tmp_path / "out").rglob("samples_*"):
        path.unlink()
    (report,) = judge([tmp_path / "out"], Wanted()).reports.values()
    assert "--log_samples" in detail(report, "samples", Status.SKIP)


def picked(run: Run) -> None:
    """What `lm_eval --samples` asks: single documents, by their numbers."""
    run.samples = [s for s in run.samples if s["task"] == "mmlu_anatomy" and s["doc_id"] in (1, 4)]
    run.configs = {"mmlu_anatomy": run.configs["mmlu_anatomy"]}
    run.groups, run.documents = {}, {"mmlu_anatomy": [{}, {}]}
    run.results = scored.results(run)


def unscored(run: Run) -> None:
    """What `lm_eval --predict_only` leaves: answers, and a metric that is none."""
    leaf = "bbh_cot_fewshot_navigate"
    run.samples = [s for s in run.samples if s["task"] == leaf]
    for sample in run.samples:
        sample["metrics"], sample["bypass"] = ["bypass"], sample.pop("exact_match") and None
    run.configs = {leaf: run.configs[leaf] | {"metric_list": [{"metric": "bypass"}]}}
    run.groups = {}
    run.results |= {"configs": run.configs, "group_subtasks": {}, "groups": {}, "results": {
        leaf: {"alias": leaf, "sample_len": 3, "bypass,get-answer": 999,
               "bypass_stderr,get-answer": "N/A"},
    }}  # fmt: skip
    for section in ("versions", "n-shot", "n-samples", "higher_is_better"):
        run.results[section] = {leaf: run.results[section][leaf]}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (picked, "completeness", "1 tasks' samples are as many"),
        (unscored, "aggregates", "--predict_only: nothing is scored"),
    ],
)
def test_what_else_lm_eval_can_be_asked_for_is_consistent(
    tmp_path: Path, change: Callable[[Run], None], name: str, words: str
) -> None:
    """Both were BROKEN."""
    run = Run()
    change(run)
    report = judged(run, tmp_path / "out")
    assert failed(report) == {}
    assert words in "; ".join(check.detail for check in report.checks if check.name == name)
    assert ("documents were picked one by one" in report.verdict) == (change is picked)


@pytest.mark.usefixtures("lm_eval")
def test_who_names_another_release_of_lm_eval_is_not_taken_at_his_word(tmp_path: Path) -> None:
    """Nobody can hold its scores against the answers here, so they are not as good as recomputed:
    the last line says so."""
    run = Run()
    set_score(run, "exact_match", 0.0)
    run.results["lm_eval_version"] = "0.4.9"
    report = judged(run, tmp_path / "out")
    assert "from lm-eval 0.4.9, not from" in detail(report, "rescoring", Status.SKIP)
    assert report.verdict.endswith("and don't follow from the answers")


def test_a_plain_folder_meets_no_policy_and_has_no_signer(tmp_path: Path) -> None:
    folder = plain(Run(), tmp_path / "out")
    (report,) = judge([folder], Wanted(policy={"name": "any"})).reports.values()
    assert report.verdict.startswith("UNMET")


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"results": 1}'])
def test_plain_results_that_are_none_are_a_failure_and_not_a_crash(
    tmp_path: Path, text: str
) -> None:
    folder = plain(Run(), tmp_path / "out")
    next(folder.rglob("results_*")).write_text(text)
    (report,) = judge([folder], Wanted()).reports.values()
    assert "not lm-eval's results" in failed(report)["results"]


# a policy


def holds(run: Run, path: Path, rules: dict[str, Any], *, by: str = "") -> str:
    """What a policy finds wrong with a run; `by`: who signs it."""
    folder = run.write(path / runs.sha256(json.dumps(rules))[:12])
    key = keys.Private(Ed25519PrivateKey.generate())
    if by:
        attest.sign(folder, key)
    trust = Trust({key.public: by}) if by else Trust()
    report = verify(folder, Wanted(trust, policy={"name": "test"} | rules))
    assert report.exit_code is (Exit.FAILED if failed(report) else Exit.OK)
    return failed(report).get("policy", "")


def test_a_policy_asks_more_than_being_consistent(tmp_path: Path) -> None:
    run = Run()
    assert holds(run, tmp_path, {}) == ""
    assert holds(run, tmp_path, {"suites": ["core"]}) == "its suite is tiny"
    assert "not the whole of a shipped suite" in holds(run, tmp_path, {"whole": True})
    assert holds(run, tmp_path, {"clean_commit": True}) == ""
    assert "recomputed here (rescoring)" in holds(run, tmp_path, {"recomputed": True})  # no lm-eval
    run.record["code"]["dirty"] = True
    assert "unknown or changed" in holds(run, tmp_path / "dirty", {"clean_commit": True})
    run.record["environment"]["image"] = {"unknown": "none"}
    assert "its image is unknown" in holds(run, tmp_path, {"pinned_image": True})
    digests = [f"sha256:{number * 64}" for number in "01"]
    told = {"of": "sif", "runtime": "apptainer 1.4.0", "asserted_by": "launcher"}
    run.record["environment"]["image"] = told | {"digest": digests[0]}
    assert holds(run, tmp_path / "digest", {"pinned_image": True}) == ""
    assert holds(run, tmp_path / "one", {"pinned_image": digests}) == ""
    assert "its image is sha256:0" in holds(run, tmp_path, {"pinned_image": digests[1:]})
    assert holds(run, tmp_path, {"health": {"exact_ties": 0}}) == ""
    run.record["health"]["answers_not_found"] = 2
    assert "2 answers_not_found" in holds(run, tmp_path, {"health": {"answers_not_found": 1}})


def test_a_policy_asks_for_signers_by_the_readers_names(tmp_path: Path) -> None:
    run = Run()
    assert "not signed by anybody" in holds(run, tmp_path / "a", {"signed": True})
    assert holds(run, tmp_path / "b", {"signed": True}, by="alice") == ""
    assert holds(run, tmp_path / "c", {"signed": ["alice"]}, by="alice") == ""
    assert "not signed by bob" in holds(run, tmp_path / "d", {"signed": ["bob"]}, by="alice")
    assert "not witnessed" in holds(run, tmp_path / "e", {"witnessed": True}, by="alice")
    assert "not reproduced" in holds(run, tmp_path / "f", {"reproduced": True}, by="alice")


def test_the_shipped_policy_is_one_and_names_what_a_demo_lacks(tmp_path: Path) -> None:
    assert policy.read(LEADERBOARD)["name"] == "leaderboard"
    ran = call("verify", Run().write(tmp_path / "run"), "--policy", LEADERBOARD)
    assert ran.code == 1 and ran.out.splitlines()[-1].startswith("UNMET")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nwhole: false", "not valid"),
        ("name: a\nsurprise: 1", "not valid"),
        ("[", "not readable YAML"),
        ("name: a\nhealth: {nan_answers: 1}", "not valid"),
    ],
)
def test_a_policy_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(EvalkitError, match=words):
        policy.read(tmp_path / "policy.yaml")


# deeper, with the data and the model at hand


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A finished demo run."""
    return support.finished(tmp_path)


def deep(run: Path, model: str | None = "demo", suite: str | None = None) -> Report:
    """What the deep checks find."""
    return verify(run, Wanted(deep=Deep(model, suite, offline=True)))


def test_plan_samples_and_results_are_made_again(demo: Path) -> None:
    report = deep(demo)
    assert failed(report) == {}
    assert detail(report, "deep plan", Status.PASS).endswith("built again to the same ids")
    assert "made again by lm-eval, equal" in detail(report, "deep scores", Status.PASS)
    skipped = deep(demo, model=None)
    assert "give --model" in detail(skipped, "deep plan", Status.SKIP)
    assert "made again" in detail(skipped, "deep scores", Status.PASS)


def test_a_prompt_that_is_not_the_tasks_is_found_by_the_lock(demo: Path) -> None:
    """Its author has put every digest of evalkit's right, and it ends with the question."""
    record = support.read(demo)
    text = gzip.decompress((demo / "samples.jsonl.gz").read_bytes()).decode()
    samples = [json.loads(line) for line in text.splitlines()]
    mine = [sample for sample in samples if sample["task"] == "demo_cot_counting"]
    for sample in mine:
        argument = sample["arguments"]["gen_args_0"]
        argument["arg_0"] = "You are very good at this.\n\n" + argument["arg_0"]
        sample["prompt_hash"] = runs.sha256(argument["arg_0"])
    record["tasks"]["demo_cot_counting"]["prompts"] = runs.digest(
        [[sample["doc_id"], sample["prompt_hash"]] for sample in mine]
    )
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    reseal(demo, "samples.jsonl.gz", gzip.compress(lines.encode()), record)
    support.write(demo, record)
    found = failed(verify(demo))
    assert set(found) == {"asked", "results"}  # lm-eval has a digest of its own
    assert "demo_cot_counting: the prompt of document 0 (counted from 0) is not" in found["asked"]


def test_run_json_decided_what_the_record_says(demo: Path) -> None:
    """Its digest put right, nothing else in the folder would tell."""
    record, good = support.read(demo), support.read(demo, "run.json")
    assert identity.planned(Folder(demo), record) == []
    unnoticed = set()
    for where in scalars(good):
        body = json.loads(json.dumps(good))
        parent = body
        for step in where[:-1]:
            parent = parent[step]
        parent[where[-1]] = changed(parent[where[-1]])
        (demo / "run.json").write_text(json.dumps(body))
        if not identity.planned(Folder(demo), record):
            unnoticed.add(where[0])
    assert unnoticed == {"carried", "created", "schema", "unique_tokens"}


def test_another_model_is_not_the_recorded_one(demo: Path, tiny_model: Callable[..., Path]) -> None:
    found = failed(deep(demo, str(tiny_model())))
    assert "are not the recorded ones" in found["deep model"]
    assert "the plan id" in found["deep plan"]


def test_a_suite_of_the_readers_is_asked_for_by_its_file(demo: Path, tmp_path: Path) -> None:
    record = rewritten(demo, lambda body: body["suite"].update(name="mine"))
    lock = yaml.safe_load((demo / "lock.yaml").read_text())
    reseal(demo, "lock.yaml", yaml.safe_dump(lock | {"suite": "mine"}).encode(), record)
    support.write(demo, record)
    assert "give --suite" in detail(deep(demo), "deep suite", Status.SKIP)
    other = support.suite(tmp_path, "mine", ["demo_qa", "demo_endings"])
    assert "tasks is" in failed(deep(demo, suite=str(other)))["deep suite"]


def test_a_broken_record_is_not_looked_at_more_deeply(demo: Path) -> None:
    (demo / "plan.json").write_text("{}")
    assert "only a consistent record" in detail(deep(demo), "deep", Status.SKIP)
