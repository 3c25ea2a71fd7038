"""lm-eval's model classes as engines, held against evalkit's own engine on the same weights.

`hf` runs in this process; `local-completions` asks a real server, vLLM's CPU build, which answers
log-likelihoods by echoing the prompt with its log-probabilities.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import served
import sides
import support
import yaml
from support import call

from evalkit.harness import locking
from evalkit.judge.verify import verify

pytestmark = pytest.mark.oracle
TASKS = ("own_choices", "own_texts", "own_goings_on")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, write_task: Callable[..., Path]) -> Path:
    """A locked suite of a task of each request type; some texts are longer than 128 tokens."""
    folder = tmp_path_factory.mktemp("suite")
    source = random.Random(11)

    def words(count: int) -> str:
        return " ".join(source.choices(models.COMMON, k=count))

    documents = [
        {"text": words(source.randint(3, 60)), "ends": [words(n % 3 + 1) for n in range(4)]}
        for _ in range(8)
    ]
    write_task(
        folder / "tasks", TASKS[0], documents, output_type="multiple_choice",
        doc_to_text="{{text}}", doc_to_choice="{{ends}}", doc_to_target=0,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip
    write_task(
        folder / "tasks", TASKS[1], [{"text": words(n)} for n in (1, 40, 300)],
        output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )  # fmt: skip
    write_task(
        folder / "tasks", TASKS[2], documents, output_type="generate_until",
        doc_to_text="{{text}}", doc_to_target="the",
        generation_kwargs={"until": ["\n", "the"], "max_gen_toks": 24},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    path = folder / "foreign.yaml"
    body = {"name": "foreign", "tasks": list(TASKS), "include_path": "tasks"}
    path.write_text(yaml.safe_dump(body))
    locking.write_lock(str(path))
    return path


def run(model: Path, suite: Path, out: Path, *options: str) -> Path:
    """A finished run's folder."""
    given = ("--model", model, "--suite", suite, "--out", out)
    return call("eval", *given, *options).done().folder


def compare(theirs: Path, ours: Path) -> None:
    """Log-likelihoods within the tolerance, greedy flags and texts equal, the record verified."""
    found, wanted = (support.read_journal(folder).answers() for folder in (theirs, ours))
    assert found.keys() == wanted.keys() and len(found) > 40
    worst = 0.0
    for request, answer in found.items():
        own = wanted[request]
        if "text" in answer:
            assert answer["text"] == own["text"], request
            continue
        difference = abs(answer["loglikelihood"] - own["loglikelihood"])
        allowed = sides.TOLERANCE + sides.ROUNDING * abs(own["loglikelihood"])
        assert difference <= allowed, f"{request}: {difference}"
        assert answer.get("is_greedy") == own.get("is_greedy"), request
        assert answer["num_tokens"] == own["num_tokens"]
        worst = max(worst, difference)
    print("worst difference of a log-likelihood:", worst)
    report = verify(theirs)
    assert report.consistent, report.lines()
    assert "not bit-repeatable" in report.lines()[-1]


@pytest.mark.parametrize("tokenizer", ["llama3", "gpt2", "sentencepiece"])
def test_hf_as_an_engine_answers_as_evalkits_own(
    tokenizer: str, suite: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model(tokenizer=tokenizer, max_length=128)
    theirs = run(model, suite, tmp_path / "theirs", "--device", "cpu", "--engine", "lm-eval:hf",
                 "--engine-arg", "batch_size=4")  # fmt: skip
    compare(theirs, run(model, suite, tmp_path / "ours", "--device", "cpu"))


@pytest.fixture(scope="module")
def endpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]
) -> Iterator[tuple[Path, str]]:
    """A served model's folder and its address. vLLM's attention wants heads of 32 or more."""
    model = tiny_model(head_dim=64, max_length=2048, chat_template=True)
    with served.serve(model, "tiny", tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield model, url


def to(url: str, **args: Any) -> list[str]:
    """The options for a served model."""
    words = [f"{key}={value}" for key, value in {"base_url": url, "model": "tiny", **args}.items()]
    named = ["--engine", "lm-eval:local-completions"]
    return [*named, *(part for word in words for part in ("--engine-arg", word))]


@pytest.mark.timeout(900)
def test_a_served_model_answers_as_evalkits_own(
    endpoint: tuple[Path, str], suite: Path, tmp_path: Path
) -> None:
    model, url = endpoint
    theirs = run(model, suite, tmp_path / "theirs", *to(url))
    compare(theirs, run(model, suite, tmp_path / "ours", "--device", "cpu"))
    record = support.read(theirs)
    assert record["engine"]["level"] == "none" and record["engine"]["args"]["base_url"] == url
    assert support.read(theirs, "plan.json")["max_length"] == 2046
    assert "unknown" in record["segments"][0]["hardware"]
    assert "unknown" in record["environment"]["gpu"]


@pytest.mark.shared
@pytest.mark.usefixtures("hub")
@pytest.mark.timeout(900)
def test_a_served_model_answers_gsm8k_through_its_chat_template_as_evalkits_own(
    endpoint: tuple[Path, str], tmp_path: Path
) -> None:
    """The server is sent the rendered prompt, with its worked examples as turns of their own."""
    model, url = endpoint
    suite = tmp_path / "chatted.yaml"
    body = {
        "name": "chatted",
        "tasks": [{"task": "gsm8k", "num_fewshot": 2}],
        "limit": 6,
        "gen_kwargs": {"max_gen_toks": 24},
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
    }
    suite.write_text(yaml.safe_dump(body))
    locking.write_lock(str(suite))
    theirs = run(model, suite, tmp_path / "theirs", *to(url))
    ours = run(model, suite, tmp_path / "ours", "--device", "cpu")
    texts = [
        {name: answer["text"] for name, answer in support.read_journal(folder).answers().items()}
        for folder in (theirs, ours)
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 6 and any(texts[0].values())
    samples = [support.contents(folder)["samples.jsonl.gz"] for folder in (theirs, ours)]
    assert samples[0] == samples[1] and b"<|start_header_id|>assistant" in samples[0]
    assert verify(theirs).consistent


@pytest.mark.timeout(900)
def test_a_served_run_goes_on_where_it_stopped_with_several_requests_under_way(
    endpoint: tuple[Path, str], suite: Path, tmp_path: Path
) -> None:
    """Its engine and arguments are not given again."""
    model, url = endpoint
    whole = run(model, suite, tmp_path / "whole", *to(url))
    folder = run(model, suite, tmp_path / "out", *to(url, num_concurrent=4))
    (path,) = (folder / "journal").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    for name in ("record.json", "results.json", "samples.jsonl.gz"):
        (folder / name).unlink()
    ran = call("execute", folder, "--model", model).done()
    assert f"continuing: 2 of {len(lines)} batches are done" in ran.err
    call("finish", folder, "--model", model, "--suite", suite).done()
    compare(folder, whole)


def test_a_model_that_is_not_served_is_one_line(
    endpoint: tuple[Path, str], suite: Path, tmp_path: Path
) -> None:
    model, url = endpoint
    given = ("--model", model, "--suite", suite, "--out", tmp_path)
    ran = call("eval", *given, *to(url, model="another", max_retries=1))
    ran.refused(3, "lm-eval:local-completions failed on a batch of own_", "404")
