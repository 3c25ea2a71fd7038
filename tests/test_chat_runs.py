"""Runs of chat models from the command line: what the clock, a thought and several seeds leave
behind, and that every command after them finds it as it was."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from support import call

from evalkit.inputs.chat import templates
from evalkit.show import seeds

TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y %H:%M:%S') }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\n{% endif %}"
)
WRITES = {
    "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["zzz"], "max_gen_toks": 6, "do_sample": True,
                          "temperature": 1.0},
    "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
DOCUMENTS = [{"q": f"{word} is it", "a": "yes"} for word in ("the man", "a house", "some water")]


@pytest.fixture(scope="module")
def place(
    tiny_model: Callable[..., Path], write_task: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """A model whose template reads the clock and opens a thought, and a suite that has it think."""
    folder = tmp_path_factory.mktemp("chats")
    model = shutil.copytree(tiny_model("llama", tokenizer="llama3"), folder / "model")
    told = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(told | {"chat_template": TEMPLATE}))
    write_task(folder / "tasks", "own", DOCUMENTS, **WRITES)
    (folder / "chats.yaml").write_text(
        "name: chats\ntasks: [own]\ninclude_path: tasks\nchat_template: true\n"
        "think_end: true\nmax_think_toks: 4\n"
    )
    call("lock", folder / "chats.yaml").done()
    return folder


def evaluated(place: Path, *more: str | Path) -> Any:
    """The suite evaluated, or found."""
    options = ("--suite", place / "chats.yaml", "--out", place / "out", "--workers", "0")
    return call("eval", "--model", place / "model", *options, *more)


def test_a_run_keeps_the_time_that_it_was_planned_at(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompts of plan and samples differed, and --deep called an honest record BROKEN."""
    first = evaluated(place).done()
    clock = support.read(first.folder)["suite"]["clock"]
    monkeypatch.setattr(templates, "now", lambda: "2031-01-01T00:00:00Z")
    again = evaluated(place).done()
    assert again.folder == first.folder and "already finished" in again.err
    deep = call("verify", first.folder, "--deep", "--model", place / "model",
                "--suite", place / "chats.yaml")  # fmt: skip
    assert deep.code == 0, deep.out
    assert "PASS  deep plan" in deep.out and "PASS  deep scores" in deep.out
    unheld = "1 leaf tasks' prompts are not held against the lock"  # the answer may be in them
    assert unheld in call("verify", first.folder).out.splitlines()[-1]
    assert unheld not in deep.out.splitlines()[-1]
    other = evaluated(place, "--fresh", "--seed", "5").done()
    assert support.read(other.folder)["suite"]["clock"] == "2031-01-01T00:00:00Z" != clock


def test_texts_that_never_stop_thinking_are_shown(place: Path) -> None:
    ran = evaluated(place).done()
    record = support.read(ran.folder)
    assert record["health"]["endless_thoughts"] == record["health"]["empty_generations"] == 3
    assert record["tasks"]["own"]["texts"] == {
        "count": 3, "cut": 3, "endless": 3, "tokens": {"thinking": 12, "answering": 0},
        "ended": {"n": 0, "metrics": {}},
    }  # fmt: skip
    shown = call("verify", ran.folder)
    assert shown.code == 0 and "3 generations that never stopped thinking" in shown.out


def test_what_is_journalled_of_a_thought_can_not_be_changed(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated(place).done().folder, tmp_path / "run")
    record = support.read(run)
    record["tasks"]["own"]["texts"]["tokens"]["answering"] = 5
    support.write(run, record)
    told = call("verify", run)
    assert told.code == 1 and re.search(r"FAIL  texts .*own: tokens", told.out)


def test_several_seeds_are_several_runs_and_a_spread(place: Path) -> None:
    ran = evaluated(place, "--seeds", "1, 2,3", "--json").done()
    told = json.loads(ran.out)
    assert len(set(told["folders"])) == 3 and told["folder"] == told["folders"][-1]
    found = [set(support.read(Path(folder))["suite"]["seeds"].values())
             for folder in told["folders"]]  # fmt: skip
    assert found == [{1}, {2}, {3}]
    assert "over 3 seeds (1, 2, 3)" in ran.err and "no score moved" in ran.err


@pytest.mark.parametrize("given", ["1,1", "a", "1,,2", "-3"])
def test_seeds_that_are_no_list_are_refused(given: str, place: Path) -> None:
    evaluated(place, "--seeds", given).refused(2, "no list of seeds")


def test_the_spread_over_seeds_is_the_standard_deviation_of_their_scores() -> None:
    def record(value: float) -> dict[str, Any]:
        metrics = {"acc,none": {"value": value, "stderr": 0.1, "stderr_method": "mean",
                                "higher_is_better": True}}  # fmt: skip
        task = {"alias": "own", "num_fewshot": 0, "n": 9, "documents": 9, "metrics": metrics,
                "output_type": "multiple_choice", "version": 1}  # fmt: skip
        return {"tasks": {"own": task}, "groups": {}, "suite": {"tasks": [{"task": "own"}]}}

    (row,) = seeds.spread([record(0.2), record(0.4), record(0.6)])
    assert row.scores == [0.2, 0.4, 0.6]
    assert (row.mean, row.spread, row.stderr) == pytest.approx((0.4, 0.2, 0.1))
