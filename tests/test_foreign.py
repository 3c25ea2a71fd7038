"""lm-eval's model classes as engines: which may be named, what they are handed, what is said."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from support import call, steady
from test_load import made_adapter

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.models import classes, foreign
from evalkit.inputs import engine_name
from evalkit.inputs.models import model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.judge.verify import verify
from evalkit.plan import batch as batches
from evalkit.plan.batch import Batch, BatchTarget, Policy
from evalkit.plan.requests.request import Settings

# What may be named, and what may not

SECRETS = {
    "api_key": "x",
    "openai_api_key": "x",
    "auth_token": "x",
    "token": "x",
    "hf_token": "x",
    "password": "x",
    "header": "{'Authorization': 'x'}",
    "client_secret": "x",
}
SECRET_VALUES = [
    "hf_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "sk-proj-aaaaaaaaaaaaaaaaaaaa",
    "Bearer abc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    "http://me:word@127.0.0.1:8000/v1",
    "http://127.0.0.1:8000/v1/completions?api_key=abc",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
]
FINE = {
    "base_url": "http://127.0.0.1:8000/v1/completions",
    "model": "meta-llama/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
    "add_bos_token": "True",
    "think_end_token": "</think>",
    "custom_prefix_token_id": "5",
    "max_gen_toks": "256",
    "eos_string": "",
    "gpu_memory_utilization": "0.9",
    "kv_cache_dtype": "fp8",
    "quantization": "awq",
}


@pytest.mark.parametrize(("key", "value"), SECRETS.items())
def test_a_key_that_looks_like_a_secret_is_refused(key: str, value: str) -> None:
    with pytest.raises(EvalkitError, match="environment variable"):
        engine_name.parse("lm-eval:local-completions", [f"{key}={value}"])


@pytest.mark.parametrize("value", SECRET_VALUES)
def test_a_value_that_looks_like_a_secret_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(EvalkitError, match="looks like a secret") as caught:
        engine_name.parse("lm-eval:local-completions", [f"thing={value}"])
    assert value not in str(caught.value)


def test_a_secret_never_comes_near_the_disk(tmp_path: Path) -> None:
    planted = SECRET_VALUES[0]
    ran = call("eval", *support.DEMO, "--out", tmp_path / "out", "--engine", "lm-eval:hf",
               "--engine-arg", f"api={planted}")  # fmt: skip
    ran.refused(2, "--engine-arg api looks like a secret", "OPENAI_API_KEY")
    assert planted not in ran.err and not (tmp_path / "out").exists()


def test_ordinary_arguments_are_kept_as_they_were_given_in_a_fixed_order() -> None:
    words = [f"{key}={value}" for key, value in FINE.items()]
    made = engine_name.parse("lm-eval:vllm", words)
    assert made == engine_name.parse("lm-eval:vllm", words[::-1])
    assert made.args == FINE and list(made.args) == sorted(FINE) and made.foreign == "vllm"


@pytest.mark.parametrize(
    ("engine", "args", "words"),
    [
        ("vllm", [], "unknown engine 'vllm': choose evalkit or lm-eval:NAME"),
        ("lm-eval:", [], "names no model class"),
        ("evalkit", ["a=b"], "--engine-arg is for --engine lm-eval:NAME"),
        ("lm-eval:hf", ["batch_size"], "no KEY=VALUE"),
        ("lm-eval:hf", ["=4"], "no KEY=VALUE"),
        ("lm-eval:hf", ["a=1", "a=2"], "--engine-arg a is given twice"),
        ("lm-eval:hf", ["offload_folder=/home/me/x"], "offload_folder is a path of this machine"),
    ],
)
def test_what_is_no_engine_or_no_argument_is_told(engine: str, args: list[str], words: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        engine_name.parse(engine, args)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "args", "code", "words"),
    [
        ("hff", {}, 2, "lm-eval has no model class 'hff': did you mean hf"),
        ("vllm", {}, 3, "lm-eval:vllm needs the package vllm, which is not installed"),
        ("sglang", {}, 3, "lm-eval:sglang needs the package sglang, which is not installed"),
        ("local-chat-completions", {}, 2, "takes text or chats only"),
        ("gguf", {}, 2, "takes text or chats only"),
        (
            "hf",
            {"pretrained": "x"},
            2,
            "pretrained is not for lm-eval:hf: use --model",
        ),
        ("hf", {"peft": "x"}, 2, "use --adapter"),
        ("local-completions", {"tokenized_requests": "False"}, 2, "a plan holds token ids"),
    ],
)
def test_what_a_class_can_not_do_is_told_before_anything_is_planned(
    name: str, args: dict[str, str], code: int, words: str
) -> None:
    with pytest.raises(EvalkitError) as caught:
        classes.model_class(engine_name.Choice(f"lm-eval:{name}", args))
    assert caught.value.code == code and words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--level", "tree"), "shares nothing between rows: its level is none"),
        (("--profile", "precise"), "has numerics of its own"),
        (("--dtype", "float32"), "--dtype is not for lm-eval:local-completions"),
        (("--device", "cpu"), "--device is not for lm-eval:local-completions"),
        (("--engine-arg", "max_length=long"), "is no number of tokens (long)"),
    ],
)
def test_options_that_are_not_for_a_foreign_engine_are_refused(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    served = ("--engine", "lm-eval:local-completions")
    ran = call("plan", *support.DEMO, "--out", tmp_path, *served, *options)
    ran.refused(2, words)


def test_a_row_is_as_long_as_the_class_takes() -> None:
    """hf takes the row that is computed; a server must also be sent the token behind it, and write
    one of its own."""
    hf, served = (engine_name.Choice(f"lm-eval:{name}") for name in ("hf", "local-completions"))
    assert classes.plan_length(hf, 512) == 512
    assert classes.plan_length(served, 512) == 510
    assert classes.plan_length(engine_name.Choice(served.name, {"max_length": "100"}), 512) == 98


# What a class is handed, and what becomes of its answers


class Echo:
    """Stands for a class: notes what it is asked and answers by position."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.asked: list[Any] = []

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        self.asked += requests
        return [(-float(index), index % 2 == 0) for index in range(len(requests))]

    def tok_encode(self, text: str) -> list[int]:
        """As lm-eval's: no second BOS where the text begins with one."""
        bos = self.tokenizer.bos_token
        special = not (bos and text.startswith(bos))
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special)
        return ids

    def generate_until(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
        self.asked += [request.args for request in requests]
        for request in requests:
            request.args[1].pop("until")  # as lm-eval's classes do
        return [f"text {index}" for index, _ in enumerate(requests)]


def scoring(kind: Any = "loglikelihood") -> Batch:
    """Two rows, the first with two targets that begin at different places."""
    rows = [batches.chain(np.asarray(row, dtype=np.uint32)) for row in ([1, 2, 3, 4], [5, 6])]
    targets = [
        BatchTarget(0, 3, 3, 9, "t/0/0/0"),
        BatchTarget(0, 3, 1, 8, "t/0/1/0"),
        BatchTarget(1, 1, 0, 7, "t/1/0/0"),
    ]
    return batches.make_batch("t", kind, None, None, rows, targets, Policy())


def generating(prompts: list[list[int]], settings: Settings) -> Batch:
    rows = [batches.chain(np.asarray(prompt, dtype=np.uint32)) for prompt in prompts]
    targets = [
        BatchTarget(index, len(prompt) - 1, len(prompt), -1, f"t/{index}/0/0")
        for index, prompt in enumerate(prompts)
    ]
    return batches.make_batch("t", "generate_until", settings, None, rows, targets, Policy())


def test_a_class_is_handed_the_planned_token_ids() -> None:
    lm = Echo()
    answers = foreign.Foreign("lm-eval:echo", lm, Any).execute(scoring())
    assert lm.asked == [
        (None, [1, 2, 3, 4], [9]), (None, [1, 2], [3, 4, 8]), (None, [5], [6, 7]),
    ]  # fmt: skip
    assert answers == {
        "t/0/0/0": {"loglikelihood": 0.0, "is_greedy": True, "num_tokens": 1},
        "t/0/1/0": {"loglikelihood": -1.0, "is_greedy": False, "num_tokens": 3},
        "t/1/0/0": {"loglikelihood": -2.0, "is_greedy": True, "num_tokens": 2},
    }


def test_a_rolling_window_is_scored_likewise_and_has_no_greedy_flag() -> None:
    made = foreign.Foreign("lm-eval:echo", Echo(), Any).execute(scoring("loglikelihood_rolling"))
    assert made["t/0/1/0"] == {"loglikelihood": -1.0, "num_tokens": 3}


@pytest.mark.parametrize("family", ["llama3", "gpt2", "sentencepiece"])
def test_a_prompt_is_text_that_the_class_turns_into_the_planned_ids(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    tokenizer = Tokenizer(model.resolve(str(tiny_model(tokenizer=family))))
    texts = ["What is two times two?\nA:", "  leading blanks and é, ∑", "a"]
    prompts = tokenizer.encode(texts, special_tokens=True)
    lm = Echo(tokenizer.hf)
    settings = Settings(("Q", "\n"), 8, do_sample=True, temperature=0.5)
    batch = generating(prompts, settings)
    answers = foreign.Foreign("lm-eval:echo", lm, tokenizer).execute(batch)
    assert [lm.tok_encode(text) for text, _ in lm.asked] == prompts
    expected = {"max_gen_toks": 8, "do_sample": True, "temperature": 0.5, "top_p": 1.0}
    assert [kwargs for _, kwargs in lm.asked] == [expected] * 3
    untold = {"unknown": "lm-eval:echo gives the text only"}
    assert answers["t/1/0/0"] == {
        "text": "text 1", "tokens": untold, "logprobs": untold, "margins": untold, "stop": untold,
    }  # fmt: skip


@settings(steady, max_examples=40)
@given(st.data())
def test_no_prompt_is_sent_that_the_class_would_read_otherwise(
    tiny_model: Callable[..., Path], data: st.DataObject
) -> None:
    """Any token ids: they come back the same, or the request is named and nothing is sent."""
    tokenizer = Tokenizer(model.resolve(str(tiny_model(tokenizer="sentencepiece"))))
    ids = st.integers(0, len(tokenizer.hf) - 1)
    prompts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=3))
    lm = Echo(tokenizer.hf)
    try:
        foreign.Foreign("lm-eval:echo", lm, tokenizer).execute(generating(prompts, Settings((), 4)))
    except EvalkitError as error:
        assert "request t/" in str(error) and not lm.asked
    else:
        assert [lm.tok_encode(text) for text, _ in lm.asked] == prompts


