"""`compare`: which documents are paired, which test a row gets, what is left out, and the gate."""

import gzip
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import support
from runs import Run
from support import call

from evalkit.base import statistics
from evalkit.base.errors import EvalkitError
from evalkit.judge.compare import Comparison, Row, compare, gate, letters, text
from evalkit.judge.verify import Report

pytestmark = pytest.mark.usefixtures("in_this_process", "without_lm_eval")

EXAMPLE = next((support.ROOT / "results/example").glob("*/record.json")).parent
Change = Callable[[dict[str, Any]], None]
TIME = "2026-01-02T03-04-05.678901"


def plain(folder: Path, change: Change = lambda sample: None, time: str = TIME) -> Path:
    """The committed demo record as `lm_eval --log_samples` would have left it, each sample changed
    first; means and groups follow from the samples."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.loads((EXAMPLE / "results.json").read_text())
    by_leaf: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(EXAMPLE / "samples.jsonl.gz", "rt") as lines:
        for line in lines:
            sample = json.loads(line)
            change(sample)
            by_leaf.setdefault(sample.pop("task"), []).append(sample)
    results = body["results"]
    for leaf, samples in by_leaf.items():
        for sample in samples:
            for metric in sample["metrics"]:
                values = [s[metric] for s in samples if s["filter"] == sample["filter"]]
                results[leaf][f"{metric},{sample['filter']}"] = statistics.mean(values)
        text = "".join(json.dumps(sample) + "\n" for sample in reversed(samples))
        (folder / f"samples_{leaf}_{time}.jsonl").write_text(text)
    for group, children in body["group_subtasks"].items():
        for key in [k for k in results.get(group, {}) if "," in k and "_stderr" not in k]:
            sizes = [len(by_leaf[child]) for child in children]
            means = [results[child][key] for child in children]
            results[group][key] = statistics.weighted_mean(means, sizes)
    (folder / f"results_{time}.json").write_text(json.dumps(body))
    return folder


def raised(count: int, *leaves: str) -> Change:
    """Makes the first `count` wrong documents of each of these tasks right."""
    left = dict.fromkeys(leaves, count)

    def change(sample: dict[str, Any]) -> None:
        name = sample["metrics"][-1]
        if left.get(sample["task"], 0) and not sample[name]:
            left[sample["task"]] -= 1
            sample.update(dict.fromkeys(sample["metrics"], 1.0))

    return change


def row(found: Comparison, task: str) -> Row:
    """The headline row of a task in the first pair."""
    (only,) = (r for r in found.pairs[0].rows if r.task == task and r.headline)
    return only


def test_a_record_is_paired_with_lm_evals_own_results_of_the_same_questions(tmp_path: Path) -> None:
    found = compare([EXAMPLE, plain(tmp_path / "b")])
    assert [side.kind for side in found.sides] == ["evalkit record", "lm-eval results"]
    assert {r.task for r in found.pairs[0].tops} == {"demo_letters", "demo_endings", "demo_qa",
                                                     "demo_cot"}  # fmt: skip
    assert not found.pairs[0].flips and not found.pairs[0].notes and not found.pairs[0].left_out
    assert all(r.difference.value == 0 and r.p == 1 for r in found.pairs[0].rows)


def test_a_leaf_of_zeros_and_ones_gets_mcnemar_and_a_small_group_t_over_documents(
    tmp_path: Path,
) -> None:
    leaves = ("demo_qa", "demo_letters_days", "demo_letters_sums")
    found = compare([EXAMPLE, plain(tmp_path / "b", raised(7, *leaves))])
    leaf, group = row(found, "demo_qa"), row(found, "demo_letters")
    assert (leaf.test, leaf.lost, leaf.gained) == ("McNemar exact", 0, 7)
    assert leaf.p == pytest.approx(2 / 2**7)
    assert leaf.detectable == pytest.approx(2.8016 * math.sqrt(7) / 42, rel=1e-4)
    assert (group.test, group.n, group.gained) == ("paired t over documents", 64, 14)
    assert group.difference.value == pytest.approx(14 / 64)
    spread = 14 / 64 * (1 - 14 / 64)  # of 14 ones among 64
    assert group.difference.error == pytest.approx(math.sqrt(spread / 63))
    assert group.difference.freedom == 63


def test_a_group_of_ten_leaf_tasks_is_clustered_and_of_fewer_it_is_said(tmp_path: Path) -> None:
    """Two leaf tasks gave an interval from +0.0000 to +0.0000."""

    def back_and_forth(sample: dict[str, Any]) -> None:
        if sample["task"].startswith("demo_letters") and sample["doc_id"] < 4:
            sample["acc"] = 1.0 - sample["acc"]

    found = compare([EXAMPLE, plain(tmp_path / "b", back_and_forth)])
    shown = text.markdown(found)
    assert "+0.0000 to +0.0000" not in shown
    assert "few leaf tasks: demo_cot, demo_letters, tested over documents" in shown
    low, high = row(found, "demo_letters").difference.interval() or (0, 0)
    assert low < 0 < high and row(found, "demo_letters").clusters == 64


def test_holm_covers_the_headline_rows_of_all_pairs(tmp_path: Path) -> None:
    one = plain(tmp_path / "b", raised(12, "demo_qa"))
    other = plain(tmp_path / "c", raised(6, "demo_endings"))
    found = compare([EXAMPLE, one, other])
    assert [pair.after.label for pair in found.pairs] == ["B", "C"]
    assert found.tests == 8
    tops = [r for pair in found.pairs for r in pair.tops]
    assert [r.adjusted for r in tops] == statistics.holm([r.p or 0 for r in tops])
    assert all(r.adjusted is None for p in found.pairs for r in p.rows if not r.headline)


def test_leaf_tasks_that_moved_alike_to_the_last_digit_are_not_certain(tmp_path: Path) -> None:
    """Two clusters of one difference each have a standard error of zero and a p-value of zero."""
    found = compare([EXAMPLE, plain(tmp_path / "b", raised(2, "demo_cot_calendar",
                                                           "demo_cot_counting"))])  # fmt: skip
    group = row(found, "demo_cot")
    assert group.difference.value == pytest.approx(4 / 48)
    assert group.p is not None and group.p > 0.01


def test_flips_come_with_what_was_asked_and_answered(tmp_path: Path) -> None:
    found = compare([EXAMPLE, plain(tmp_path / "b", raised(9, "demo_qa"))]).pairs[0]
    assert len(found.flips) == 9 and all(f.after > f.before for f in found.flips)
    assert len(found.excerpts) == 6
    first = found.excerpts[0]
    assert first.question.startswith("Question: ") and first.question.endswith("Answer:")
    assert first.target.strip() and first.answer_before == first.answer_after


def test_other_questions_are_left_out_by_name_and_other_prompts_are_a_note(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        if sample["task"] == "demo_endings":
            sample["doc_hash"] = "0" * 64
        sample["prompt_hash"] = "1" * 64

    pair = compare([EXAMPLE, plain(tmp_path / "b", change)]).pairs[0]
    assert [(i.task, i.reason) for i in pair.left_out] == [
        ("demo_endings", "its questions are not the same")
    ]
    assert "5 of 5 leaf tasks were asked with other prompts" in pair.notes[0]


def test_runs_without_a_common_question_are_refused(tmp_path: Path) -> None:
    other = plain(tmp_path / "b", lambda sample: sample.update(target_hash="0" * 64))
    call("compare", EXAMPLE, other).refused(2, "no task can be paired", "not the same")


def test_a_score_that_is_no_mean_over_documents_is_left_out_with_the_reason(tmp_path: Path) -> None:
    folder = plain(tmp_path / "b")
    path = next(folder.glob("results_*"))
    body = json.loads(path.read_text())
    body["results"]["demo_qa"]["acc,none"] += 0.01  # as a corpus-level metric, or a lie, would
    path.write_text(json.dumps(body))
    pair = compare([EXAMPLE, folder]).pairs[0]
    assert ("demo_qa acc,none", "its score is not a mean over documents") in [
        (item.task, item.reason) for item in pair.left_out
    ]


def test_perplexities_are_compared_in_nats_per_word(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        if sample["task"] == "demo_qa":
            sample["metrics"] = ["acc"]
            del sample["acc_norm"]

    made = plain(tmp_path / "a", change)
    other = plain(tmp_path / "b", change)
    for folder, shift in ((made, 0.0), (other, 0.5)):
        path = next(folder.glob("samples_demo_qa_*"))
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        for sample in samples:
            sample["metrics"] = ["word_perplexity"]
            sample["word_perplexity"] = [-40.0 + 10 * shift - sample["doc_id"] % 3, 10]
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        pairs = [tuple(s["word_perplexity"]) for s in samples]
        results = next(folder.glob("results_*"))
        body = json.loads(results.read_text())
        body["results"]["demo_qa"] = {"word_perplexity,none": statistics.weighted_perplexity(pairs)}
        results.write_text(json.dumps(body))
    found = row(compare([made, other]), "demo_qa")
    assert found.nats and found.higher_is_better
    assert found.difference.value == pytest.approx(0.5)
    assert found.after < found.before  # the perplexities themselves
    assert "+0.5000 nats" in text.markdown(compare([made, other]))


def test_a_groups_plain_mean_is_compared_as_one(tmp_path: Path) -> None:
    sides = {"a": (4, 0), "b": (4, 6)}  # how many answers are raised, of 40 and of 24 documents
    for name, (sums, days) in sides.items():
        first, second = raised(sums, "demo_letters_sums"), raised(days, "demo_letters_days")

        def both(sample: dict[str, Any], first: Change = first, second: Change = second) -> None:
            first(sample)
            second(sample)

        path = next(plain(tmp_path / name, both).glob("results_*"))
        body = json.loads(path.read_text())
        leaves = ("demo_letters_sums", "demo_letters_days")
        parts = [body["results"][leaf]["acc,none"] for leaf in leaves]
        body["results"]["demo_letters"]["acc,none"] = sum(parts) / 2
        path.write_text(json.dumps(body))
    found = row(compare([tmp_path / "a", tmp_path / "b"]), "demo_letters")
    assert (found.before, found.after) == pytest.approx((0.3, 0.425))
    assert found.difference.value == pytest.approx(6 / 24 / 2)


def test_what_a_student_kept_is_a_share_above_chance_with_a_seeded_interval(tmp_path: Path) -> None:
    source = random.Random(0)
    known = {n for n in range(56) if source.random() < 0.8}

    def learned(share: float) -> Change:
        own = random.Random(1)

        def change(sample: dict[str, Any]) -> None:
            if sample["task"] == "demo_endings":
                right = sample["doc_id"] in known and own.random() < share
                sample.update(acc=float(right), acc_norm=float(right))

        return change

    teacher, student = plain(tmp_path / "a", learned(1)), plain(tmp_path / "b", learned(0.8))
    found = compare([teacher, student], teacher=True, seed=3)
    (kept,) = (k for k in found.pairs[0].kept if k.task == "demo_endings")
    old, new = row(found, "demo_endings").before, row(found, "demo_endings").after
    assert kept.share == pytest.approx((new - 0.25) / (old - 0.25))
    assert kept.low is not None and kept.high is not None
    assert kept.low < kept.share < kept.high and kept.seed == 3
    again = compare([teacher, student], teacher=True, seed=3)
    assert again.pairs[0].kept == found.pairs[0].kept
    at_chance = next(k for k in found.pairs[0].kept if k.task == "demo_letters")
    assert at_chance.share is None
    shown = text.markdown(found)
    assert "What B kept of A" in shown and "teacher is at chance" in shown


def test_the_gate_opens_only_for_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the raised scores were honest ones: that they are not has a test of its own."""
    monkeypatch.setattr(gate, "verdicts", lambda paths: [Report([]) for _ in paths])
    other = plain(tmp_path / "b", raised(9, "demo_qa"))
    policy = tmp_path / "gate.yaml"

    def judged(body: str, *more: str) -> support.Ran:
        policy.write_text(body)
        return call("compare", EXAMPLE, other, "--gate", policy, *more)

    assert judged("every: {max_drop: 0.0, no_significant_drop: true}\nmax_flips: 0.05\n").code == 0
    backwards = call("compare", other, EXAMPLE, "--gate", policy)
    assert backwards.code == 1
    assert "NOT MET  B demo_qa: no_significant_drop" in backwards.out
    assert backwards.out.splitlines()[-1] == "GATE NOT MET: 2 of 9 rules"
    assert judged("max_flips: 0.01\n").code == 1
    assert judged("tasks: {demo_quiz: {max_drop: 1}}\n").code == 1  # it was not compared
    assert judged("tasks: {demo_letters: {not_worse_by: 0.5}}\n").code == 0
    assert judged("tasks: {demo_letters: {min_kept: 0.5}}\n").code == 2  # of which teacher?
    assert judged("every: {min_kept: 0.5}\n", "--teacher").code == 1
    judged("every: {max_dorp: 1}\n").refused(2, "the gate is not valid", "max_dorp")
    as_json = judged("max_flips: 0.01\n", "--json")
    assert json.loads(as_json.out)["tests"] == 4 and "GATE NOT MET" in as_json.err


