"""A small finished run, made in plain Python: what a record looks like when nothing is wrong.

Two multiple-choice leaf tasks in a group, a generating one with a filter, and one that scores whole
texts in windows. Names and configs are lm-eval's own (all but the last), so that it can score the
samples again; questions, answers and model are made up. Canonical JSON, means and the lock's rows
are made by evalkit's own code; what is asked, answered and scored, the plan's blocks and the ids
are made here.
"""

import copy
import gzip
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import evalkit
from evalkit.base import canon, statistics
from evalkit.base.canon import digest
from evalkit.inputs import rows
from evalkit.inputs.rows import Rows
from evalkit.plan import store
from evalkit.record import journal
from evalkit.record import record as records

Value = dict[str, Any]
Answer = Callable[[str, Value], Value]

LETTERS = ["A", "B", "C", "D"]
MEAN, POOLED = "sample standard deviation / sqrt(n)", "pooled over leaf tasks"
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
KINDS = {
    "multiple_choice": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
    "generate_until": "generate_until",
}
SETTINGS: Value = {
    "until": ["Q"],
    "max_gen_toks": 32,
    "do_sample": False,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "seed": 0,
}
POLICY = {
    "max_tokens": 16384,
    "row_tokens": 256,
    "max_tree": 1024,
    "min_trunk": 8,
    "chunk": 512,
    "max_rows": 2,
    "max_scored": 2048,
    "max_slots": 2,
    "max_cache": 4096,
    "waves": 4,
}
ENGINE: Value = {
    "name": "evalkit",
    "level": "tree",
    "policy": POLICY,
    "args": {},
    "versions": {},
    "bit_repeatable": True,
}
TRUNK = [5, 6, 7, 8]  # of the first leaf task, whose rows are trees
ABSENT = ("image", "driver", "cuda", "cublas", "cudnn", "runtime")  # of this environment
SEGMENT = "20260102T030405Z-host-1-abcd"


def sha256(data: bytes | str) -> str:
    """sha256 (hex)."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def doc_hash(doc: Value) -> str:
    """lm-eval's."""
    return sha256(json.dumps(doc, indent=2, ensure_ascii=False))


SHOTS = [doc_hash({"input": f"Turn {i} times.", "target": "Yes."}) for i in range(3)]


