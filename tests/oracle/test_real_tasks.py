"""lm-eval's own runs of the four real tasks, held against ours on the same weights.

The data is the stand-in Hub's. BBH's 1,024 tokens are cut to a few on both sides: random weights
never stop.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sides

from bench import real, real_figures, real_pieces, tables
from bench.real_pieces import Work
from evalkit.base import canon
from evalkit.inputs import suite as suites

pytestmark = [pytest.mark.oracle, pytest.mark.shared, pytest.mark.usefixtures("hub")]
# (architecture, tokenizer): BOS added, none added, BOS and a leading blank added
MODELS = [("llama", "llama3"), ("gpt2", "gpt2"), ("llama", "sentencepiece")]
# What else of lm-eval's results file does not depend on who wrote it, where and when.
TOLD = (
    "task_hashes", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length",
    "lm_eval_version", "transformers_version", "system_instruction", "system_instruction_sha",
    "chat_template", "chat_template_sha",
)  # fmt: skip


def leaves(prefix: str, count: int, seed: int) -> list[str]:
    """`count` leaf tasks of the core suite, drawn by a seed."""
    lock = suites.read_lock(suites.FOLDER / "core.lock.yaml")
    names = [name for name in sorted(lock.tasks) if name.startswith(prefix)]
    return sorted(random.Random(seed).sample(names, count))


@pytest.mark.parametrize(("architecture", "tokenizer"), MODELS, ids=lambda value: value)
def test_200_documents_of_the_four_tasks_score_the_same(
    architecture: str,
    tokenizer: str,
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    seed = MODELS.index((architecture, tokenizer))
    suite = {
        "name": "four",
        "tasks": [
            *leaves("mmlu_", 15, seed), "hellaswag", "arc_challenge", *leaves("bbh_", 3, seed),
        ],
        "limit": 10,
        "gen_kwargs": {"max_gen_toks": 32},
    }  # fmt: skip
    model = tiny_model(architecture, tokenizer=tokenizer, seed=seed)
    ours = sides.ours(model, suite, tmp_path)
    figures = sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert figures.documents == 200


def test_a_group_with_five_shots_scores_the_same(
    tiny_model: Callable[..., Path], hf_model: Callable[[Path], Any], tmp_path: Path
) -> None:
    """mmlu takes its shots in order, arc_challenge draws them at random for each document."""
    suite = {
        "name": "five",
        "tasks": [
            {"task": "mmlu_other", "num_fewshot": 5},
            {"task": "arc_challenge", "num_fewshot": 5},
        ],
        "limit": 4,
    }
    model = tiny_model(tokenizer="llama3")
    ours = sides.ours(model, suite, tmp_path)
    theirs = sides.theirs(hf_model(model), suite, tmp_path)
    sides.compare(theirs, ours)
    assert ours.results["groups"]["mmlu_other"].keys() >= {"acc,none", "acc_stderr,none"}
    prompt = ours.samples["arc_challenge", 0, "none"]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("Question:") == 6


@pytest.mark.parametrize("multiturn", [False, True], ids=["one-turn", "multi-turn"])
def test_chat_prompts_score_the_same(
    multiturn: bool,
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    names = ["mmlu_anatomy", "arc_challenge", "bbh_cot_fewshot_navigate"]
    suite = {
        "name": "talk",
        "tasks": [{"task": name, "num_fewshot": 2} for name in names],
        "limit": 6,
        "apply_chat_template": True,
        "fewshot_as_multiturn": multiturn,
        "system_instruction": "Answer in as few words as you can.",
        "gen_kwargs": {"max_gen_toks": 16},
    }
    model = tiny_model(tokenizer="llama3", chat_template=True)
    ours = sides.ours(model, suite, tmp_path)
    sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    prompt = ours.samples["arc_challenge", 0, "none"]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("<|start_header_id|>user") == (3 if multiturn else 1)
    assert "Answer in as few words" in prompt


def test_the_files_have_the_fields_that_lm_eval_writes_in_its_order(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """What we leave out of `config` (the weights' size, dtype and revision) is in record.json.

    The model has a chat template that the suite does not apply: lm-eval then names none.
    """
    suite = {
        "name": "files",
        "tasks": ["mmlu_anatomy", "bbh_cot_fewshot_navigate"],
        "limit": 3,
        "gen_kwargs": {"max_gen_toks": 8},
    }
    model = tiny_model(tokenizer="llama3", chat_template=True)
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf",
        "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
        "--batch_size", "4", "--tasks", ",".join(map(str, suite["tasks"])), "--limit", "3",
        "--gen_kwargs", "max_gen_toks=8", "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (written,) = (tmp_path / "out").rglob("results_*.json")
    ours = sides.ours(model, suite, tmp_path)
    theirs = json.loads(written.read_text())
    assert list(ours.results) == list(theirs)
    assert list(ours.results["config"]) == [
        key for key in theirs["config"]
        if key not in ("model_num_parameters", "model_dtype", "model_revision", "model_sha")
    ]  # fmt: skip
    for section in (*sides.SECTIONS, *TOLD):
        assert ours.results.get(section) == theirs.get(section), section
    for path in (tmp_path / "out").rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
            found = ours.samples[task, sample["doc_id"], sample["filter"]]
            assert list(found) == ["task", *sample]
            numbers = ("resps", "filtered_resps")
            exact = {key: value for key, value in sample.items() if key not in numbers}
            assert {key: found[key] for key in exact} == exact


def test_bench_real_goes_on_where_it_was_and_sees_no_difference(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a few documents; nothing is measured before its time is up, nor a second time."""
    works = (Work("arc_challenge", 3), Work("gsm8k", 2, 1))
    monkeypatch.setattr(real, "WORKS", works)
    for module in (real_pieces, real_figures):
        monkeypatch.setattr(module, "DTYPES", ("float32",))
    page, out = tmp_path / "real.md", tmp_path / "kept"
    page.write_text("<!-- made by make bench-real -->\n<!-- end of make bench-real -->\n")
    monkeypatch.setattr(real, "PAGE", page)
    monkeypatch.setattr(tables, "FIGURES", tmp_path)
    model = str(tiny_model(max_length=2048))

    def measured(minutes: str, *more: str) -> dict[str, Any]:
        command = ["bench.real", "--model", model, "--out", str(out), "--minutes", minutes, *more]
        monkeypatch.setattr(sys, "argv", command)
        real.main()
        works: dict[str, Any] = canon.read_json(tmp_path / "bench-real.json")["works"]
        return {name: one["dtypes"]["float32"] for name, one in works.items()}

    assert all(not one["spent"] for one in measured("0").values())
    found = measured("30")
    kept = {path: path.read_bytes() for path in out.iterdir()}
    assert len(kept) == 4
    for one in found.values():
        assert one["scores"]["lm-eval"] == one["scores"]["evalkit"]
        assert set(one["differ"].values()) == {0}
        rows = 2 if one["distance"]["evalkit"].get("texts") else 1  # two texts fill a step of four
        assert rows * one["spent"]["lm-eval"]["tokens"] >= one["spent"]["evalkit"]["tokens"] > 0
    chosen, written = (one["distance"]["evalkit"] for one in found.values())
    assert (chosen["documents"], written["documents"]) == (3, 2)
    assert chosen["flips"] == {"acc": [], "acc_norm": []} and chosen["largest"] < 1e-4
    assert (written["texts"], written["equal"]) == (2, 2)
    assert measured("0") == found
    assert {path: path.read_bytes() for path in out.iterdir()} == kept
    measured("30", "--again", "gsm8k")
    changed = {path.name.split("-")[-3] for path in kept if path.read_bytes() != kept[path]}
    assert changed == {"gsm8k"}
