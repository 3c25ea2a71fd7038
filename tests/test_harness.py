"""The door to lm-eval: requests, scores, locks, what is published, and the rules of tokenising.

Small tasks of our own, nothing downloaded but where the stand-in Hub is the point. That whole runs
score as lm-eval's own do is held in tests/oracle.
"""

import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub as stand_in
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness import index, locking, publish, samples, tasks
from evalkit.harness.asking import requests
from evalkit.harness.data import loading, local, pinning
from evalkit.harness.scoring import score
from evalkit.harness.tasks import Loaded
from evalkit.inputs import suite as suites
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.requests.request import Request, Settings, Terms, settings_from
from evalkit.plan.tokenise import Row, tokenise

pytest.importorskip("lm_eval")

Write = Callable[..., Path]
Answers = dict[str, dict[str, Any]]

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": ["yes", "no", "it depends"],
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}],
}
WORDS = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "yes",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "repeats": 2,
    "metric_list": [{"metric": "exact_match"}],
}
DOCUMENTS = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(6)]


def write_suite(folder: Path, *members: Any, **settings: Any) -> Path:
    path = folder / "own.yaml"
    body = {"name": "own", "tasks": list(members), "include_path": "tasks", **settings}
    path.write_text(yaml.safe_dump(body))
    return path


def load(path: Path, **pins: Any) -> Loaded:
    suite = suites.load(str(path))
    lock = suites.lock_of(suite)
    revisions = {name: dataset["revision"] for name, dataset in lock.datasets.items()}
    loaded = tasks.load(suite, loading.Pins(revisions, include_path=suite.include_path, **pins))
    pinning.check(loaded, lock)
    return loaded


@pytest.fixture
def own(tmp_path: Path, write_task: Write) -> Path:
    """A locked suite of a multiple-choice task and a generation that is asked for twice."""
    write_task(tmp_path / "tasks", "own_choices", DOCUMENTS, **CHOICES)
    write_task(tmp_path / "tasks", "own_words", DOCUMENTS, **WORDS)
    suite = write_suite(tmp_path, "own_choices", "own_words", limit=4)
    locking.write_lock(str(suite))
    return suite


def answers(built: list[Request]) -> Answers:
    """Answers that a request's id alone decides."""
    return {
        request.id: {"text": f"yes {request.repeat}", "stop": "eos"}
        if request.kind == "generate_until"
        else {"loglikelihood": -1.0 - (request.index * 7 + request.doc_id) % 5, "is_greedy": False}
        for request in built
    }


def scored(loaded: Loaded, given_answers: Answers) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lm-eval's results and the samples, as they are published."""
    scoring = score.Scoring(loaded, lambda _: given_answers)
    made = list(scoring.samples())
    return scoring.results(), made


# Requests


def test_every_request_has_its_own_id_and_the_limit_is_documents(own: Path) -> None:
    """acc_mutual_info asks for each choice twice, with and without the question: six a document,
    of which lm-eval numbers the last three like the first."""
    built = requests.build(load(own))
    ids = [request.id for request in built]
    assert len(set(ids)) == len(ids)
    per_document = {
        task: {r.local_id for r in built if r.task == task and r.doc_id == 0}
        for task in ("own_choices", "own_words")
    }
    assert per_document["own_choices"] == {f"0/{index}/0" for index in range(6)}
    assert per_document["own_words"] == {"0/0/0", "0/0/1"}
    assert {request.doc_id for request in built} == {0, 1, 2, 3}


def test_settings_are_normalised_as_lm_eval_does_it() -> None:
    def made(**given: Any) -> Settings:
        return settings_from(given, task="own", terms=Terms(3))

    assert made() == Settings((), 256)
    assert made(until="Q", max_new_tokens=5, max_gen_toks=7) == Settings(("Q",), 7)
    assert made(temperature=0.7, do_sample=False) == Settings((), 256)
    assert made(temperature=0.7, top_k=4) == Settings((), 256, True, 0.7, 1.0, 4, 3)
    assert made(do_sample=True).temperature == 1.0


DRAWS = "import random\ndef ask(doc):\n    return f'{random.random()} {doc[\"question\"]}'\n"