def test_the_json_holds_every_leaf_and_the_markdown_reads_alone(tmp_path: Path) -> None:
    other = plain(tmp_path / "b", raised(7, "demo_qa", "demo_letters_days"))
    body = json.loads(call("compare", EXAMPLE, other, "--json").done().out)
    tasks = {entry["task"] for entry in body["pairs"][0]["rows"]}
    assert {"demo_letters", "demo_letters_days", "demo_letters_sums", "demo_qa"} <= tasks
    assert len(body["pairs"][0]["flips"]) == 14
    shown = call("compare", EXAMPLE, other).done().out
    assert shown.startswith("# B against A\n")
    assert "14 of 210 documents (6.7%) score otherwise: 0 lower, 14 higher." in shown
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert all(line.count("|") > 5 for line in tables)


def test_the_newest_of_several_runs_in_a_folder_is_read_with_its_own_samples(
    tmp_path: Path,
) -> None:
    plain(tmp_path / "b", raised(30, "demo_qa"), time="2025-01-01T00-00-00.000000")
    plain(tmp_path / "b", raised(5, "demo_qa"))
    assert len(compare([EXAMPLE, tmp_path / "b"]).pairs[0].flips) == 5
    older = tmp_path / "b" / "results_2025-01-01T00-00-00.000000.json"
    assert len(compare([EXAMPLE, older]).pairs[0].flips) == 30


