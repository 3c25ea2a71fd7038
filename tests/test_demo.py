"""The demo's model is the same for everyone, and its tasks give ignorance no advantage."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import demo_texts
import pytest
import yaml

from evalkit.inputs import suite
from evalkit.inputs.models.builtin import demo
from evalkit.inputs.models.builtin.demo import model

TASKS = model.TASKS
Documents = list[dict[str, Any]]


def digests(folder: Path) -> dict[str, str]:
    """sha256 (hex) of every file of a folder."""
    found = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def documents(name: str) -> Documents:
    """A data file's documents."""
    return [json.loads(line) for line in (TASKS / "data" / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, built once."""
    return model.build(tmp_path_factory.mktemp("demo") / "built")


def test_two_builds_are_the_same_to_the_byte(built: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    again = model.build(tmp_path / "elsewhere")
    assert digests(again) == digests(built)
    assert torch.rand(3).tolist() == expected, "building spends the caller's random numbers"
    assert digests(again).keys() == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_another_seed_gives_other_weights_and_the_same_tokenizer(
    built: Path, tmp_path: Path
) -> None:
    other, first = digests(model.build(tmp_path / "other", seed=1)), digests(built)
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_building_again_mends_what_is_damaged_and_touches_nothing_else(tmp_path: Path) -> None:
    folder = model.build(tmp_path / "demo")
    before, inodes = digests(folder), {p.name: p.stat().st_ino for p in folder.iterdir()}
    (folder / "config.json").write_text("{}")
    model.build(folder)
    assert digests(folder) == before
    changed = {p.name for p in folder.iterdir() if p.stat().st_ino != inodes[p.name]}
    assert changed == {"config.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["demo"], "no folder is left over"


def test_the_model_names_neither_its_folder_nor_a_date(built: Path) -> None:
    for path in built.iterdir():
        text = path.read_bytes()
        assert str(built.parent).encode() not in text and b".demo-" not in text, path.name
        if path.suffix != ".safetensors":
            assert not re.search(rb"20\d\d-\d\d", text), path.name


def test_the_tokenizer_adds_bos_and_gives_every_text_back(built: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built)
    text = "Q: naïve  words, 123\n\nA:\tso 😀"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.pad_token is None and tokenizer.eos_token_id is not None


def test_the_committed_documents_are_what_the_generator_writes() -> None:
    made = demo_texts.files()
    assert made.keys() == {path.name for path in (TASKS / "data").iterdir()}
    for name, expected in made.items():
        assert (TASKS / "data" / name).read_text("utf-8") == demo_texts.lines(expected), name
        assert len({json.dumps(document) for document in expected}) == len(expected), name
        assert 24 <= len(expected) <= 60 or name.endswith("_dev.jsonl"), name


@pytest.mark.parametrize("name", ["letters_sums.jsonl", "letters_days.jsonl"])
def test_every_letter_is_right_equally_often(name: str) -> None:
    counts = Counter(document["answer"] for document in documents(name))
    assert len(counts) == 4 and len(set(counts.values())) == 1


def test_every_ending_is_right_as_often_as_any_and_wrong_three_times_as_often() -> None:
    rows = documents("endings.jsonl")
    right = Counter(row["choices"][row["label"]] for row in rows)
    wrong = Counter(c for row in rows for c in row["choices"]) - right
    assert set(right.values()) == {2} and set(wrong.values()) == {6}
    assert len(set(Counter(row["label"] for row in rows).values())) == 1


def test_the_right_answers_are_right() -> None:
    for row in documents("letters_sums.jsonl"):
        first, second = map(int, re.findall(r"\d+", row["question"]))
        assert row["choices"][row["answer"]] == str(first + second)
        assert len(set(row["choices"])) == 4
    kind_of = {item: kind for kind, items in demo_texts.KINDS.items() for item in items}
    for row in documents("qa.jsonl"):
        labels, items = row["choices"]["label"], row["choices"]["text"]
        fitting = [
            x for x, item in zip(labels, items, strict=True) if kind_of[item] in row["question"]
        ]
        assert fitting == [row["answerKey"]]
    for row in documents("cot_counting.jsonl"):
        pairs = re.findall(r"(\w+) (\w+)(?=,| and|\.)", row["input"])
        fruit = {"apples", "pears", "plums", "figs", "melons", "cherries"}
        total = sum(demo_texts.COUNTS.index(count) for count, thing in pairs if thing in fruit)
        assert row["target"] == str(total)


def test_the_shots_end_in_the_answer_that_the_filter_takes() -> None:
    pattern = yaml.safe_load((TASKS / "_demo_cot_yaml").read_text())["filter_list"][0]["filter"][0]
    for name in ("demo_cot_counting", "demo_cot_calendar"):
        shots = yaml.safe_load((TASKS / f"{name}.yaml").read_text())["fewshot_config"]["samples"]
        assert len(shots) == 3
        for shot in shots:
            (answer,) = re.findall(pattern["regex_pattern"], shot["target"])
            assert shot["target"].endswith(f"So the answer is {answer}.")
            assert "Q" not in shot["target"], "would stop the generation"


def test_chance_is_known_for_every_task_of_the_suite() -> None:
    raw = yaml.safe_load((suite.FOLDER / "demo.yaml").read_text())
    assert list(demo.CHANCE) == raw["tasks"]
    sizes = [len(row["choices"]["text"]) for row in documents("qa.jsonl")]
    assert demo.CHANCE["demo_qa"] == pytest.approx(sum(1 / n for n in sizes) / len(sizes))
    assert Counter(sizes) == {3: 14, 4: 14, 5: 14}


@pytest.mark.parametrize(
    ("score", "stderr", "within"),
    [(0.25, 0.0, True), (0.39, 0.05, True), (0.41, 0.05, False), (0.11, 0.05, True),
     (0.09, 0.05, False), (float("nan"), 0.05, False), (0.25, float("nan"), False)],
)  # fmt: skip
def test_a_score_is_at_chance_within_three_standard_errors(
    score: float, stderr: float, within: bool
) -> None:
    assert demo.at_chance(score, stderr, 0.25) is within


def test_lm_eval_builds_every_request_from_the_task_folder_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(TASKS)  # lm-eval resolves data files there; evalkit's harness anywhere
    loaded = TaskManager(include_path=str(TASKS), include_defaults=False).load(list(demo.CHANCE))
    counts = {}
    for name, task in loaded["tasks"].items():
        task.set_fewshot_seed(1234)
        task.build_all_requests(rank=0, world_size=1)
        counts[name] = len(task.instances)
    assert counts == {
        "demo_letters_sums": 40 * 4,
        "demo_letters_days": 24 * 4,
        "demo_endings": 56 * 4,
        "demo_qa": 14 * (3 + 4 + 5),
        "demo_cot_counting": 24,
        "demo_cot_calendar": 24,
    }
    prompt = loaded["tasks"]["demo_cot_counting"].instances[0].args[0]
    assert prompt.count("\n\nQ: ") == 4 and prompt.endswith("A: Let's think step by step.\n")
