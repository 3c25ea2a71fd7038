"""Chats and thinking: the suite's keys, how a chat becomes a prompt, what is left of a text that
thinks before it answers."""

import json
import random
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from evalkit.base.errors import EvalkitError
from evalkit.harness.models import classes
from evalkit.inputs import suite as suites
from evalkit.inputs.chat import templates, texts
from evalkit.inputs.chat.texts import cut_problem, fits_a_text
from evalkit.inputs.engine_name import parse
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.suite import Suite
from evalkit.plan.requests import asking
from evalkit.plan.requests.request import Settings, Terms, Thinking, settings_from

thoughts = pytest.importorskip("evalkit.engine.text.thoughts")

TURN = (
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}"
    "<|eot_id|>"
)
ASSISTANT = "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
PLAIN = "{{ bos_token }}{% for message in messages %}" + TURN + "{% endfor %}" + ASSISTANT
TEMPLATES = {
    "date": "{{ bos_token }}Now: {{ strftime_now('%d %b %Y %H:%M:%S') }}" + PLAIN + "{% endif %}",
    "no system": "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('no system turn here') }}{% endif %}" + TURN + "{% endfor %}" + ASSISTANT
    + "{% endif %}",
    "thinks": PLAIN + "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}",
    "plain": PLAIN + "{% endif %}",
}  # fmt: skip
ASKED = [{"role": "user", "content": "Is it?"}]
TOLD = [{"role": "system", "content": "Be brief."}, *ASKED]
Chat = Callable[..., Any]


@pytest.fixture
def chat_model(tiny_model: Callable[..., Path], tmp_path: Path) -> Chat:
    """A random model with one of the templates above."""

    def made(template: str = "plain", special: bool = False, **config: Any) -> Any:
        base = tiny_model("llama", tokenizer="llama3", chat_template=True)
        folder = shutil.copytree(base, tmp_path / template.replace(" ", "_"))
        for file in folder.glob("chat_template*"):
            file.unlink()
        told = json.loads((folder / "tokenizer_config.json").read_text())
        told |= {"chat_template": TEMPLATES[template]} | config
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        return models.resolve(str(folder))

    return made


def a_suite(folder: Path, text: str, name: str = "own") -> Suite:
    """A suite with these lines in its file."""
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\ntasks: [own]\n{text}\n")
    return suites.load(str(path))


# The suite's keys


def test_a_chat_template_is_the_models_one_of_several_or_a_file_of_the_suites(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    for text, wanted, own in (
        ("chat_template: true", True, None),
        ("apply_chat_template: true", True, None),
        ("chat_template: tool_use", "tool_use", None),
        ("chat_template: own.jinja", True, "{{ messages }}"),
    ):
        found = a_suite(tmp_path, text)
        assert (found.apply_chat_template, found.chat.text) == (wanted, own)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("chat_template: gone.jinja", "can't read the suite's chat template 'gone.jinja'"),
        ("chat_template: ../own.jinja", "beside it or below"),
        ("chat_template: /etc/passwd", "beside it or below"),
        ("chat_template: true\napply_chat_template: true", "both given"),
        ("chat_template_args: {enable_thinking: false}", "without a chat template"),
        ("fewshot_as_multiturn: true", "without a chat template"),
        ("think_start: <think>", "without think_end"),
        ("max_think_toks: 5", "without think_end"),
        ("think_end: 3", "not valid"),
    ],
)
def test_keys_that_say_nothing_or_contradict_each_other_are_refused(
    tmp_path: Path, text: str, word: str
) -> None:
    with pytest.raises(EvalkitError, match=word):
        a_suite(tmp_path, text)