@pytest.mark.parametrize("damage", ["no samples", "not json", "no results", "nothing", "absent"])
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = plain(tmp_path / "b")
    if damage == "no samples":
        for path in folder.glob("samples_*"):
            path.unlink()
    elif damage == "not json":
        next(folder.glob("samples_*")).write_text("{")
    elif damage == "no results":
        next(folder.glob("results_*")).write_text("[]")
    elif damage == "nothing":
        folder = tmp_path / "empty"
        folder.mkdir()
    else:
        folder = tmp_path / "absent"
    with pytest.raises(EvalkitError):
        compare([EXAMPLE, folder])


def test_a_text_from_a_record_cannot_write_to_a_terminal(tmp_path: Path) -> None:
    change = raised(1, "demo_cot_counting")

    def hostile(sample: dict[str, Any]) -> None:
        change(sample)
        if sample["task"] == "demo_cot_counting":
            sample["resps"] = [["\x1b[2Jfine"]]

    shown = text.markdown(compare([EXAMPLE, plain(tmp_path / "b", hostile)]))
    assert "\x1b" not in shown and r"\\x1b\[2Jfine" in shown


def test_scaling_every_value_scales_the_difference_and_its_error() -> None:
    source = np.random.default_rng(0)
    clusters = [[(float(d), 1.0) for d in source.normal(0.1, 1, size=n)] for n in (3, 9, 30, 5)]
    found = statistics.clustered(clusters)
    scaled = statistics.clustered([[(3 * d, w) for d, w in cluster] for cluster in clusters])
    assert found.error is not None and scaled.error is not None
    assert scaled.value == pytest.approx(3 * found.value)
    assert scaled.error == pytest.approx(3 * found.error)
    assert scaled.p == pytest.approx(found.p)
    assert replace(found, error=None).p is None