class Run:
    """A run's parts, in memory, derived one from the other; `write` seals and writes them.

    `answer` may change each raw answer before the rest is derived from it: the run stays
    consistent.
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        answer: Answer = lambda _, answer: answer,
        leave_out: tuple[str, ...] = (),
        name: str = "tiny",
    ) -> None:
        self.limit, self.name = limit, name
        kept = {leaf: config for leaf, config in CONFIGS.items() if leaf not in leave_out}
        self.configs = copy.deepcopy(kept)
        groups = {n: [c for c in children if c in self.configs] for n, children in GROUPS.items()}
        self.groups = {name: children for name, children in groups.items() if children}
        self.documents = {leaf: DOCUMENTS[leaf][:limit] for leaf in self.configs}
        self.parts = {leaf: self._parts(leaf) for leaf in self.configs}
        self.answers = {
            part: answer(part, raw)
            for leaf in self.configs
            for part, raw in zip(
                (p for document in self.parts[leaf] for p in document), self._raw(leaf), strict=True
            )
        }
        self.hashes = {leaf: list(map(doc_hash, DOCUMENTS[leaf])) for leaf in self.configs}
        self.locked = {leaf: self.asked(leaf) for leaf in self.configs}
        self.lock = self._lock()
        self.samples = [sample for leaf in sorted(self.configs) for sample in self._samples(leaf)]
        self.results = self._results()
        self.suite = self._suite()
        self.plan, self.tokens = self._plan()
        self.record = self._record()
        self.lines = [self.line(batch) for batch in self.plan["batches"]]
        self.extra: dict[str, bytes] = {"events/a.jsonl": b'{"event":"start"}\n'}

    def aggregate(self) -> None:
        """Make every aggregate anew from the samples, as whoever changed one would."""
        rebuilt = self._results()
        self.results |= {key: rebuilt[key] for key in ("results", "groups")}
        for leaf in self.configs:
            self.record["tasks"][leaf]["metrics"] = _record_metrics(self.results["results"][leaf])
        for name in self.groups:
            metrics = _record_metrics(self.results["groups"][name], POOLED)
            self.record["groups"][name]["metrics"] = metrics

    # what is asked

    def prompts(self, leaf: str, doc: Value) -> list[tuple[Any, ...]]:
        """Each request's arguments, as lm-eval makes them."""
        config = self.configs[leaf]
        if leaf == "mmlu_anatomy":
            letters = "".join(f"\n{a}. {c}" for a, c in zip(LETTERS, doc["choices"], strict=True))
            context = f"{config['description']}{doc['question']}{letters}\nAnswer:"
            return [(context, f" {letter}") for letter in LETTERS]
        if leaf == "arc_challenge":
            context = f"Question: {doc['question']}\nAnswer:"
            return [(context, f" {text}") for text in doc["choices"]["text"]]
        if leaf == "whole_texts":
            return [(doc["text"],)]
        context = f"{config['description']}Q: {doc['input']}\nA: Let's think step by step.\n"
        return [(context, config["generation_kwargs"])]

    def target(self, leaf: str, doc: Value) -> str:
        """The sample's target, a string."""
        if leaf == "mmlu_anatomy":
            return str(doc["answer"])
        if leaf == "arc_challenge":
            return str(doc["choices"]["label"].index(doc["answerKey"]))
        return str(doc["target"] if "target" in doc else doc["text"])

    def _parts(self, leaf: str) -> list[list[str]]:
        """Each document's part ids; a whole text has two windows."""
        windows = ["#0", "#1"] if leaf == "whole_texts" else [""]
        return [
            [
                f"{leaf}/{number}/{index}/0{window}"
                for index in range(len(self.prompts(leaf, doc)))
                for window in windows
            ]
            for number, doc in enumerate(self.documents[leaf])
        ]

    def _raw(self, leaf: str) -> list[Value]:
        """What a made-up model answers."""
        found: list[Value] = []
        for number, document in enumerate(self.parts[leaf]):
            values = [-1.0 - 2.0 * ((7 * number + 3 * i) % 5) - i / 7 for i in range(len(document))]
            for index, part in enumerate(document):
                value = values[index]
                if leaf == "bbh_cot_fewshot_navigate":
                    text = "so the answer is " + ("Yes." if number else "No.")
                    numbers = [-0.75, value]
                    found.append(
                        {
                            "text": text,
                            "tokens": [5, 6],
                            "logprobs": numbers,
                            "margins": [0.25, 1.5],
                            "stop": "stop_string",
                        }
                    )
                elif "#" in part:
                    found.append({"loglikelihood": 10 * value, "num_tokens": 1})
                else:
                    greedy = value == max(values) and number % 3 == 0
                    found.append({"loglikelihood": value, "is_greedy": greedy, "num_tokens": 1})
        return found

    def requests(self, leaf: str) -> dict[str, Value]:
        """Answers by request id: windows summed in order."""
        found: dict[str, Value] = {}
        for part in (part for document in self.parts[leaf] for part in document):
            request, _, window = part.partition("#")
            answer = self.answers[part]
            if window in ("", "0"):
                found[request] = answer
            else:
                found[request] = {
                    key: float(found[request][key]) + float(answer[key])
                    if key == "loglikelihood"
                    else found[request][key] + answer[key]
                    for key in answer
                }
        return found

    # lm-eval's side

    def _samples(self, leaf: str) -> list[Value]:
        answers = self.requests(leaf)
        found = []
        for number, doc in enumerate(self.documents[leaf]):
            asked = self.prompts(leaf, doc)
            said = [answers[f"{leaf}/{number}/{index}/0"] for index in range(len(asked))]
            responses = [_response(answer) for answer in said]
            target = self.target(leaf, doc)
            kind = self.configs[leaf]["output_type"]
            filtered, scores = _scores(kind, asked, responses, target, self.metrics(leaf))
            if any("nan" in response for response in responses):
                scores = {k: v if isinstance(v, list) else 0.0 for k, v in scores.items()}
            found.append(
                {
                    "task": leaf,
                    "doc_id": number,
                    "doc": doc,
                    "target": target,
                    "arguments": {
                        f"gen_args_{i}": {f"arg_{j}": arg for j, arg in enumerate(args)}
                        for i, args in enumerate(asked)
                    },
                    "resps": [[response] for response in responses],
                    "filtered_resps": filtered,
                    "filter": self.filter(leaf),
                    "metrics": list(scores),
                    "doc_hash": doc_hash(doc),
                    "prompt_hash": sha256(asked[0][0]),
                    "target_hash": sha256(target),
                    **scores,
                }
            )
        return found

    def metrics(self, leaf: str) -> list[str]:
        """The leaf task's metrics."""
        return [entry["metric"] for entry in self.configs[leaf]["metric_list"]]

    def filter(self, leaf: str) -> str:
        """The leaf task's filter."""
        return "get-answer" if "filter_list" in self.configs[leaf] else "none"

    def _aggregate(self, leaf: str) -> Value:
        found: Value = {}
        for metric in self.metrics(leaf):
            values = [s[metric] for s in self.samples if s["task"] == leaf]
            value, error = _aggregated(metric, values)
            found[f"{metric},{self.filter(leaf)}"] = value
            found[f"{metric}_stderr,{self.filter(leaf)}"] = error
        return found

    def _results(self) -> Value:
        results: Value = {}
        for leaf in self.configs:
            count = len(self.documents[leaf])
            alias = self.configs[leaf].get("task_alias", leaf)
            head = {"name": leaf, "alias": alias, "sample_len": count}
            results[leaf] = head | self._aggregate(leaf)
        groups = {name: self._group(name, results) for name in self.groups}
        return {
            "results": results | groups,
            "groups": groups,
            "group_subtasks": self.groups,
            "configs": self.configs,
            "versions": {leaf: c["metadata"]["version"] for leaf, c in self.configs.items()}
            | dict.fromkeys(self.groups, "1"),
            "n-shot": {leaf: c["num_fewshot"] for leaf, c in self.configs.items()},
            "higher_is_better": {leaf: _ways(self.metrics(leaf)) for leaf in self.configs}
            | {name: _ways(["acc"]) for name in self.groups},
            "n-samples": {
                leaf: {"original": len(DOCUMENTS[leaf]), "effective": len(self.documents[leaf])}
                for leaf in self.configs
            },
            "config": {
                "model": "evalkit",
                "model_args": "pretrained=made-up/tiny",
                "limit": self.limit,
            },
            "git_hash": "see record.json",
            "lm_eval_version": "0.4.13",
        }

    def _group(self, name: str, results: Value) -> Value:
        sizes = [len(self.documents[leaf]) for leaf in self.groups[name]]
        values = [results[leaf]["acc,none"] for leaf in self.groups[name]]
        errors = [results[leaf]["acc_stderr,none"] for leaf in self.groups[name]]
        value = statistics.weighted_mean(values, sizes)
        found = {"alias": name, "name": name, "sample_len": sum(sizes), "acc,none": value}
        if "N/A" in errors:
            return found | {"acc_stderr,none": "N/A"}
        return found | {"acc_stderr,none": statistics.pooled_standard_error(errors, sizes)}

    # evalkit's side

    def _lock(self) -> Value:
        tasks: Value = {}
        for leaf, config in self.configs.items():
            hashes = "".join(doc_hash(doc) for doc in DOCUMENTS[leaf])
            tasks[leaf] = {
                "dataset": config["dataset_path"],
                "config": config.get("dataset_name"),
                "split": "test",
                "documents": len(DOCUMENTS[leaf]),
                "rows": f"sha256:{sha256(hashes)}",
                "shots": _shots() if config["num_fewshot"] else None,
                **self.scoring(leaf),
            }
        return {
            "schema": "evalkit/lock/2",
            "suite": self.name,
            "lm_eval": "0.4.13",
            "rows_file": f"sha256:{sha256(self.rows())}",
            "asked": {
                "apply_chat_template": False,
                "fewshot_as_multiturn": False,
                "system_instruction": None,
                "gen_kwargs": {},
                "seeds": dict(SEEDS),
            },
            "datasets": {
                name: {"revision": sha256(name)[:40], "licence": "mit", "redistributable": True}
                for name in sorted({task["dataset"] for task in tasks.values()})
            },
            "groups": self.groups,
            "group_scores": {
                name: {
                    "alias": name,
                    "version": "1",
                    "metrics": {"acc": {"weight_by_size": True, "filters": None}},
                }
                for name in self.groups
            },
            "tasks": tasks,
        }

    def scoring(self, leaf: str) -> Value:
        """How a leaf task is scored, as a lock pins it."""
        config = self.configs[leaf]
        listed = {entry["metric"]: entry for entry in config["metric_list"]}
        return {
            "output_type": config["output_type"],
            "num_fewshot": config["num_fewshot"],
            "version": config["metadata"]["version"],
            "metrics": {
                name: {
                    "aggregation": listed[name].get("aggregation", "weighted_perplexity"),
                    "higher_is_better": way,
                }
                for name, way in _ways(self.metrics(leaf)).items()
            },
            "filters": [self.filter(leaf)],
            "settings": rows.of_settings(config),
        }

    def asked(self, leaf: str) -> tuple[bytes, bytes]:
        """Digests of what each document is asked with, and of its target and continuations."""
        prompts, targets = b"", b""
        for doc in DOCUMENTS[leaf]:
            asked = self.prompts(leaf, doc)
            scored = [args[1] for args in asked if len(args) > 1 and isinstance(args[1], str)]
            prompts += rows.of_prompts([asked[0][0]])
            targets += rows.of_target(self.target(leaf, doc), scored)
        return prompts, targets

    def rows(self) -> str:
        """lock.rows."""
        return rows.text(
            {
                leaf: Rows(
                    documents=rows.joined(self.hashes[leaf]),
                    prompts=self.locked[leaf][0],
                    targets=self.locked[leaf][1],
                    shots=rows.joined(SHOTS) if self.configs[leaf]["num_fewshot"] else None,
                )
                for leaf in self.configs
            }
        )

    def _suite(self) -> Value:
        grouped = {leaf for children in self.groups.values() for leaf in children}
        alone = [leaf for leaf in self.configs if leaf not in grouped]
        return {
            "name": self.name,
            "tasks": [{"task": name, "num_fewshot": None} for name in [*self.groups, *alone]],
            "limit": self.limit,
            "partial": self.limit is not None,
            "apply_chat_template": False,
            "fewshot_as_multiturn": False,
            "system_instruction": None,
            "gen_kwargs": {},
            "seeds": dict(SEEDS),
            "task_files": {},
            "datasets": {
                name: {"revision": entry["revision"]}
                for name, entry in self.lock["datasets"].items()
            },
            "rows": {leaf: entry["rows"] for leaf, entry in self.lock["tasks"].items()},
            "scorers": {},
            "shots": {
                leaf: copy.deepcopy(entry["shots"])
                for leaf, entry in self.lock["tasks"].items()
                if entry["shots"] is not None
            },
        }

    def suite_id(self) -> str:
        """What is asked."""
        return digest({k: v for k, v in self.suite.items() if k not in ("name", "partial")})

    def _plan(self) -> tuple[Value, bytes]:
        trunk, block = trunk_block()
        shared = "mmlu_anatomy" in self.configs
        batches: list[Value] = []
        blocks = [block] * shared
        for leaf in self.configs:
            kind = KINDS[self.configs[leaf]["output_type"]]
            documents = self.parts[leaf]
            for first in range(0, len(documents), POLICY["max_rows"]):
                rows = documents[first : first + POLICY["max_rows"]]
                entry, block = _batch(leaf, kind, rows, sum(map(len, blocks)))
                batches.append(entry)
                blocks.append(block)
        tokens = b"".join(blocks)
        plan: Value = {
            "schema": "evalkit/plan/2",
            "ids": {"suite": self.suite_id()},
            "level": "tree",
            "policy": dict(POLICY),
            "tokenizer": {"tokenizer.json": sha256("a tokenizer")},
            "max_length": 128,
            "settings": [copy.deepcopy(SETTINGS)],
            "trunks": [trunk] * shared,
            "batches": batches,
            "truncated": {},
            "missing_bos": 0,
            "double_bos": 0,
            "leaking": {},
            "empty_texts": {},
            "tokens": {"size": len(tokens), "sha256": sha256(tokens)},
        }
        plan["ids"]["plan"] = store.plan_id(plan)
        return plan, tokens

    def line(self, batch: Value) -> Value:
        """A batch's journal line, sealed."""
        answers = {}
        for target in batch["targets"]:
            part = f"{batch['task']}/{target[4]}"
            answers[part] = self.answers[part]
        return seal(
            {
                "schema": "evalkit/journal/1",
                "run": self.record["ids"]["run"],
                "batch": batch["id"],
                "segment": SEGMENT,
                "answers": answers,
            }
        )

    def answer_digests(self) -> dict[str, str]:
        """Each leaf task's answers digest."""
        return {
            leaf: digest(sorted(map(list, self.requests(leaf).items()))) for leaf in self.configs
        }

    def _task(self, leaf: str) -> Value:
        samples = [sample for sample in self.samples if sample["task"] == leaf]
        locked = self.lock["tasks"][leaf]
        source = self.lock["datasets"][locked["dataset"]]
        return {
            "alias": self.results["results"][leaf]["alias"],
            "output_type": self.configs[leaf]["output_type"],
            "version": self.configs[leaf]["metadata"]["version"],
            "num_fewshot": self.configs[leaf]["num_fewshot"],
            "n": len(samples),
            "n_expected": len(samples),
            "documents": locked["documents"],
            "metrics": _record_metrics(self.results["results"][leaf]),
            "questions": digest([[s["doc_id"], s["doc_hash"], s["target_hash"]] for s in samples]),
            "prompts": digest([[s["doc_id"], s["prompt_hash"]] for s in samples]),
            "dataset": {
                "repo": locked["dataset"],
                "config": locked["config"],
                "split": locked["split"],
                "revision": source["revision"],
                "rows": locked["rows"],
                "licence": source["licence"],
                "redistributable": source["redistributable"],
            },
        }

    def _record(self) -> Value:
        answers = self.answer_digests()
        versions = dict.fromkeys(("evalkit", "torch", "transformers", "tokenizers"), "1.0")
        versions["evalkit"] = evalkit.__version__
        record: Value = {
            "schema": "evalkit/record/4",
            "ids": {"suite": self.suite_id(), "plan": self.plan["ids"]["plan"]},
            "execution": "0123456789abcdef" * 2,
            "created": "2026-01-02T03:04:05Z",
            "suite": self.suite,
            "answers": answers,
            "tasks": {leaf: self._task(leaf) for leaf in self.configs},
            "groups": {
                name: {
                    "alias": name,
                    "version": "1",
                    "subtasks": self.groups[name],
                    "n": self.results["groups"][name]["sample_len"],
                    "metrics": _record_metrics(self.results["groups"][name], POOLED),
                }
                for name in self.groups
            },
            "model": {
                "reference": "made-up/tiny",
                "revision": "0" * 40,
                "files": {"model.safetensors": {"size": 7, "sha256": sha256("weights")}},
                "adapter": None,
                "quantization": None,
                "config": digest({}),
                "tokenizer": digest(self.plan["tokenizer"]),
                "chat_template": None,
                "parameters": 1000,
                "dtype": "float32",
                "trust_remote_code": False,
            },
            "numerics": {
                "profile": "native",
                "dtype": "float32",
                "attention": "sdpa",
                "tf32": False,
                "deterministic": True,
                "threads": 1,
            },
            "engine": copy.deepcopy(ENGINE),
            "health": self._health(),
            "environment": {
                "versions": versions,
                "packages": {"lm_eval": "0.4.13", **versions},
                **{name: {"unknown": "none"} for name in ABSENT},
                **dict.fromkeys(("lock", "python", "os", "cpu"), "made up"),
                "harness_intact": True,
                "gpu": [],
                "cleared": {},
            },
            "code": {"commit": "0" * 40, "dirty": False},
            "command": {"argv": ["evalkit", "eval"], "config": {"limit": self.limit}},
            "phases": {
                "execute": {
                    "seconds": 1.5,
                    "tokens": 100,
                    "tokens_per_second": 100 / 1.5,
                    "peak_memory_bytes": 1,
                    "energy_joules": {"cpu": 2.5, "gpu": {"unknown": "no GPU"}},
                }
            },
            "segments": [segment(SEGMENT, len(self.plan["batches"]))],
            "preferred": None,
            "carried": None,
            "graded": None,
            "files": {},
        }
        record["ids"]["run"] = run_id(record)
        record["ids"]["answers"] = digest(answers)
        return record

    def _health(self) -> Value:
        names = "truncated_prompts missing_bos double_bos fewshot_leaks empty_texts"
        names += " empty_generations cut_generations"
        names += " answers_not_found nan_answers exact_ties split_batches"
        health = dict.fromkeys(names.split(), 0)
        responses = [canon.dumps(sample["resps"]) for sample in self.samples]
        health["nan_answers"] = sum("nan" in response for response in responses)
        return health

    def write(self, folder: Path) -> Path:
        """Write every file, listed in record.json with its digest."""
        lines = "".join(f"{canon.dumps(line)}\n" for line in self.lines)
        samples = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in self.samples)
        files = {
            "plan.json": canon.dumps(self.plan).encode(),
            "plan.tokens": self.tokens,
            f"journal/{SEGMENT}.jsonl": lines.encode(),
            "samples.jsonl.gz": gzip.compress(samples.encode(), mtime=0),
            "results.json": json.dumps(self.results, indent=2, ensure_ascii=False).encode(),
            "lock.yaml": yaml.safe_dump(self.lock, sort_keys=False).encode(),
            "lock.rows": self.rows().encode(),
            **self.extra,
        }
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.record["files"] = {n: {"size": len(d), "sha256": sha256(d)} for n, d in files.items()}
        write_record(folder, self.record)
        return folder


