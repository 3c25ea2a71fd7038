"""lm-eval's own runs of small tasks of ours, held against ours: what the four real tasks lack.

Nothing is downloaded. The tasks' texts are made up here.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labels
import models
import pytest
import sides
import yaml

pytestmark = pytest.mark.oracle
SEED = 7
EXACT_MATCH = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}


def texts(count: int) -> list[dict[str, str]]:
    """Texts of 1 to 600 words."""
    source = random.Random(SEED)
    lengths = [1, 2, 40, *(source.randint(100, 600) for _ in range(count - 3))]
    return [{"text": " ".join(source.choices(models.COMMON, k=n))} for n in lengths]


@pytest.mark.parametrize("tokenizer", ["llama3", "gpt2", "sentencepiece"])
def test_perplexities_over_several_windows_are_the_same(
    tokenizer: str,
    write_task: Callable[..., Path],
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    write_task(
        tmp_path / "tasks",
        "own_texts",
        texts(12),
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": metric} for metric in metrics],
    )
    suite = {"name": "rolling", "tasks": ["own_texts"], "include_path": "tasks"}
    model = tiny_model(tokenizer=tokenizer, max_length=128)
    ours = sides.ours(model, suite, tmp_path)
    figures = sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert figures.documents == 12
    assert len(list(ours.answers())) > 24, "some texts are longer than the model's context"


def write_shapes(folder: Path, write_task: Callable[..., Path]) -> None:
    """Tasks whose requests or metrics have a shape that the four real tasks' don't have, and a
    group whose mean does not weigh them by size."""
    source = random.Random(SEED)

    def words(count: int) -> str:
        return " ".join(source.choices(models.COMMON, k=count))

    documents = [
        {
            "text": words(source.randint(3, 20)),
            "ends": [words(source.randint(1, 3)) for _ in range(source.randint(2, 4))],
            "last": words(1),
        }
        for _ in range(12)
    ]
    choices = {"output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": 1}
    vote = [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "majority_vote"}]
    shapes: dict[str, dict[str, Any]] = {
        "own_last": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{last}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "own_mutual": choices | {
            "doc_to_choice": "{{ends}}",
            "metric_list": [{"metric": "acc_mutual_info"}, {"metric": "acc"}],
        },
        "own_prefix": choices | {
            "doc_to_choice": "{{ends}}",
            "gen_prefix": "Answer: the",
            "target_delimiter": "",
            "description": "Say it. ",
            "num_fewshot": 2,
            "metric_list": [{"metric": "acc"}],
        },
        "own_blanks": choices | {
            "doc_to_text": "{{text}}   ",
            "doc_to_choice": ["A", "B"],
            "target_delimiter": "\n",
            "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
        },
        "own_vote": {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{last}}",
            "repeats": 3,
            "generation_kwargs": {"until": [], "max_gen_toks": 6},
            "filter_list": [{"name": "vote", "filter": [*vote, {"function": "take_first"}]}],
            "metric_list": [EXACT_MATCH],
        },
    }  # fmt: skip
    for name, config in shapes.items():
        write_task(folder, name, documents[:8] if name == "own_blanks" else documents, **config)
    means = [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]
    group = {"group": "own_shapes", "task": list(shapes)[:-1], "aggregate_metric_list": means}
    (folder / "own_shapes.yaml").write_text(yaml.safe_dump(group))


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_tasks_of_other_shapes_score_the_same(
    chat: bool,
    write_task: Callable[..., Path],
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    write_shapes(tmp_path / "tasks", write_task)
    suite = {
        "name": "shapes",
        "tasks": ["own_shapes", "own_vote"],
        "include_path": "tasks",
        "apply_chat_template": chat,
        "fewshot_as_multiturn": chat,
    }
    model = tiny_model(tokenizer="sentencepiece", max_length=512, chat_template=True)
    ours = sides.ours(model, suite, tmp_path)
    figures = sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert figures.documents == 4 * 12 + 8
    prompt = ours.samples["own_prefix", 0, "none"]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("<|start_header_id|>user") == (3 if chat else 0)


def test_repeated_greedy_generations_are_the_same(
    write_task: Callable[..., Path],
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    first = {"name": "first", "filter": [{"function": "take_first"}]}
    word = {
        "name": "word",
        "filter": [{"function": "regex", "regex_pattern": "([a-z]+)"}, {"function": "take_first"}],
    }
    write_task(
        tmp_path / "tasks",
        "own_repeats",
        texts(8)[2:],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="the",
        repeats=2,
        generation_kwargs={"until": ["."], "max_gen_toks": 12},
        filter_list=[first, word],
        metric_list=[EXACT_MATCH],
    )
    suite = {"name": "repeats", "tasks": ["own_repeats"], "include_path": "tasks"}
    model = tiny_model(tokenizer="gpt2", max_length=256)
    ours = sides.ours(model, suite, tmp_path)
    figures = sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert figures.documents == 12, "6 documents, each under two filters"
    assert len(list(ours.answers())) == 12, "6 documents, each answered twice"


def test_generations_that_stop_and_greedy_continuations_are_the_same(
    write_task: Callable[..., Path],
    talker: Path,
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    """A trained model: its texts end by a stop string, and its own words are its greedy choice."""
    source = random.Random(SEED)
    questions = [
        {"text": f"Q: {' '.join(source.choices(models.COMMON, k=12)).capitalize()}?{options}"}
        for options in ("\nOptions:\n(A) apple\n(B) stone\n(C) rain", "\nOptions:\n- Yes\n- No")
        for _ in range(6)
    ]
    write_task(
        tmp_path / "tasks",
        "own_chains",
        questions,
        output_type="generate_until",
        doc_to_text="{{text}}" + models.CUE,
        doc_to_target="(A)",
        generation_kwargs={"until": ["Q", "\n\n"], "do_sample": False, "max_gen_toks": 320},
        metric_list=[EXACT_MATCH],
    )
    write_task(
        tmp_path / "tasks",
        "own_words",
        [
            {"start": " ".join(row[:3]), "ends": [" ".join(row[3:5]), "apple rain", "the"]}
            for row in models.ROWS
        ],
        output_type="multiple_choice",
        doc_to_text="Q: What now?" + models.CUE + "{{start}}",
        doc_to_choice="{{ends}}",
        doc_to_target=0,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    suite = {"name": "talk", "tasks": ["own_chains", "own_words"], "include_path": "tasks"}
    ours = sides.ours(talker, suite, tmp_path)
    figures = sides.compare(sides.theirs(hf_model(talker), suite, tmp_path), ours)
    stops = Counter(answer["stop"] for answer in ours.answers() if "stop" in answer)
    assert stops["stop_string"] >= 10, stops
    assert figures.greedy >= 5
    assert ours.results["results"]["own_words"]["acc,none"] >= 0.8


@pytest.mark.parametrize("change", [
    {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(300, 900))}, {"begin_suppress_tokens": list(range(300, 900))},
    {"bad_words_ids": [[token] for token in range(300, 900)]}, {"forced_eos_token_id": 0},
    {"sequence_bias": [[[token], 4.0] for token in range(300, 320)]},
    {"eos_token_id": list(range(0, 1200, 3)), "min_new_tokens": 10},
    {"max_new_tokens": 9},
], ids=lambda change: "+".join(change))  # fmt: skip
def test_what_a_models_generation_config_asks_for_is_done(
    change: dict[str, Any],
    write_task: Callable[..., Path],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """transformers' `generate`, and so lm-eval, obeys it even when it is greedy. Models that people
    use come with one: Qwen2.5's chat models have a repetition penalty of 1.05."""
    write_task(
        tmp_path / "tasks",
        "own_goings_on",
        texts(6),
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="the",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 24},
        metric_list=[EXACT_MATCH],
    )
    suite = {"name": "config", "tasks": ["own_goings_on"], "include_path": "tasks"}
    model = shutil.copytree(tiny_model(tokenizer="gpt2", max_length=256), tmp_path / "model")
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | change))
    ours = sides.ours(model, suite, tmp_path)
    sides.compare(sides.theirs(sides.load(model), suite, tmp_path), ours)