def test_a_task_can_be_built_alone_and_again(tmp_path: Path, write_task: Write) -> None:
    """Also one whose prompts are drawn from Python's own generator, in any order."""
    config = {key: value for key, value in CHOICES.items() if key != "doc_to_text"}
    for name in ("own_a", "own_b"):
        write_task(
            tmp_path / "tasks", name, DOCUMENTS, "doc_to_text: !function utils.ask\n", **config
        )
    (tmp_path / "tasks" / "utils.py").write_text(DRAWS)
    suite = write_suite(tmp_path, "own_a", "own_b")
    locking.write_lock(str(suite))
    loaded = load(suite)
    first = requests.build(loaded)
    assert len({request.context for request in first}) > len(DOCUMENTS)
    for name in ("own_b", "own_a", "own_b"):
        wanted = [request for request in first if request.task == name]
        assert requests.of_leaf(loaded, name) == wanted
        assert loaded.leaves[name].task.instances is None, "a million would fill the memory"


# Scores


def test_scoring_task_by_task_is_what_one_evaluate_of_all_gives() -> None:
    """Groups, several filters and repeats included, to the last byte."""
    from lm_eval.evaluator import evaluate

    loaded = load(suites.find("demo"))
    given_answers = answers(requests.build(loaded))
    ids: dict[int, str] = {}
    for leaf in loaded.leaves.values():
        requests.build_task(leaf, loaded.suite, None)
        ids |= score.request_ids(leaf, given_answers)
    asked = {name: score.Asked(leaf.task) for name, leaf in loaded.leaves.items()}
    whole = evaluate(
        score.Replay(given_answers, ids), {**loaded.task_dict, "tasks": asked},
        bootstrap_iters=publish.BOOTSTRAP_ITERS,
    )  # fmt: skip
    own = whole.pop("samples")
    filters: dict[str, int] = {}
    wanted = [
        sample for name in sorted(own) for sample in samples.published(name, own[name], filters)
    ]
    found = scored(load(suites.find("demo")), given_answers)
    assert json.dumps(found) == json.dumps((publish.clean(whole), wanted))
    assert found[0]["groups"]["demo_cot"]["sample_len"] == 48


def test_scores_do_not_depend_on_the_order_of_answers_and_repeat_to_the_byte(own: Path) -> None:
    loaded = load(own)
    given_answers = answers(requests.build(loaded))
    first = json.dumps(scored(loaded, given_answers))
    turned = dict(reversed(given_answers.items()))
    assert json.dumps(scored(load(own), turned)) == first
    results, samples = json.loads(first)
    assert list(results["results"]) == ["own_choices", "own_words"]
    sample = next(s for s in samples if (s["task"], s["doc_id"]) == ("own_words", 2))
    assert sample["resps"] == [["yes 0", "yes 1"]], "the k-th answer is the k-th repeat's"


def test_scoring_prints_nothing_where_programs_read(
    tmp_path: Path, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """lm-eval says on stdout that it bootstraps a perplexity's standard error."""
    loglikelihood = {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}]}
    texts = {"doc_to_text": "{{question}}", "doc_to_target": " yes"}
    write_task(tmp_path / "tasks", "own_texts", DOCUMENTS, **loglikelihood, **texts)
    suite = write_suite(tmp_path, "own_texts")
    locking.write_lock(str(suite))
    loaded = load(suite)
    scored(loaded, answers(requests.build(loaded)))
    said = capsys.readouterr()
    assert said.out == "" and "bootstrapping" in said.err


def test_a_missing_answer_is_named(own: Path) -> None:
    loaded = load(own)
    given_answers = answers(requests.build(loaded))
    del given_answers["own_words/3/0/1"]
    with pytest.raises(EvalkitError, match="no answer for own_words/3/0/1"):
        scored(loaded, given_answers)


# What is published


def test_published_values_hold_no_address_no_set_order_and_no_numpy() -> None:
    import numpy as np

    inside = f"{index.task_folder()}/arc"
    results = {
        "configs": {
            "one": {"metadata": {"config_source": f"{inside}/arc_easy.yaml"}},
            "own": {"config_source": "/home/someone/suites/tasks/own.yaml"},
            "function": f"{publish.clean!r}",
            "text": f"path {inside}/utils.py",
            "set": {"c", "a", "b"},
            "numbers": (np.float32(0.5), np.int64(3), None, True),
        },
    }
    cleaned = publish.clean(results)
    assert cleaned["configs"] == {
        "one": {"metadata": {"config_source": "lm_eval/tasks/arc/arc_easy.yaml"}},
        "own": {"config_source": "own.yaml"},
        "function": "<function clean>",
        "text": "path lm_eval/tasks/arc/utils.py",
        "set": ["a", "b", "c"],
        "numbers": [0.5, 3, None, True],
    }
    assert json.loads(json.dumps(cleaned)) == cleaned