def _shots() -> Value:
    """The rows that shots are drawn from, as a lock pins them."""
    return {"split": None, "rows": len(SHOTS), "digest": f"sha256:{sha256(''.join(SHOTS))}"}


def write_record(folder: Path, record: Value) -> None:
    """Write record.json as evalkit does."""
    (folder / "record.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_record(folder: Path) -> Value:
    """Read record.json."""
    record: Value = json.loads((folder / "record.json").read_text())
    return record


def seal(line: Value) -> Value:
    """A journal line with its checksum."""
    return line | {"sha256": journal.checksum(line)}


def run_id(record: Value) -> str:
    """The run's identity."""
    adapter = record["model"]["adapter"]
    return digest(
        {
            "plan": record["ids"]["plan"],
            "model": {n: f["sha256"] for n, f in record["model"]["files"].items()},
            "adapter": adapter and {n: f["sha256"] for n, f in adapter["files"].items()},
            "numerics": record["numerics"],
            "engine": record["engine"],
            "versions": record["environment"]["versions"],
        }
    )


def segment(name: str, batches: int, hardware: str = "a processor") -> Value:
    """One process's stretch of the run."""
    return {
        "segment": name,
        "started": "2026-01-02T03:04:05Z",
        "stopped": "2026-01-02T03:04:06Z",
        "host": "host",
        "hardware": hardware,
        "slurm": None,
        "batches": batches,
    }


def trunk_block() -> tuple[Value, bytes]:
    """The plan's trunk and its compressed block."""
    data = struct.pack(f"<{len(TRUNK)}I", *TRUNK)
    name = digest({"parent": None, "tokens": f"sha256:{sha256(data)}"})
    block = zlib.compress(data, 6)
    entry = {"id": name, "parent": None, "length": len(TRUNK), "offset": 0, "size": len(block)}
    return entry, block


def last_token(part: str) -> int:
    """The id of the token that a part scores: another one for each choice."""
    return 7 + int(part.split("/")[2])


def _batch(leaf: str, kind: str, rows: list[list[str]], offset: int) -> tuple[Value, bytes]:
    """A batch of one row a document, its token ids made up, and its compressed block."""
    prefix = len(leaf) + 1
    shared = leaf == "mmlu_anatomy"
    tokens = [[2 + index] * (3 + index) for index in range(len(rows))]
    starts = [0, 1] if shared else [0]
    above = [0, 1] if shared else [0]  # plus 1: the second branch hangs on token 0
    lengths = [len(rows), *map(len, tokens), *[len(starts)] * len(rows)]
    flat = [*starts * len(rows), *above * len(rows), *(token for row in tokens for token in row)]
    data = struct.pack(f"<{len(lengths) + len(flat)}I", *lengths, *flat)
    settings = SETTINGS if kind == "generate_until" else None
    targets: list[list[Any]] = [
        [row, 2 + row, 3 + row, -1, part]
        if settings
        else [row, 1, 1 + len(TRUNK) * shared, last_token(part), part]
        for row, document in enumerate(rows)
        for part in document
    ]
    layout = {
        "kind": kind,
        "settings": settings,
        "trunk": trunk_block()[0]["id"] if shared else None,
        "tokens": f"sha256:{sha256(data)}",
        "targets": targets,
        "slots": POLICY["max_slots"] if settings else 0,
        "chunk": POLICY["chunk"],
    }
    block = zlib.compress(data, 6)
    width = max(map(len, tokens))
    return {
        "id": digest(layout),
        "task": leaf,
        "kind": kind,
        "settings": 0 if settings else None,
        "trunk": 0 if shared else None,
        "rows": len(rows),
        "width": width,
        "cost": len(rows) * (width + (settings["max_gen_toks"] if settings else 0)),
        "tokens": sum(map(len, tokens)),
        "offset": offset,
        "size": len(block),
        "targets": [[*target[:4], target[4][prefix:]] for target in targets],
    }, block


def _response(answer: Value) -> Any:
    """An answer as lm-eval's samples hold it: everything a string."""
    if "text" in answer:
        return answer["text"]
    value = str(float(answer["loglikelihood"]))
    return [value, str(answer["is_greedy"])] if "is_greedy" in answer else value


def _scores(
    kind: str, asked: list[Any], responses: list[Any], target: str, metrics: list[str]
) -> tuple[list[Any], Value]:
    """Filtered responses and metric values, as lm-eval has them."""
    if kind == "generate_until":
        found = re.findall(r"(?<=the answer is )(.*)(?=.)", responses[0])
        filtered = found[0].strip() if found else "[invalid]"
        return [filtered], {"exact_match": float(filtered == target)}
    if kind == "loglikelihood_rolling":
        text, value = asked[0][0], float(responses[0])
        pairs = {
            "word_perplexity": [value, len(re.split(r"\s+", text))],
            "bits_per_byte": [value, len(text.encode())],
        }
        return responses, pairs
    values = [float(value) for value, _ in responses]
    lengths = [len(continuation) - 1 for _, continuation in asked]
    norms = [value / length for value, length in zip(values, lengths, strict=True)]
    scores = {
        "acc": float(values.index(max(values)) == int(target)),
        "acc_norm": float(norms.index(max(norms)) == int(target)),
    }
    return responses, {name: scores[name] for name in metrics}


def _aggregated(metric: str, values: list[Any]) -> tuple[float, Any]:
    if metric == "word_perplexity":
        return statistics.weighted_perplexity(values), "N/A"
    if metric == "bits_per_byte":
        return statistics.bits_per_byte(values), "N/A"
    error = statistics.standard_error(values) if len(values) > 1 else "N/A"
    return statistics.mean(values), error


def _ways(metrics: list[str]) -> dict[str, bool]:
    """Which way is up."""
    return {name: "perplexity" not in name and "bits" not in name for name in metrics}


def _record_metrics(entry: Value, method: str = MEAN) -> Value:
    ways = _ways([key.partition(",")[0] for key in entry])
    return records.metrics(entry, ways, {}, method)