def test_a_task_that_samples_several_texts_and_votes_scores_the_same(
    write_task: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """maj@k as a task defines it. With one token to draw from, both sides draw the same."""
    write_task(
        tmp_path / "tasks",
        "own_votes",
        texts(4),
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="the",
        repeats=3,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": True,
                           "temperature": 0.7, "min_p": 0.01},
        filter_list=[
            {"name": "maj@3",
             "filter": [{"function": "majority_vote"}, {"function": "take_first"}]},
            {"name": "first", "filter": [{"function": "take_first"}]},
        ],
        metric_list=[EXACT_MATCH],
    )  # fmt: skip
    suite = {"name": "votes", "tasks": ["own_votes"], "include_path": "tasks"}
    model = shutil.copytree(tiny_model(tokenizer="llama3"), tmp_path / "model")
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | {"top_k": 1}))
    ours = sides.ours(model, suite, tmp_path)
    sides.compare(sides.theirs(sides.load(model), suite, tmp_path), ours)
    assert len(list(ours.answers())) == 12


def test_a_document_longer_than_the_context_is_cut_the_same(
    write_task: Callable[..., Path],
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    """Prompts are cut on the left, generations leave room for what they may write."""
    write_task(
        tmp_path / "tasks",
        "own_choices",
        texts(12),
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice=["one", "two of them", "three"],
        doc_to_target=1,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    write_task(
        tmp_path / "tasks",
        "own_goings_on",
        texts(12),
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="the",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12},
        metric_list=[EXACT_MATCH],
    )
    suite = {"name": "long", "tasks": ["own_choices", "own_goings_on"], "include_path": "tasks"}
    model = tiny_model(tokenizer="sentencepiece", max_length=128)
    ours = sides.ours(model, suite, tmp_path)
    sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert ours.folder is not None
    health = json.loads((ours.folder / "record.json").read_text())["health"]
    assert health["truncated_prompts"] > 12


def test_metrics_of_labels_score_as_the_hubs_do(
    write_task: Callable[..., Path],
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One task whose answers are labels, one whose metric lm-eval loads and only aggregates. For
    lm-eval the library's own machinery stands where the Hub's programs would."""
    import evaluate

    hub = {"hf_evaluate": True, "higher_is_better": True}
    first = models.COMMON[::2]
    to_labels = [
        {"function": "regex", "regex_pattern": r"(\w+)"},
        {"function": "take_first"},
        {"function": "map", "mapping_dict": dict.fromkeys(first, 1), "default_value": 0},
        {"function": "take_first"},
    ]
    write_task(
        tmp_path / "tasks",
        "own_labels",
        [{**row, "label": n % 2} for n, row in enumerate(texts(8))],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{label}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        filter_list=[{"name": "label", "filter": to_labels}],
        metric_list=[
            {"metric": "accuracy", "aggregation": "mean", **hub},
            {"metric": "f1", "aggregation": "mean", "average": "micro", **hub},
        ],
    )
    (tmp_path / "tasks" / "own.py").write_text("from lm_eval.utils import weighted_f1_score\n")
    write_task(
        tmp_path / "tasks",
        "own_weighted",
        [{**row, "label": n % 3} for n, row in enumerate(texts(8))],
        "metric_list:\n- metric: f1\n  aggregation: !function own.weighted_f1_score\n"
        "  average: weighted\n  hf_evaluate: true\n  higher_is_better: true\n",
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice=["one", "two", "three"],
        doc_to_target="label",
    )
    suite = {"name": "labels", "tasks": ["own_labels", "own_weighted"], "include_path": "tasks"}
    model = tiny_model(tokenizer="llama3")
    ours = sides.ours(model, suite, tmp_path)
    monkeypatch.setattr(evaluate, "load", labels.metric)
    sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert set(ours.results["results"]["own_labels"]) >= {"accuracy,label", "f1,label"}