def test_only_what_a_suite_says_of_chats_is_in_its_identity(tmp_path: Path) -> None:
    assert a_suite(tmp_path, "chat_template: true").chat.identity() == {}
    (tmp_path / "own.jinja").write_text("one")
    one = a_suite(tmp_path, "chat_template: own.jinja\nthink_end: true").chat.identity()
    (tmp_path / "own.jinja").write_text("two")
    two = a_suite(tmp_path, "chat_template: own.jinja\nthink_end: true").chat.identity()
    assert one["think_end"] is True
    assert one["chat_template_file"]["name"] == two["chat_template_file"]["name"] == "own.jinja"
    assert one["chat_template_file"]["sha256"] != two["chat_template_file"]["sha256"]


# How a chat becomes a prompt


def test_a_template_that_is_not_there_is_refused_with_those_there_are(
    chat_model: Chat, tmp_path: Path
) -> None:
    """lm-eval takes the one that there is, with a line in its log."""
    tokenizer = Tokenizer(chat_model())
    with pytest.raises(EvalkitError, match=r"no chat template 'tool_use': choose from default"):
        tokenizer.chat_template_for(a_suite(tmp_path, "chat_template: tool_use"))
    assert tokenizer.chat_template_for(a_suite(tmp_path, "chat_template: default"))


