"""Inputs that went wrong for others, beside lm-eval's own run of them on the same tiny models."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sides

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_own_data import FORMS, ROWS, files, suite_of, write

pytestmark = pytest.mark.oracle
CHOICES = {"output_type": "multiple_choice", "doc_to_target": "g", "doc_to_choice": ["red", "blue"],
           "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task folder with the rows in a file, a packed file and a folder."""
    for name in ("d", "parts/one", "parts/two", "data/test"):
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "tasks" / f"{name}.jsonl", ROWS)
    return tmp_path / "tasks"


def both(
    folder: Path, forms: dict[str, dict[str, Any]], model: Path, hf: Any, **suite: Any
) -> sides.Side:
    """Both sides of a suite of these tasks, held against each other; ours."""
    suite_of(folder, forms)
    body = {"name": "own", "tasks": [f"l_{n}" for n in forms], "include_path": "tasks", **suite}
    ours = sides.ours(model, body, folder.parent)
    sides.compare(sides.theirs(hf, body, folder.parent), ours)
    return ours


def test_local_data_of_every_kind_scores_the_same(
    folder: Path, tiny_model: Callable[..., Path], hf_model: Callable[[Path], Any]
) -> None:
    names = ("one", "list", "glob", "dir", "folder", "text")
    model = tiny_model(tokenizer="gpt2", max_length=128)
    both(folder, {name: FORMS[name] for name in names}, model, hf_model(model))


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama3", "sentencepiece"])
def test_empty_documents_score_the_same(
    tokenizer: str, folder: Path, tiny_model: Callable[..., Path], hf_model: Callable[[Path], Any]
) -> None:
    write(folder / "d.jsonl", [{"q": "Some words."}, {"q": ""}, {"q": "And a third one."}])
    form = files("d.jsonl") | {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}",
        "generation_kwargs": None,
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }  # fmt: skip
    model = tiny_model(tokenizer=tokenizer, max_length=128)
    both(folder, {"empty": form}, model, hf_model(model))


def test_shots_from_the_tested_split_score_the_same_and_are_counted(
    folder: Path, tiny_model: Callable[..., Path], hf_model: Callable[[Path], Any]
) -> None:
    write(folder / "d.jsonl", [{"q": f"question number {n}", "g": n % 2} for n in range(6)])
    model = tiny_model(tokenizer="llama3", max_length=256)
    tasks = [{"task": "l_leak", "num_fewshot": 3}]
    ours = both(folder, {"leak": files("d.jsonl") | CHOICES}, model, hf_model(model), tasks=tasks)
    assert ours.folder is not None
    health = json.loads((ours.folder / "record.json").read_text())["health"]
    assert health["fewshot_leaks"] == 2
