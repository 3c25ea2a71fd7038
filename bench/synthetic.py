"""A suite of any size for `bench.large`: the demo's own tasks over documents of benchmark length.

The YAML files are the demo's, so that `verify` can let lm-eval's own task score every sample again;
only data files and shots are others. Every text is made here from a list of words and fixed seeds.
"""

import json
import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

import evalkit
from tests.models import CHAIN, COMMON, OTHERS

TASKS = Path(evalkit.__file__).parent / "inputs" / "models" / "builtin" / "demo" / "tasks"
LETTERS = "ABCD"
SHOTS = 5  # of the tasks that are answered with a letter
NEW_TOKENS = 160
# Percent of the requests; four of them are a document where there are choices, else one.
SHARES = {"letters_sums": 24, "letters_days": 24, "endings": 24, "qa": 24,
          "cot_counting": 2, "cot_calendar": 2}  # fmt: skip
SUITE = f"""\
name: large
tasks:
  - task: demo_letters
    num_fewshot: {SHOTS}
  - demo_endings
  - demo_qa
  - demo_cot
gen_kwargs:
  max_gen_toks: {NEW_TOKENS}
include_path: tasks
"""

Document = dict[str, Any]


def write(folder: Path, requests: int) -> Path:
    """Write a suite of about so many requests into `folder`; the suite's path."""
    data = folder / "tasks" / "data"
    data.mkdir(parents=True)
    for path in TASKS.glob("*yaml"):
        body = yaml.safe_load(path.read_text("utf-8"))
        if "fewshot_config" in body and "samples" in body["fewshot_config"]:
            body["fewshot_config"]["samples"] = [_reasoned(seed) for seed in range(3)]
        text = yaml.safe_dump(body, sort_keys=False)
        (folder / "tasks" / path.name).write_text(text, "utf-8")
    for name, count in documents(requests).items():
        _write_lines(data / f"{name}.jsonl", _documents(name, count))
        if name.startswith("letters"):
            _write_lines(data / f"{name}_dev.jsonl", _documents(f"{name}_dev", SHOTS))
    path = folder / "large.yaml"
    path.write_text(SUITE, "utf-8")
    return path


def documents(requests: int) -> dict[str, int]:
    """How many documents each data file has."""
    each = {name: 1 if name.startswith("cot") else len(LETTERS) for name in SHARES}
    return {name: requests * share // (100 * each[name]) for name, share in SHARES.items()}


def _write_lines(path: Path, lines: Iterator[Document]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in lines)


class _Words:
    """Words as often as a language has them: the n-th is 1/n as frequent as the first."""

    def __init__(self, seed: str) -> None:
        self.source = random.Random(seed)
        self._words = [*COMMON, *OTHERS, *CHAIN.replace(";", " ").split()]
        self._weights = list(accumulate(1 / rank for rank in range(1, len(self._words) + 1)))

    def some(self, least: int, most: int) -> str:
        """So many words, as a sentence without its end."""
        count = self.source.randint(least, most)
        return " ".join(self.source.choices(self._words, cum_weights=self._weights, k=count))

    def choices(self, least: int, most: int) -> list[str]:
        """Four of them."""
        return [self.some(least, most) for _ in LETTERS]


def _letters(words: _Words) -> Document:
    question = f"{words.some(15, 80).capitalize()}?"
    return {"question": question, "choices": words.choices(1, 12), "answer": _answer(words)}


def _endings(words: _Words) -> Document:
    query = f"{words.some(20, 70).capitalize()}."
    return {"query": query, "choices": words.choices(8, 25), "label": _answer(words)}


def _qa(words: _Words) -> Document:
    choices = {"text": words.choices(2, 9), "label": list(LETTERS)}
    question = f"{words.some(10, 40).capitalize()}?"
    return {"question": question, "choices": choices, "answerKey": LETTERS[_answer(words)]}


def _cot(words: _Words) -> Document:
    return {"input": f"{words.some(30, 90).capitalize()}?", "target": words.some(1, 1)}


def _answer(words: _Words) -> int:
    return words.source.randrange(len(LETTERS))


MAKERS: dict[str, Callable[[_Words], Document]] = {
    "letters": _letters,
    "endings": _endings,
    "qa": _qa,
    "cot": _cot,
}


def _documents(name: str, count: int) -> Iterator[Document]:
    words = _Words(name)
    make = MAKERS[name.split("_")[0]]
    return (make(words) for _ in range(count))


def _reasoned(seed: int) -> Document:
    """A shot with a chain of thought."""
    words = _Words(f"shot {seed}")
    document = _cot(words)
    thought = ". ".join(words.some(10, 20).capitalize() for _ in range(5))
    return document | {"target": f"{thought}. So the answer is {document['target']}."}
