"""The benchmarks still run, on tiny models, and measure what they say. No time is tested."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import (
    agreement,
    baseline,
    core,
    large,
    lengths,
    passes,
    report,
    report_large,
    scale,
    sides,
    tables,
)
from bench.baseline import Scored
from bench.passes import Pass
from evalkit.base import canon
from evalkit.inputs import suite as suites
from evalkit.plan import shards
from evalkit.plan.requests.request import Request, Settings

UNTIL = ("\n\n", "Q")


def requests(new_tokens: int = 5) -> list[Request]:
    """Two questions with choices of one token and of several, and two prompts."""
    found = []
    for document, text in enumerate(("The old dog saw", "The river near the red house was")):
        for index, choice in enumerate((" a", " the", " a big tree and", " a small boy")):
            found.append(Request("asked", document, index, 0, "loglikelihood", text, choice))
        settings = Settings(UNTIL, new_tokens)
        found.append(Request("told", document, 0, 0, "generate_until", text, "", settings))
    return found


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def hf(tiny: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny), device="cpu", dtype="float32", softmax_dtype="float32")


@pytest.mark.oracle
def test_both_sides_of_make_bench_give_the_same_answers(tiny: Path) -> None:
    threads = torch.get_num_threads()
    theirs = sides.LmEval(str(tiny), threads).answer(requests(), 4)
    ours = sides.Evalkit(str(tiny), threads)
    ran = ours.answer(requests())
    found = agreement.compare(ran.answers, theirs.answers)
    assert (found.loglikelihoods, found.generations) == (8, 2)
    assert (found.texts, found.flips, found.greedy) == (2, 0, 0)
    assert found.worst < 1e-4
    needed = ours.needed(requests())
    assert needed.unique <= needed.planned <= needed.padded
    assert passes.num_tokens(theirs.passes) > passes.num_tokens(ran.passes) > needed.unique
    assert len(passes.steps(ran.passes)) >= 4
    assert {"linear", "head", "attention", "python", "seconds"} <= ours.profile(requests()).keys()
    assert ours.matmul_seconds(ran.passes) > 0


def test_the_baseline_without_lm_eval_scores_as_lm_eval_does(hf: Any) -> None:
    tokens = torch.arange(20, 400).tolist()
    asked = [Scored(tokens[:10], tokens[10 : 10 + n]) for n in (1, 1, 4, 7)]
    asked += [Scored(tokens[:10], [tokens[50]]), Scored(tokens[30:90], tokens[100:103])]
    given = [(("", ""), one.context, one.continuation) for one in asked]
    hf.batch_size_per_gpu = 4
    assert baseline.score(hf.model, asked, 4) == hf._loglikelihood_tokens(given, disable_tqdm=True)


def test_the_baseline_without_lm_eval_generates_as_lm_eval_does(hf: Any) -> None:
    asked = [request for request in requests(12) if request.settings] * 2
    instances = [sides.instance(request, index) for index, request in enumerate(asked)]
    hf.batch_size_per_gpu = 4
    prompts = [hf.tok_encode(request.context, add_special_tokens=True) for request in asked]
    made = baseline.generate(hf.model, hf.tokenizer, prompts, UNTIL, 12, 4)
    texts = [re.split("\n\n|Q", hf.tok_decode(tokens))[0] for tokens in made]
    assert texts == hf.generate_until(instances, disable_tqdm=True)


def test_a_large_suite_goes_through_every_phase(tmp_path: Path) -> None:
    (tmp_path / "requests").write_text("400")
    apart = "verify without lm-eval"
    for name, step in large.STEPS.items():
        if name != apart:
            step(tmp_path)
    measured = large.child(apart, tmp_path)
    assert measured["seconds"] > 0 and measured["peak_bytes"] > 1e7
    size = canon.read_json(tmp_path / "described.json")
    assert (size["planned"], size["documents"]) == (400, 112) and size["trunks"] > 0
    phases = {name: measured | {"peak_bytes": 1e9} for name in large.PHASES}
    text = report_large.text({"machine": tables.machine(), "sizes": [size | {"phases": phases}]})
    assert text.count("| **all** |") == 1 and "1.00 GB, below 4" in text


def test_the_lengths_are_those_of_core() -> None:
    lock = suites.lock_of(suites.load("core"))
    leaves = lengths.read()
    assert {leaf.name: leaf.documents for leaf in leaves}.keys() == lock.tasks.keys()
    # questions that occur twice in a subject, with the same choices, are one row
    assert all(0 < leaf.documents <= lock.tasks[leaf.name]["documents"] for leaf in leaves)
    made = lengths.tokenised(leaves[:1], 32_000, 160)
    assert len({row.targets[0].request.doc_id for row in made.rows}) == leaves[0].documents


def test_passes_are_counted_as_the_docs_say() -> None:
    steps = [Pass(rows=4, tokens=1, keys=1000, shared=900), Pass(rows=4, tokens=1, keys=1001)]
    assert passes.keys_in_slots(steps[:1]) == 900 + 4 * (128 + 1)
    assert passes.keys_grown(steps[1:]) == 3 * 4 * 1001
    assert passes.keys_in_slots([Pass(rows=4, tokens=2, keys=2)]) == 0


def test_a_flipped_choice_and_another_text_are_seen() -> None:
    theirs: dict[str, sides.Answer] = {
        "t/0/0/0": (-1.0, True), "t/0/1/0": (-2.0, False), "g/0/0/0": "yes", "g/1/0/0": "no",
    }  # fmt: skip
    ours = theirs | {"t/0/0/0": (-2.5, False), "g/1/0/0": "nO"}
    found = agreement.compare(ours, theirs)
    assert (found.flips, found.greedy, found.worst) == (1, 1, 1.5)
    assert (found.texts, found.generations) == (1, 2)
    with pytest.raises(AssertionError):
        agreement.compare({}, theirs)


def test_two_percent_of_every_leaf_is_drawn_and_cut_into_pieces() -> None:
    settings = Settings((), 5)
    asked = [Request("mmlu_a", n, c, 0, "loglikelihood", "", "x") for n in range(7) for c in (0, 1)]
    asked += [
        Request(f"bbh_{leaf}", n, 0, 0, "generate_until", f"{leaf}{n}", "", settings)
        for leaf in "ab"
        for n in range(1000)
    ]
    chosen = core.drawn(asked)
    assert sorted({request.task for request in chosen}) == ["bbh_a", "bbh_b", "mmlu_a"]
    assert len(chosen) == 2 + 20 + 20
    length = {request.id: request.doc_id for request in chosen}
    theirs, ours = core.pieces(chosen, length)
    assert {name: len(part) for name, part in theirs.items()} == {
        "mmlu": 2, "bbh 1": core.PIECE, "bbh 2": 40 - core.PIECE,
    }  # fmt: skip
    assert {name: len(part) for name, part in ours.items()} == {"mmlu": 2, "bbh": 40}
    lengths_in_order = [length[request.id] for request in theirs["bbh 1"]]
    assert lengths_in_order == sorted(lengths_in_order, reverse=True)


def test_publishing_replaces_what_stood_between_the_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doc = tmp_path / "speed.md"
    doc.write_text("a\n<!-- made by make x -->\nold\n<!-- end of make x -->\nb\n")
    monkeypatch.setattr(tables, "DOC", doc)
    monkeypatch.setattr(tables, "FIGURES", tmp_path)
    for text in ("one", "two"):
        tables.publish("x", text, {"value": 1})
        middle = f"<!-- made by make x -->\n\n{text}\n\n<!-- end of make x -->"
        assert doc.read_text() == f"a\n{middle}\nb\n"
    assert canon.read_json(tmp_path / "x.json") == {"value": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bench", report.speed),
        ("bench-core", report.core),
        ("bench-large", report_large.text),
    ],
)
def test_the_docs_show_the_committed_figures(name: str, text: Callable[..., str]) -> None:
    path = tables.FIGURES / f"{name}.json"
    between = tables.DOC.read_text("utf-8").split(f"<!-- made by make {name} -->")[1]
    between = between.split(f"<!-- end of make {name} -->")[0].strip()
    if path.is_file():
        assert between == text(canon.read_json(path))
    else:
        assert "|" not in between


def test_shards_are_replayed_with_their_starts_restarts_and_failures() -> None:
    """Two shards of two batches of 100 s, on one node or two."""
    dealt, start = [[100.0, 100.0]] * 2, shards.START_S
    fair = scale.replay(dealt, 2, scale.FAIR, 0)
    assert (fair.wall_s, fair.busy_s, fair.lost_s) == (200 + start, 400 + 2 * start, 0)
    assert scale.replay(dealt, 1, scale.FAIR, 0).wall_s == 400 + 2 * start
    fails = scale.replay(dealt, 2, replace(scale.FAIR, failing=1.0), 0)
    assert fails.wall_s == start + 200 + start  # at once, then again
    stopped = scale.replay(dealt, 2, replace(scale.FAIR, preempted_each_s=300.0), 0)
    assert stopped.lost_s > 0
    assert stopped.busy_s > fair.busy_s + stopped.lost_s
