"""The small run's record, from its plan, samples and results."""

import copy
from typing import TYPE_CHECKING, Any

from questions import sha256
from scored import POOLED, record_metrics

import evalkit
from evalkit.base import canon
from evalkit.base.canon import digest

if TYPE_CHECKING:
    from runs import Run

Value = dict[str, Any]
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
ABSENT = ("image", "driver", "cuda", "cublas", "cudnn", "runtime")  # of this environment
SEGMENT = "20260102T030405Z-host-1-abcd"


def record(run: "Run") -> Value:
    """Return the record; `write` adds its files."""
    answers = run.answer_digests()
    versions = dict.fromkeys(("evalkit", "torch", "transformers", "tokenizers"), "1.0")
    versions["evalkit"] = evalkit.__version__
    body: Value = {
        "schema": "evalkit/record/4",
        "ids": {"suite": run.suite_id(), "plan": run.plan["ids"]["plan"]},
        "execution": "0123456789abcdef" * 2,
        "created": "2026-01-02T03:04:05Z",
        "suite": run.suite,
        "answers": answers,
        "tasks": {leaf: _task(run, leaf) for leaf in run.configs},
        "groups": {
            name: {
                "alias": name,
                "version": "1",
                "subtasks": run.groups[name],
                "n": run.results["groups"][name]["sample_len"],
                "metrics": record_metrics(run.results["groups"][name], POOLED),
            }
            for name in run.groups
        },
        "model": {
            "reference": "made-up/tiny",
            "revision": "0" * 40,
            "files": {"model.safetensors": {"size": 7, "sha256": sha256("weights")}},
            "adapter": None,
            "quantization": None,
            "config": digest({}),
            "tokenizer": digest(run.plan["tokenizer"]),
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
        "health": _health(run),
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
        "command": {"argv": ["evalkit", "eval"], "config": {"limit": run.limit}},
        "phases": {
            "execute": {
                "seconds": 1.5,
                "tokens": 100,
                "tokens_per_second": 100 / 1.5,
                "peak_memory_bytes": 1,
                "energy_joules": {"cpu": 2.5, "gpu": {"unknown": "no GPU"}},
            }
        },
        "segments": [segment(run.segment, len(run.plan["batches"]))],
        "preferred": None,
        "carried": None,
        "graded": None,
        "files": {},
    }
    body["ids"]["run"] = run_id(body)
    body["ids"]["answers"] = digest(answers)
    return body


def _health(run: "Run") -> Value:
    names = (
        "truncated_prompts missing_bos double_bos appended_eos dropped_system_turns fewshot_leaks"
    )
    names += " empty_texts empty_generations cut_generations"
    names += " answers_not_found nan_answers exact_ties split_batches"
    health = dict.fromkeys(names.split(), 0)
    responses = [canon.dumps(sample["resps"]) for sample in run.samples]
    health["nan_answers"] = sum("nan" in response for response in responses)
    return health


def _task(run: "Run", leaf: str) -> Value:
    samples = [sample for sample in run.samples if sample["task"] == leaf]
    locked = run.lock["tasks"][leaf]
    source = run.lock["datasets"][locked["dataset"]]
    return {
        "alias": run.results["results"][leaf]["alias"],
        "output_type": run.configs[leaf]["output_type"],
        "version": run.configs[leaf]["metadata"]["version"],
        "num_fewshot": run.configs[leaf]["num_fewshot"],
        "n": len(samples),
        "n_expected": len(samples),
        "documents": locked["documents"],
        "metrics": record_metrics(run.results["results"][leaf]),
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
