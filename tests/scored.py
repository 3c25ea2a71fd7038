"""lm-eval's side of the small run of `runs`: its samples and its results, scored in plain Python.
Means are evalkit's own."""

import re
from typing import TYPE_CHECKING, Any

from questions import DOCUMENTS, directions, doc_hash, filter_name, metrics, sha256

from evalkit.base import statistics
from evalkit.record import record as records

if TYPE_CHECKING:
    from runs import Run

Value = dict[str, Any]
MEAN, POOLED = "sample standard deviation / sqrt(n)", "pooled over leaf tasks"


def samples(run: "Run", leaf: str) -> list[Value]:
    """Return a leaf task's samples as lm-eval logs them."""
    answers = run.requests(leaf)
    found = []
    for number, doc in enumerate(run.documents[leaf]):
        asked = run.prompts(leaf, doc)
        said = [answers[f"{leaf}/{number}/{index}/0"] for index in range(len(asked))]
        responses = [_response(answer) for answer in said]
        target = run.target(leaf, doc)
        kind = run.configs[leaf]["output_type"]
        filtered, scores = _scores(kind, asked, responses, target, metrics(run.configs[leaf]))
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
                "filter": filter_name(run.configs[leaf]),
                "metrics": list(scores),
                "doc_hash": doc_hash(doc),
                "prompt_hash": sha256(asked[0][0]),
                "target_hash": sha256(target),
                **scores,
            }
        )
    return found


def _aggregate(run: "Run", leaf: str) -> Value:
    found: Value = {}
    for metric in metrics(run.configs[leaf]):
        values = [s[metric] for s in run.samples if s["task"] == leaf]
        value, error = _aggregated(metric, values)
        found[f"{metric},{filter_name(run.configs[leaf])}"] = value
        found[f"{metric}_stderr,{filter_name(run.configs[leaf])}"] = error
    return found


def results(run: "Run") -> Value:
    """Return lm-eval's results dictionary, from the samples."""
    leaves: Value = {}
    for leaf in run.configs:
        count = len(run.documents[leaf])
        alias = run.configs[leaf].get("task_alias", leaf)
        head = {"name": leaf, "alias": alias, "sample_len": count}
        leaves[leaf] = head | _aggregate(run, leaf)
    groups = {name: _group(run, name, leaves) for name in run.groups}
    return {
        "results": leaves | groups,
        "groups": groups,
        "group_subtasks": run.groups,
        "configs": run.configs,
        "versions": {leaf: c["metadata"]["version"] for leaf, c in run.configs.items()}
        | dict.fromkeys(run.groups, "1"),
        "n-shot": {leaf: c["num_fewshot"] for leaf, c in run.configs.items()},
        "higher_is_better": {leaf: directions(metrics(run.configs[leaf])) for leaf in run.configs}
        | {name: directions(["acc"]) for name in run.groups},
        "n-samples": {
            leaf: {"original": len(DOCUMENTS[leaf]), "effective": len(run.documents[leaf])}
            for leaf in run.configs
        },
        "config": {
            "model": "evalkit",
            "model_args": "pretrained=made-up/tiny",
            "limit": run.limit,
        },
        "git_hash": "see record.json",
        "lm_eval_version": "0.4.13",
    }


def _group(run: "Run", name: str, results: Value) -> Value:
    sizes = [len(run.documents[leaf]) for leaf in run.groups[name]]
    values = [results[leaf]["acc,none"] for leaf in run.groups[name]]
    errors = [results[leaf]["acc_stderr,none"] for leaf in run.groups[name]]
    value = statistics.weighted_mean(values, sizes)
    found = {"alias": name, "name": name, "sample_len": sum(sizes), "acc,none": value}
    if "N/A" in errors:
        return found | {"acc_stderr,none": "N/A"}
    return found | {"acc_stderr,none": statistics.pooled_standard_error(errors, sizes)}


def record_metrics(entry: Value, method: str = MEAN) -> Value:
    """Return a results entry's metrics as a record has them."""
    ways = directions([key.partition(",")[0] for key in entry])
    return records.metrics(entry, ways, {}, method)


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
