"""The census of lm-eval's tasks: the rows that it invents, and what it counts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import census, invented, reads, report_census
from bench.reads import Shape

CODE = """
LETTERS = ["x", "y"]
LEVELS = {"low": 1, "high": 2}

def process_docs(dataset):
    return dataset.filter(lambda d: d["kind"] == "kept").map(made)

def made(doc):
    ends = [end.strip() for end in doc["ends"]]
    level = LEVELS[doc["level"]]
    for letter in ["A", "B"]:
        ends.append(doc["by_letter"][letter])
    return {"gold": LETTERS.index(doc["answer"]), "name": doc["who"]["name"], "ends": ends,
            "next": doc["number"] - 1, "level": level, "maybe": doc.get("maybe")}

def untouched(doc):
    return doc["nobody asks for this"]
"""


LIST = ["?"] * 5


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("{{question.strip()}} {{n}}", {"question": "?", "n": "?"}),
        ("{% for e in who.ends %}{{e.text}}{% endfor %}", {"who": {"ends": [{"text": "?"}] * 5}}),
        ("{{choices[gold]}}", {"choices": LIST, "gold": 0}),
        ("{{['no', 'yes'].index(answer)}}", {"answer": "no"}),
        ("{{ {'no': 0, 'yes': 1}[answer] }}", {"answer": "no"}),
        ("{{answer - 1}} {{ends | join}}", {"answer": 1, "ends": LIST}),
        ("{% set x = doc.y %}{{x.z}}", {"doc": {"y": {"z": "?"}}}),
        ("{{ broken", {"text": "?"}),
    ],
)
def test_a_template_says_what_its_fields_look_like(template: str, row: dict[str, Any]) -> None:
    shape = Shape()
    reads.of_template(template, shape)
    assert invented.rows(shape, 1, "?") == [row]


def test_a_function_says_what_its_fields_look_like(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CODE)
    space: dict[str, Any] = {}
    exec(compile(CODE, str(tmp_path / "own.py"), "exec"), space)
    shape = Shape()
    reads.of_function(space["process_docs"], shape)
    assert invented.rows(shape, 1, "?") == [
        {"kind": "kept", "ends": LIST, "level": "low", "by_letter": {"A": "?", "B": "?"},
         "answer": "x", "who": {"name": "?"}, "number": 1, "maybe": "?"}
    ]  # fmt: skip


def test_a_task_gets_its_splits_with_more_rows_than_shots() -> None:
    config = SimpleNamespace(
        doc_to_text="question", doc_to_choice="{{ends}}", doc_to_target="label", num_fewshot=25,
        output_type="multiple_choice", test_split="held_out", training_split=None,
    )  # fmt: skip
    tables = invented.tables(SimpleNamespace(config=config), ["more"], None, None)
    assert set(tables) == {"held_out", "train", "validation", "test"}
    assert len(tables["held_out"]) == 27
    assert tables["held_out"][1] == {"question": "2", "ends": list("12345"), "label": 0,
                                     "more": "2"}  # fmt: skip


def test_each_outcome_is_counted_under_its_words() -> None:
    found: dict[str, Any] = {
        name: {"task": name, "step": step, "what": what, **more}
        for name, step, what, more in [
            ("one", "planned", "", {"metrics": ["f1"]}),
            ("three", "planned", "", {}),
            ("pictures", "data", "task 'pictures' needs images or sound; evalkit ...", {}),
            ("lacking", "config", "task 'lacking' can't be built: ImportError: Please install", {}),
            ("odd", "data", "task 'odd' can't be built: KeyError: 'x'", {"misfit": True}),
            ("other", "rows", "task 'other' has a new reason", {}),
            ("crashed", "rows", "RuntimeError: x", {"fault": True}),
        ]
    }
    text = report_census.table(found, 9)
    assert text.startswith("7 of the 9 tasks") and "1 of the planned" in text and "f1 (1)" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert lines[0] == "| planned | planned | 2 | `one` |"
    for words in ("images or sound | data | 1 | `pictures`", "packages that are not here | config",
                  "none of the invented rows | data", "TASK' has a new reason | rows",
                  "an error that is not its own | rows | 1 | `crashed`"):  # fmt: skip
        assert words in text


def test_the_drawn_order_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    names = [f"task_{number}" for number in range(50)]
    for given in (names, names[::-1]):
        monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda n=given: SimpleNamespace(
            all_subtasks=n))  # fmt: skip
        drawn = census.registered()
        assert drawn != names and sorted(drawn) == sorted(names)
        assert drawn[:2] == ["task_2", "task_35"]