def test_the_suites_own_template_takes_the_place_of_the_models(
    chat_model: Chat, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(
        "{{ tone }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    wanted = a_suite(tmp_path, "chat_template: own.jinja\nchat_template_args: {tone: 'Sir! '}")
    template = Tokenizer(chat_model()).chat_template_for(wanted)
    assert template is not None and template(ASKED) == "Sir! Is it?"


def test_the_clock_of_a_template_stands_still(chat_model: Chat, tmp_path: Path) -> None:
    """The prompts of plan and samples differed, and an honest record was called BROKEN."""
    from dataclasses import replace

    from transformers.utils import chat_template_utils

    wanted = a_suite(tmp_path, "chat_template: true")
    at = replace(wanted, chat=wanted.chat.at("2026-02-03T04:05:06Z"))
    template = Tokenizer(chat_model("date")).chat_template_for(at)
    assert template is not None and "Now: 03 Feb 2026 04:05:06" in template(ASKED)
    untyped: Any = chat_template_utils
    assert untyped.datetime is datetime
    assert templates.now() > "2026"


def test_a_system_turn_that_a_template_refuses_is_no_silent_loss(
    chat_model: Chat, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(chat_model("no system"))
    asks = a_suite(tmp_path, "chat_template: true\nsystem_instruction: Be brief.")
    template = tokenizer.chat_template_for(asks)
    assert template is not None
    with pytest.raises(EvalkitError, match="refuses a system turn: no system turn here"):
        template(TOLD)
    template = tokenizer.chat_template_for(a_suite(tmp_path, "chat_template: true"))
    assert template is not None
    assert (template(TOLD), template.dropped) == (template(ASKED), 1)


def test_choices_behind_an_open_thought_are_refused(chat_model: Chat, tmp_path: Path) -> None:
    model = chat_model("thinks")
    plain = a_suite(tmp_path, "chat_template: true")
    asked = asking.of(plain, model, Tokenizer(model))
    assert asked.template is not None and asked.words == ("<think>", "</think>")
    with pytest.raises(EvalkitError, match="scores choices behind an open <think>"):
        asked.check_scored("own", asked.template(ASKED))
    off = a_suite(tmp_path, "chat_template: true\nchat_template_args: {enable_thinking: false}")
    asked = asking.of(off, model, Tokenizer(model))
    assert asked.template is not None
    asked.check_scored("own", asked.template(ASKED))
    on = a_suite(tmp_path, "chat_template: true\nchat_template_args: {enable_thinking: true}")
    with pytest.raises(EvalkitError, match="told to think"):
        asking.of(on, model, Tokenizer(model)).check_scored("own", "closed")


def test_what_ends_a_thought_is_found_where_the_model_says_it(
    chat_model: Chat, tmp_path: Path
) -> None:
    model = chat_model("thinks")

    def terms(text: str, of: Any = model) -> Thinking | None:
        return asking.of(a_suite(tmp_path, text), of, Tokenizer(of)).terms.thinking

    assert terms("chat_template: true") is None
    assert terms("chat_template: true\nthink_end: true") == Thinking("<think>", "</think>")
    assert terms("think_end: </think>\nmax_think_toks: 9") == Thinking("<think>", "</think>", 9)
    assert terms("think_end: END") == Thinking("", "END")
    assert terms("chat_template: true\nthink_end: true", chat_model("plain")) is None


@pytest.mark.parametrize("name", ["enable_thinking=False", "think_end_token=x",
                                  "chat_template_args=x", "chat_template=x"])  # fmt: skip
def test_an_engines_arguments_that_change_prompts_or_texts_are_the_suites(name: str) -> None:
    """They were accepted and published, and did nothing."""
    for engine in ("hf", "vllm", "sglang", "local-completions"):
        with pytest.raises(EvalkitError, match=rf"not for lm-eval:{engine}: set .* in the suite"):
            classes.model_class(parse(f"lm-eval:{engine}", [name]))


# Texts that think


SETTINGS = {"until": ["STOP", "\n\n"], "think_start": "<think>", "think_end": "</think>"}


@pytest.mark.parametrize(
    ("raw", "thinks", "wanted"),
    [
        ("a STOP b</think>\n\n42 STOP 7", True, "42 "),
        ("a</think>b</think> c", True, "c"),
        ("a STOP and on", True, ""),
        ("42\n\nmore", False, "42"),
        ("</think>42", True, "42"),
    ],
)
def test_an_answer_is_what_stands_behind_the_last_thought_up_to_a_stop_string(
    raw: str, thinks: bool, wanted: str
) -> None:
    assert texts.scored_part(raw, SETTINGS, thinks=thinks) == wanted


def test_an_ended_thought_is_cut_as_lm_eval_cuts_it() -> None:
    from lm_eval.models.utils import postprocess_generated_text

    source = random.Random(0)
    words = ["</think>", "<think>", " ", "\n\n", "STOP", "yes", "42", "x"]
    for _ in range(300):
        raw = "".join(source.choices(words, k=source.randint(0, 9))) + "</think>"
        raw += "".join(source.choices(words, k=3))
        wanted = postprocess_generated_text(raw, SETTINGS["until"], "</think>")
        assert texts.scored_part(raw, SETTINGS, thinks=True) == wanted


def test_a_budget_for_thoughts_stands_beside_the_answers() -> None:
    terms = Terms(thinking=Thinking("<think>", "</think>", 50))
    found = settings_from({"max_gen_toks": 20}, task="own", terms=terms)
    assert (found.max_gen_toks, found.max_think_toks) == (70, 50)


def stops(tokenizer: Any, settings: Settings, prompt: str, text: str) -> tuple[int, str, Any]:
    """After how many of a text's tokens it ends, why, and the thought by then."""
    tokens = tokenizer.encode([text], special_tokens=False)[0]
    thought = thoughts.of(tokenizer, settings, tokenizer.encode([prompt], special_tokens=False)[0])
    for count in range(1, len(tokens) + 1):
        if why := thoughts.see(tokenizer, thought, tokens[:count], settings):
            return count, why, thought.to_json(count)
    return len(tokens), "", thought.to_json(len(tokens))


@pytest.fixture(scope="module")
def tokenizers(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that spells `</think>`, and one that has tokens for both words."""
    from transformers import AutoTokenizer

    plain = models.resolve(str(tiny_model("llama", tokenizer="llama3")))
    own: Any = AutoTokenizer.from_pretrained(plain.folder)
    own.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    folder = shutil.copytree(plain.folder, tmp_path_factory.mktemp("special") / "model")
    own.save_pretrained(folder)
    return Tokenizer(plain), Tokenizer(models.resolve(str(folder)))


@pytest.mark.parametrize("which", [0, 1], ids=["spelt", "tokens"])
def test_stop_strings_act_on_the_answer_only(which: int, tokenizers: Any) -> None:
    tokenizer = tokenizers[which]
    settings = Settings(("\n\n",), 99, think_start="<think>", think_end="</think>")
    thought = "the first\n\nthe second</think>\n\n"
    spent = len(tokenizer.encode([thought], special_tokens=False)[0])
    count, why, told = stops(tokenizer, settings, "So <think>", thought + "four\n\nmore")
    assert (why, told["ended"]) == ("stop_string", True)
    assert count > spent and told["tokens"] <= spent
    tokens = tokenizer.encode([thought + "four\n\nmore"], special_tokens=False)[0][:count]
    raw = thoughts.raw(tokenizer, tokens, settings)
    assert raw.startswith("the first\n\nthe second</think>")
    assert texts.scored_part(raw, settings.to_json(), thinks=True) == "four"


def test_without_a_thought_a_text_is_an_answer_as_it_is(tokenizers: Any) -> None:
    settings = Settings(("\n\n",), 99, think_start="<think>", think_end="</think>")
    _, why, told = stops(tokenizers[0], settings, "Q", "four\n\nmore")
    assert (why, told) == ("stop_string", {"tokens": 0, "ended": False})
    _, why, told = stops(tokenizers[0], settings, "Q", "<think>four\n\nmore")
    assert (why, told["ended"]) == ("", False) and told["tokens"] > 4


def test_thoughts_and_answers_end_at_their_own_longest(tokenizers: Any) -> None:
    settings = Settings((), 15, think_start="<think>", think_end="</think>", max_think_toks=10)
    long = "the first and the second and the third and the fourth and the fifth and the sixth"
    count, why, told = stops(tokenizers[1], settings, "<think>", long)
    assert (count, why, told) == (10, "length", {"tokens": 10, "ended": False})
    count, why, told = stops(tokenizers[1], settings, "<think>", "the</think>" + long)
    assert (why, told["ended"]) == ("length", True) and count == told["tokens"] + 5
    count, why, _ = stops(tokenizers[1], settings, "Q", long)
    assert (count, why) == (5, "length")


# What verify makes of it


def an_answer(raw: str, *, tokens: int, ended: bool, spent: int) -> dict[str, Any]:
    """A journal's answer of a text that thinks."""
    text = texts.scored_part(raw, SETTINGS, thinks=spent > 0)
    return {
        "text": text, "raw": raw, "tokens": [5] * tokens, "logprobs": [], "margins": [],
        "stop": "length", "thought": {"tokens": spent, "ended": ended},
    }  # fmt: skip


def test_an_honest_cut_is_found_again() -> None:
    for answer in (
        an_answer("a STOP</think> 42 STOP", tokens=9, ended=True, spent=5),
        an_answer("a STOP", tokens=4, ended=False, spent=4),
        an_answer("42 STOP", tokens=3, ended=False, spent=0),
    ):
        assert cut_problem(answer, SETTINGS) == "" and fits_a_text(answer)
    plain = {"until": ["STOP"]}
    assert cut_problem({"text": "42 ", "raw": "42 STOP"}, plain) == ""
    assert cut_problem({"text": "42"}, plain) == ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"text": "43 "}, "what is left"),
        ({"raw": "a</think> 43 STOP"}, "what is left"),
        ({"thought": {"tokens": 5, "ended": False}}, "whether its thought ended"),
        ({"thought": {"tokens": 0, "ended": True}}, "did not think"),
        ({"thought": {"tokens": 99, "ended": True}}, "another number of tokens"),
        ({"thought": None}, "how long it thought"),
    ],
)
def test_a_text_that_is_not_what_is_left_is_named(change: dict[str, Any], word: str) -> None:
    honest = an_answer("a STOP</think> 42 STOP", tokens=9, ended=True, spent=5)
    assert word in cut_problem(honest | change, SETTINGS)


def test_a_text_that_still_holds_a_stop_string_is_named() -> None:
    assert "what is left" in cut_problem({"text": "42 STOP"}, {"until": ["STOP"]})