def test_the_gate_does_not_open_for_an_evaluation_that_contradicts_itself(tmp_path: Path) -> None:
    """It opened for a record of which verify says BROKEN."""
    honest, forged = (Run().write(tmp_path / name) for name in ("honest", "forged"))
    record = runs.read_record(forged)
    record["tasks"]["arc_challenge"]["metrics"]["acc,none"]["value"] = 0.75
    runs.write_record(forged, record)
    (tmp_path / "gate.yaml").write_text("max_flips: 1.0\n")

    def gated(one: Path, two: Path) -> support.Ran:
        return call("compare", one, two, "--gate", tmp_path / "gate.yaml")

    assert gated(honest, honest).out.splitlines()[-1] == "GATE MET"
    for pair in ((honest, forged), (forged, honest)):
        ran = gated(*pair)
        assert ran.code == 1 and "does not contradict itself (BROKEN: " in ran.out
        assert ran.out.splitlines()[-1].startswith("GATE NOT MET")


def test_the_policy_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (support.ROOT / "docs" / "statistics.md").read_text("utf-8")
    (policy,) = [part.split("```")[0] for part in page.split("```yaml\n")[1:]]
    (tmp_path / "gate.yaml").write_text(policy)
    assert gate.read(tmp_path / "gate.yaml")


def test_a_hundred_sides_have_a_hundred_letters() -> None:
    found = [letters(index) for index in range(100)]
    assert found[:2] + found[25:28] + found[52:53] == ["A", "B", "Z", "AA", "AB", "BA"]
    assert len(set(found)) == 100