def test_samples_come_by_task_document_and_filter_with_strings_for_answers(own: Path) -> None:
    loaded = load(own)
    _, samples = scored(loaded, answers(requests.build(loaded)))
    assert [(s["task"], s["doc_id"]) for s in samples] == [
        (task, doc_id) for task in ("own_choices", "own_words") for doc_id in range(4)
    ]
    first = samples[0]
    assert list(first)[:4] == ["task", "doc_id", "doc", "target"]
    assert first["target"] == "0" and first["resps"][0] == [["-1.0", "False"]]
    assert first["arguments"]["gen_args_0"] == {"arg_0": "Is 0 even?\nAnswer:", "arg_1": " yes"}


# Locks


def test_a_lock_says_what_was_loaded_and_a_second_one_is_the_same(own: Path) -> None:
    lock = own.with_name("own.lock.yaml")
    first = lock.read_text()
    assert list(load(own).leaves) == ["own_choices", "own_words"]
    locking.write_lock(str(own))
    assert lock.read_text() == first
    read = suites.read_lock(lock)
    assert read.tasks["own_choices"]["documents"] == len(DOCUMENTS), "whatever the limit is"
    assert set(read.datasets) == {"files:own_choices.jsonl", "files:own_words.jsonl"}


@pytest.mark.shared
def test_a_refreshed_lock_keeps_its_revisions_until_it_is_told_to_move(
    hub: stand_in.Hub, tmp_path: Path, write_task: Write
) -> None:
    def serve(question: str, licence: str) -> None:
        text = json.dumps({"question": question, "answer": 0}) + "\n"
        card = f"---\nlicense: {licence}\n---\n"
        hub.repo("own/moving", {"data/test.jsonl": text, "README.md": card})

    path = write_task(tmp_path / "tasks", "own_a", [], **CHOICES)
    config = yaml.safe_load(path.read_text()) | {"dataset_path": "own/moving"}
    path.write_text(yaml.safe_dump(config | {"dataset_kwargs": None}))
    suite = write_suite(tmp_path, "own_a")
    serve("the first?", "mit")
    first = suites.read_lock(locking.write_lock(str(suite)))
    serve("the second?", "cc-by-nc-4.0")
    assert suites.read_lock(locking.write_lock(str(suite))) == first
    assert requests.build(load(suite))[0].context == "the first?\nAnswer:"
    assert requests.build(load(suite, offline=True))[0].context == "the first?\nAnswer:"
    moved = suites.read_lock(locking.write_lock(str(suite), update=True))
    old, new = (lock.datasets["own/moving"] for lock in (first, moved))
    assert re.fullmatch("[0-9a-f]{40}", new["revision"]) and new["revision"] != old["revision"]
    assert (old["licence"], old["redistributable"]) == ("mit", True)
    assert (new["licence"], new["redistributable"]) == ("cc-by-nc-4.0", False)
    assert requests.build(load(suite))[0].context == "the second?\nAnswer:"


def test_a_hub_that_is_busy_is_asked_again_and_one_that_is_gone_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Hub answers a burst of requests (mmlu has 57 configs) with 429."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    said: list[Any] = []
    waits: list[float] = []

    def dataset_info(_: Any, repo: str, revision: str | None = None) -> Any:
        answer = said.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    def refused(status: int) -> Exception:
        response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
        return HfHubHTTPError(f"{status}", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr("time.sleep", waits.append)
    said[:] = [refused(429), refused(429), "c" * 40]
    assert loading.current("own/busy") == "c" * 40
    assert waits == sorted(waits) and waits[-1] > 1
    said[:] = [refused(404), "never asked"]
    with pytest.raises(EvalkitError, match="can't ask the Hub about dataset own/gone") as caught:
        loading.current("own/gone")
    assert caught.value.code == Exit.MISSING and said == ["never asked"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its HTTP client's error for no connection is no OSError."""
    import huggingface_hub

    class Elsewhere(huggingface_hub.HfApi):
        def __init__(self) -> None:
            super().__init__(endpoint="http://127.0.0.1:9")

    monkeypatch.setattr(huggingface_hub, "HfApi", Elsewhere)
    with pytest.raises(EvalkitError, match="can't ask the Hub about dataset own/far") as caught:
        loading.current("own/far")
    assert caught.value.code == Exit.MISSING


# Data of a suite's own


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "nothing.jsonl"])
def test_a_data_file_outside_the_suites_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (tmp_path / "tasks").mkdir()
    with pytest.raises(EvalkitError, match=r"outside the suite's|is not in the suite's"):
        local.source(tmp_path / "tasks", "json", {"data_files": {"test": name}})


