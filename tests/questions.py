"""What the small run of `runs` asks: its leaf tasks as lm-eval's configs have them, and their
documents."""

import hashlib
import json
from typing import Any

Value = dict[str, Any]

LETTERS = ["A", "B", "C", "D"]
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
CONFIGS: dict[str, Value] = {
    "mmlu_anatomy": {
        "task": "mmlu_anatomy",
        "task_alias": "anatomy",
        "dataset_path": "cais/mmlu",
        "dataset_name": "anatomy",
        "test_split": "test",
        "fewshot_split": "dev",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
        "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_target": "answer",
        "unsafe_code": False,
        "doc_to_choice": LETTERS,
        "description": "The following are multiple choice questions (with answers) about anatomy."
        "\n\n",
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "output_type": "multiple_choice",
        "repeats": 1,
        "should_decontaminate": False,
        "metadata": {"version": 1.0, "config_source": "lm_eval/tasks/mmlu/mmlu_anatomy.yaml"},
    },
    "arc_challenge": {
        "task": "arc_challenge",
        "dataset_path": "allenai/ai2_arc",
        "dataset_name": "ARC-Challenge",
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "unsafe_code": False,
        "doc_to_choice": "{{choices.text}}",
        "description": "",
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
        "output_type": "multiple_choice",
        "repeats": 1,
        "should_decontaminate": True,
        "doc_to_decontamination_query": "Question: {{question}}\nAnswer:",
        "metadata": {"version": 1.0},
    },
    "bbh_cot_fewshot_navigate": {
        "task": "bbh_cot_fewshot_navigate",
        "dataset_path": "SaylorTwift/bbh",
        "dataset_name": "navigate",
        "test_split": "test",
        "doc_to_text": "Q: {{input}}\nA: Let's think step by step.\n",
        "doc_to_target": "{{target}}",
        "unsafe_code": False,
        "description": "Given a series of navigation instructions, determine whether one would end"
        " up back at the starting point.\n\n",
        "target_delimiter": "",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": 3,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "output_type": "generate_until",
        "generation_kwargs": {"max_gen_toks": 32, "until": ["Q"], "do_sample": False},
        "repeats": 1,
        "filter_list": [
            {
                "name": "get-answer",
                "filter": [
                    {"function": "regex", "regex_pattern": "(?<=the answer is )(.*)(?=.)"},
                    {"function": "take_first"},
                ],
            }
        ],
        "should_decontaminate": False,
        "metadata": {"version": 4.0},
    },
    "whole_texts": {
        "task": "whole_texts",
        "dataset_path": "json",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "text",
        "target_delimiter": " ",
        "metric_list": [
            {"metric": "word_perplexity"},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
        "output_type": "loglikelihood_rolling",
        "repeats": 1,
        "num_fewshot": 0,
        "metadata": {"version": 0},
    },
}
DOCUMENTS: dict[str, list[Value]] = {
    "mmlu_anatomy": [
        {
            "question": f"Which number follows {i}?",
            "choices": ["9", f"{i + 1}", "8", "7"],
            "answer": 1,
        }
        for i in range(5)
    ],
    "arc_challenge": [
        {
            "id": f"q{i}",
            "question": f"What is {i} times two? \u2211",
            "choices": {"text": ["nil", f"{2 * i} or so", "é"], "label": LETTERS[:3]},
            "answerKey": "B",
        }
        for i in range(1, 5)
    ],
    "bbh_cot_fewshot_navigate": [
        {"input": f"Take {i} steps. Turn around. Take {i} steps.", "target": "Yes"}
        for i in range(3)
    ],
    "whole_texts": [{"text": "a text of six words, scored"}, {"text": "another  one\nof lines"}],
}
GROUPS = {"science": ["arc_challenge", "mmlu_anatomy"]}


def sha256(data: bytes | str) -> str:
    """sha256 (hex)."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def doc_hash(doc: Value) -> str:
    """lm-eval's."""
    return sha256(json.dumps(doc, indent=2, ensure_ascii=False))


SHOTS = [doc_hash({"input": f"Turn {i} times.", "target": "Yes."}) for i in range(3)]


def metrics(config: Value) -> list[str]:
    """Return a leaf task's metrics."""
    return [entry["metric"] for entry in config["metric_list"]]


def filter_name(config: Value) -> str:
    """Return a leaf task's filter."""
    return "get-answer" if "filter_list" in config else "none"


def directions(names: list[str]) -> dict[str, bool]:
    """Return whether higher is better, by metric."""
    return {name: "perplexity" not in name and "bits" not in name for name in names}
