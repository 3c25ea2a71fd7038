"""Chat models and thinking models beside lm-eval's `hf` model: prompts, texts and scores equal.

A random model is made to think, to stop thinking and to answer by its generation config, which
names the tokens that follow one another; so its own settings are held against lm-eval's as well.
"""

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sides

pytestmark = pytest.mark.oracle
EXACT_MATCH = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
TURN = "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}"
TURNS = "{% for message in messages %}" + TURN + "<|eot_id|>{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
THINKS = (
    "{{ bos_token }}" + TURNS + ASSISTANT + "{% if enable_thinking is defined and enable_thinking"
    " is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
NOW = "Now: {{ strftime_now('%d %b %Y %H:%M') }}"
DATED = "{{ bos_token }}" + NOW + TURNS + ASSISTANT + "{% endif %}"
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('no system turn') }}{% endif %}" + TURN + "<|eot_id|>{% endfor %}"
    + ASSISTANT + "{% endif %}"
)  # fmt: skip
QUESTIONS = (
    "The answer of the man is", "Where did the people go after the long day?",
    "What is the word for water and light?", "Give me the three numbers in order:",
)  # fmt: skip
DOCUMENTS = [
    {"question": question, "choices": ["the man", "the house of water", "no"], "gold": n % 3,
     "answer": "so it is"}
    for n, question in enumerate(QUESTIONS)
]  # fmt: skip
Write = Callable[..., Path]


@pytest.fixture
def tasks(write_task: Write, tmp_path: Path) -> Path:
    """One task that writes and one that chooses."""
    common = {"doc_to_text": "{{question}}", "description": "Some questions.\n\n"}
    write_task(
        tmp_path / "tasks", "own_writing", DOCUMENTS, output_type="generate_until",
        doc_to_target="{{answer}}", metric_list=[EXACT_MATCH],
        generation_kwargs={"until": ["zzz"], "max_gen_toks": 40}, **common,
    )  # fmt: skip
    write_task(
        tmp_path / "tasks", "own_choices", DOCUMENTS, output_type="multiple_choice",
        doc_to_target="gold", doc_to_choice="choices",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}], **common,
    )  # fmt: skip
    return tmp_path


def chat_model(base: Path, folder: Path, template: str, *special: str) -> Path:
    """A copy of a model with a chat template, and these words as special tokens."""
    from transformers import AutoTokenizer

    shutil.copytree(base, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    own: Any = AutoTokenizer.from_pretrained(base)
    if special:
        own.add_special_tokens({"additional_special_tokens": list(special)})
        _resize(folder, len(own))
    own.chat_template = template
    own.save_pretrained(folder)
    return folder


def _resize(folder: Path, size: int) -> None:
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM
    model = causal.from_pretrained(folder)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(folder)


def let_say(folder: Path, before: str, text: str) -> None:
    """Have a model write this text, and end it, wherever a prompt ends with `before`."""
    from transformers import AutoTokenizer

    own: Any = AutoTokenizer.from_pretrained(folder)
    tokens = own.encode(before, add_special_tokens=False)
    first = len(tokens)
    tokens += [*own.encode(text, add_special_tokens=False), own.eos_token_id]
    bias = [[tokens[max(0, at - 7) : at + 1], 1000.0] for at in range(first, len(tokens))]
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sequence_bias": bias}))


def both(model: Path, suite: dict[str, Any], folder: Path, **theirs: Any) -> sides.Side:
    """Our side of a comparison that found no difference; `theirs` goes to lm-eval's model."""
    ours = sides.ours(model, suite, folder)
    sides.compare(sides.theirs(sides.load(model, **theirs), suite, folder), ours)
    return ours


def suite(*names: str, **more: Any) -> dict[str, Any]:
    """A suite of the tasks above, with a chat template."""
    return {"name": "talk", "tasks": list(names), "include_path": "tasks",
            "apply_chat_template": True, **more}  # fmt: skip


def record_of(side: sides.Side) -> dict[str, Any]:
    """The record of our side, which verify finds consistent."""
    from evalkit.judge.verify import verify

    assert side.folder is not None
    report = verify(side.folder)
    assert report.consistent, report.lines()
    found: dict[str, Any] = json.loads((side.folder / "record.json").read_text())
    return found


@pytest.mark.parametrize("more", [
    {}, {"fewshot_as_multiturn": True, "system_instruction": "Be brief."},
], ids=["plain", "system"])  # fmt: skip
def test_a_model_told_not_to_think_is_asked_as_lm_eval_asks_it(
    more: dict[str, Any], tasks: Path, tiny_model: Callable[..., Path]
) -> None:
    model = chat_model(tiny_model(), tasks / "model", THINKS)
    asked = suite(
        "own_writing", "own_choices", chat_template_args={"enable_thinking": False}, **more
    )
    both(model, asked, tasks, enable_thinking=False)


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")], ids=["spelt", "tokens"])
def test_what_a_model_thinks_is_left_out_as_lm_eval_leaves_it_out(
    special: tuple[str, ...], tasks: Path, tiny_model: Callable[..., Path]
) -> None:
    model = chat_model(tiny_model(), tasks / "model", THINKS, *special)
    thought = "well the people and the water\n\n</think>\n\nso it is"
    let_say(model, "assistant<|end_header_id|>\n\n<think>\n", thought)
    end: Any = "</think>"
    if special:
        from transformers import AutoTokenizer

        own: Any = AutoTokenizer.from_pretrained(model)
        end = own.convert_tokens_to_ids(end)
    ours = both(model, suite("own_writing", think_end=True), tasks, think_end_token=end)
    assert ours.results["results"]["own_writing"]["exact_match,none"] == 1.0
    told = record_of(ours)["tasks"]["own_writing"]["texts"]
    assert told["endless"] == 0 and told["tokens"]["thinking"] > told["tokens"]["answering"] > 0
    for answer in ours.answers():
        assert answer["raw"] == thought and answer["text"] == "so it is"


def test_a_text_that_never_stops_thinking_is_empty_and_counted(
    tasks: Path, tiny_model: Callable[..., Path]
) -> None:
    """lm-eval scores the thought in its place."""
    model = chat_model(tiny_model(), tasks / "model", THINKS)
    asked = suite("own_writing", think_end="</think>", max_think_toks=7)
    made = record_of(ours := sides.ours(model, asked, tasks))
    assert made["health"]["endless_thoughts"] == len(DOCUMENTS)
    assert {answer["text"] for answer in ours.answers()} == {""}
    assert {len(answer["tokens"]) for answer in ours.answers()} == {7}
    assert made["tasks"]["own_writing"]["texts"]["ended"] == {"n": 0, "metrics": {}}


def test_a_system_turn_that_a_template_refuses_is_left_out_as_lm_eval_does(
    tasks: Path, tiny_model: Callable[..., Path]
) -> None:
    model = chat_model(tiny_model(), tasks / "model", NO_SYSTEM)
    ours = both(model, suite("own_writing", "own_choices"), tasks)
    assert record_of(ours)["health"]["dropped_system_turns"] > 0


def test_a_template_reads_the_time_that_the_record_states(
    tasks: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    model = chat_model(tiny_model(), tasks / "model", DATED)
    asked = suite("own_writing", "own_choices")
    ours = sides.ours(model, asked, tasks)
    clock = record_of(ours)["suite"]["clock"]

    class Then:
        @staticmethod
        def now() -> datetime:
            return datetime.strptime(clock, "%Y-%m-%dT%H:%M:%SZ")

    monkeypatch.setattr(chat_template_utils, "datetime", Then)
    sides.compare(sides.theirs(sides.load(model), asked, tasks), ours)