def test_the_loader_is_put_back_whatever_happens() -> None:
    import datasets

    original = datasets.load_dataset
    with pytest.raises(RuntimeError, match="stop"), loading.pinned(loading.Pins({})):
        assert datasets.load_dataset is not original
        raise RuntimeError("stop")
    assert datasets.load_dataset is original


# Rows of tokens, as lm-eval's `hf` model feeds them

MAX_LENGTH = 24
TOKENIZERS = ["llama3", "gpt2", "sentencepiece"]
PIECES = [
    " ", "  ", "\n", "\n\n", "\t", "the", "The", " answer", "Q:", "tree", "7", "1234", "é", "漢字",
    "🙂", "-", "...", "\u00a0", "<|begin_of_text|>", "<|endoftext|>", "<s>", "</s>", "▁",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)
each_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)
quick = settings(
    max_examples=40, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture(scope="session")
def both(tiny_model: Callable[..., Path]) -> Callable[[str], tuple[Tokenizer, Any]]:
    """Our tokenizer and lm-eval's `hf` model of one folder."""

    @cache
    def pair(kind: str) -> tuple[Tokenizer, Any]:
        from lm_eval.models.huggingface import HFLM

        folder = tiny_model(tokenizer=kind, max_length=MAX_LENGTH)
        theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
        return Tokenizer(models.resolve(str(folder))), theirs

    return pair


Fed = tuple[list[int], list[int]]  # a row's tokens, and those that it scores


def fed_by_lm_eval(model: Any, kind: str, *args: str) -> list[Fed] | None:
    """What lm-eval feeds its model for a request; None where it asserts that it can't."""
    fed: list[Fed] = []

    def keep(requests: Any, **_: Any) -> list[tuple[float, bool]]:
        for _strings, context, scored in requests:
            assert context and scored and len(scored) <= MAX_LENGTH, "as in _loglikelihood_tokens"
            fed.append(((context + scored)[-(MAX_LENGTH + 1) :][:-1], scored))
        return [(0.0, False)] * len(requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_loglikelihood_tokens", keep)
        try:
            getattr(model, kind)([SimpleNamespace(args=args)], disable_tqdm=True)
        except AssertionError:
            return None
    return fed


def fed_by_us(tokenizer: Tokenizer, kind: Any, *args: str) -> list[Fed] | None:
    """What we plan for the same request; None where we refuse it."""
    try:
        made = tokenise([Request("own", 0, 0, 0, kind, *args)], tokenizer)
    except EvalkitError:
        return None
    parts = [(target, row) for row in made.rows for target in row.targets]
    parts.sort(key=lambda part: part[0].part or 0)
    return [
        (row.tokens.tolist(), [*row.tokens[target.start + 1 :].tolist(), target.last])
        for target, row in parts
    ]


@each_tokenizer
@quick
@example(context=" ", continuation="a")  # nothing to condition on where no BOS is added
@example(context="", continuation="<|endoftext|>")  # the prefix token itself, and nothing more
@example(context="", continuation="<s>the")
@given(context=TEXT, continuation=TEXT.filter(bool))
def test_a_choice_is_tokenised_and_cut_as_lm_eval_does_it(
    both: Any, kind: str, context: str, continuation: str
) -> None:
    ours, theirs = both(kind)
    wanted = fed_by_lm_eval(theirs, "loglikelihood", context, continuation)
    assert fed_by_us(ours, "loglikelihood", context, continuation) == wanted


@each_tokenizer
@quick
@given(text=st.lists(TEXT, max_size=12).map(" ".join).filter(bool))
def test_a_text_is_cut_into_lm_evals_windows(both: Any, kind: str, text: str) -> None:
    ours, theirs = both(kind)
    wanted = fed_by_lm_eval(theirs, "loglikelihood_rolling", text)
    found = fed_by_us(ours, "loglikelihood_rolling", text)
    assert found == wanted
    assert found is not None
    everything = [token for _, scored in found for token in scored]
    assert everything == theirs.tok_encode(text), "each token is scored once"


@each_tokenizer
@quick
@given(context=TEXT.filter(bool), new_tokens=st.integers(1, MAX_LENGTH - 1))
def test_a_prompt_leaves_room_for_its_answer_as_lm_evals_does(
    both: Any, kind: str, context: str, new_tokens: int
) -> None:
    ours, theirs = both(kind)
    room = MAX_LENGTH - new_tokens
    whole = theirs.tok_batch_encode([context])[0][0].tolist()
    wanted = theirs.tok_batch_encode([context], left_truncate_len=room)[0][0].tolist()
    request = Request("own", 0, 0, 0, "generate_until", context, "", Settings((), new_tokens))
    made = tokenise([request], ours)
    assert [row.tokens.tolist() for row in made.rows] == [wanted]
    assert bool(made.truncated["own"]) == (wanted != whole)


@each_tokenizer
@quick
@given(pairs=st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=8))
def test_a_request_is_tokenised_the_same_alone_and_among_others(
    both: Any, kind: str, pairs: list[tuple[str, str]]
) -> None:
    ours, _ = both(kind)
    alone = [fed_by_us(ours, "loglikelihood", *pair) for pair in pairs]
    good = [index for index, fed in enumerate(alone) if fed is not None]
    made = tokenise(
        [Request("own", index, 0, 0, "loglikelihood", *pairs[index]) for index in good], ours
    )

    def scored(row: Row, start: int, last: int) -> Fed:
        return row.tokens.tolist(), [*row.tokens[start + 1 :].tolist(), last]

    together = {
        target.request.doc_id: [scored(row, target.start, target.last)]
        for row in made.rows
        for target in row.targets
    }
    assert together == {index: alone[index] for index in good}
    inputs = [row.tokens.tolist() for row in made.rows]
    assert len({tuple(tokens) for tokens in inputs}) == len(inputs), "equal inputs share a row"


def test_what_leaves_no_room_or_nothing_to_score_is_refused_by_name(both: Any) -> None:
    tokenizer, _ = both("llama3")
    request = Request("own", 3, 0, 0, "generate_until", "Q:", "", Settings((), MAX_LENGTH))
    with pytest.raises(EvalkitError, match="'own' generates up to 24 tokens but"):
        tokenise([request], tokenizer)
    long = Request("own", 3, 1, 0, "loglikelihood", "Q:", " the answer" * MAX_LENGTH)
    with pytest.raises(EvalkitError, match="request own/3/1/0 scores"):
        tokenise([long], tokenizer)


def test_prompts_without_bos_and_with_two_are_counted(both: Any) -> None:
    """Special tokens in a text are the user's: a template that adds BOS, on top of the
    tokenizer's, is seen in the counts (lm-eval notices one at the very start only)."""
    tokenizer, _ = both("llama3")
    texts = ["plain", "<|begin_of_text|>once", "<|begin_of_text|><|begin_of_text|>twice"]
    made = tokenise(
        [Request("own", n, 0, 0, "loglikelihood", text, " x") for n, text in enumerate(texts)],
        tokenizer,
    )
    assert (made.missing_bos, made.double_bos) == (0, 1)


def test_a_cache_that_can_not_be_written_to_is_served_from_a_mirror_of_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` writes locks and rewritten documents beside what it reads: a staged cache that
    was mounted read-only could not be used."""
    import datasets.config

    from evalkit.harness.data import cache

    shared = tmp_path / "org___name" / "default"
    shared.mkdir(parents=True)
    (shared / "test.arrow").write_text("rows")
    (shared / "builder.lock").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    cache.mirror()
    assert cache.root() == tmp_path  # it can be written to
    monkeypatch.setattr(os, "access", lambda *_: False)
    cache.mirror()
    assert cache.root() != tmp_path
    mirrored = cache.root() / "org___name" / "default"
    assert (mirrored / "test.arrow").read_text() == "rows"
    assert not (mirrored / "builder.lock").exists()
    (mirrored / "cache-1.arrow").write_text("rewritten")
    assert sorted(path.name for path in shared.iterdir()) == ["builder.lock", "test.arrow"]