def test_a_class_with_another_tokenizer_is_refused_by_the_requests_name(
    tiny_model: Callable[..., Path],
) -> None:
    ours, theirs = (
        Tokenizer(model.resolve(str(tiny_model(tokenizer=family)))) for family in ("llama3", "gpt2")
    )
    prompts = ours.encode(["a text"], special_tokens=True)
    made = foreign.Foreign("lm-eval:echo", Echo(theirs.hf), ours)
    with pytest.raises(EvalkitError, match="request t/0/0/0: the tokenizer of lm-eval:echo"):
        made.execute(generating(prompts, Settings((), 4)))


def test_a_class_that_leaves_out_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = Echo()
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda *_, **__: [(-1.0, True)])
    with pytest.raises(EvalkitError, match="answered 1 of 3 requests") as caught:
        foreign.Foreign("lm-eval:echo", lm, Any).execute(scoring())
    assert caught.value.code == Exit.FAILED


# A run


@pytest.fixture(scope="module")
def by_hf(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A finished run of a scoring and a generating task by lm-eval's hf, in parts."""
    folder = tmp_path_factory.mktemp("hf")
    suite = support.suite(folder, "mine", ["demo_qa", "demo_cot_calendar"])
    ran = call("plan", "--model", tiny_model(), "--suite", suite, "--limit", "3", "--out",
               folder / "results", "--engine", "lm-eval:hf", "--engine-arg", "batch_size=2",
               "--device", "cpu").done()  # fmt: skip
    call("execute", ran.folder, "--model", tiny_model(), "--device", "cpu").done()
    call("finish", ran.folder, "--model", tiny_model(), "--suite", suite).done()
    return ran.folder


def test_the_record_says_what_computed_it_and_that_it_is_not_bit_repeatable(by_hf: Path) -> None:
    record = support.read(by_hf)
    engine, numerics = record["engine"], record["numerics"]
    assert (engine["name"], engine["level"], engine["args"]) == (
        "lm-eval:hf", "none", {"batch_size": "2"},
    )  # fmt: skip
    assert engine["versions"] == {"lm_eval": "0.4.13"} and engine["bit_repeatable"] is False
    assert numerics["dtype"] == "float32" and "unknown" in numerics["attention"]
    assert "unknown" in record["health"]["cut_generations"]
    assert set(record["phases"]) == {"plan", "execute", "score"}  # nothing shared, nothing to probe


def test_such_a_record_verifies_with_its_label(by_hf: Path) -> None:
    report = verify(by_hf)
    assert report.consistent, report.lines()
    assert report.lines()[-1].startswith("CONSISTENT")
    assert report.lines()[-1].endswith(
        "not bit-repeatable (lm-eval:hf); the lock is the author's word; "
        "partial: 3 documents a leaf task"
    )
    assert (
        "WARN  engine        lm-eval:hf, level none, float32: not bit-repeatable" in report.lines()
    )
    assert report.to_json()["verdict"] == report.lines()[-1]
    assert call("status", by_hf).done().out.startswith("finished")


def test_its_log_likelihoods_are_those_of_evalkits_own_engine(
    by_hf: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_qa", "demo_cot_calendar"])
    ran = call("eval", "--model", tiny_model(), "--suite", suite, "--limit", "3", "--out",
               tmp_path / "results", "--device", "cpu").done()  # fmt: skip
    alike(by_hf, ran.folder)


def test_an_adapter_is_handed_to_the_class(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    adapter = made_adapter(tiny_model(), tmp_path / "lora")
    given = ("--model", tiny_model(), "--suite", suite, "--limit", "2", "--adapter", adapter)
    folders = [
        call("eval", *given, "--out", tmp_path / str(number), "--device", "cpu", *more).done()
        for number, more in enumerate([("--engine", "lm-eval:hf"), ("--level", "none")])
    ]
    alike(folders[0].folder, folders[1].folder)
    ran = call("plan", *given, "--out", tmp_path, "--engine", "lm-eval:local-completions")
    ran.refused(2, "lm-eval:local-completions takes no --adapter")


def alike(by_theirs: Path, by_ours: Path) -> None:
    """Log-likelihoods within 1e-4, greedy flags and texts equal."""
    theirs, ours = (support.read_journal(run).answers() for run in (by_theirs, by_ours))
    assert theirs.keys() == ours.keys()
    for request, answer in theirs.items():
        if "text" in answer:
            assert answer["text"] == ours[request]["text"], request
        else:
            assert abs(answer["loglikelihood"] - ours[request]["loglikelihood"]) < 1e-4, request
            assert answer["is_greedy"] == ours[request]["is_greedy"]


def test_an_engine_or_argument_that_changed_is_named(
    by_hf: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    common = ("plan", "--model", tiny_model(), "--suite", suite, "--out", tmp_path / "results")
    call(*common, "--engine", "lm-eval:hf", "--engine-arg", "batch_size=2").done()
    ran = call(*common, "--engine", "lm-eval:hf", "--engine-arg", "batch_size=4")
    ran.refused(2, "an unfinished run differs in engine.args.batch_size: 2 -> 4")
    # the numerics differ as well, and come first
    call(*common, "--level", "none").refused(2, "numerics.", "--fresh")


def test_a_server_that_does_not_answer_is_one_line_and_the_run_is_kept(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1/completions"
    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    command = ("eval", "--model", tiny_model(), "--suite", suite, "--limit", "1", "--out",
               tmp_path / "results", "--engine", "lm-eval:local-completions",
               "--engine-arg", f"base_url={url}", "--engine-arg", "max_retries=1")  # fmt: skip
    ran = call(*command)
    ran.refused(3, "lm-eval:local-completions failed on a batch of demo_qa", "Connection")
    (folder,) = (tmp_path / "results").glob("*/mine*")
    assert call("status", folder).done().out.startswith("unfinished: 0% of")
    body = support.read(folder, "run.json")
    assert "unknown" in body["inputs"]["engine"]["versions"]["server"]
    assert "unknown" in body["inputs"]["numerics"]["dtype"]
    (started,) = [
        line for line in map(json.loads, next((folder / "events").glob("*.jsonl")).open())
        if line["event"] == "segment.start"
    ]  # fmt: skip
    assert "unknown" in started["hardware"]
