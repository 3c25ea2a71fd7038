"""Scores a sample without lm-eval, as its 0.4.13 does for multiple_choice (acc, acc_norm,
acc_bytes), loglikelihood and loglikelihood_rolling.

What a task decides by a template or by code is not guessed: `Unclear` says why.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.harness.samples import Sample

_METRICS = {
    "multiple_choice": {"acc", "acc_norm", "acc_bytes"},
    "loglikelihood": {"acc", "perplexity"},
    "loglikelihood_rolling": {"word_perplexity", "byte_perplexity", "bits_per_byte"},
}
ROLLING = _METRICS["loglikelihood_rolling"]
_NO_GOLD = -100  # lm-eval's: equal to no choice's index


class Unclear(Exception):
    """Raised where only lm-eval can score a task; the text says why."""


def argmax(values: Sequence[float]) -> int:
    """Return the index that numpy's argmax gives: of the first NaN, else of the first largest."""
    for index, value in enumerate(values):
        if value != value:
            return index
    return max(range(len(values)), key=values.__getitem__)


def known(config: Mapping[str, Any], metrics: Sequence[str]) -> set[str]:
    """Return those of a task's metrics that `scores` computes; raise Unclear if there are none."""
    kind = str(config.get("output_type"))
    if kind not in _METRICS:
        raise Unclear(f"{kind} is scored by lm-eval's filters and metrics")
    if config.get("process_results") is not None:
        raise Unclear("it has a process_results of its own")
    if config.get("filter_list") is not None or config.get("repeats", 1) != 1:
        raise Unclear("it has filters or repeats of its own")
    computed = _METRICS[kind] & set(metrics)
    if not computed or "acc_mutual_info" in metrics:
        raise Unclear("its metrics are scored by lm-eval")
    return computed


def scores(sample: Sample, config: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """Return the metrics of a sample, from its answers; only those that its output type has. Raise
    Unclear where only lm-eval can score it, ValueError where the sample contradicts itself."""
    arguments = list(sample["arguments"].values())
    responses = [repeats[0] for repeats in sample["resps"]]
    if config["output_type"] == "loglikelihood_rolling":
        return _rolling(arguments[0]["arg_0"], responses)
    likelihoods = [float(value) for value, _ in responses]
    if config["output_type"] == "loglikelihood":
        (greedy,) = (greedy for _, greedy in responses)
        return {"acc": int(greedy == "True"), "perplexity": likelihoods[0]}
    if len({argument["arg_0"] for argument in arguments}) > 1:
        raise Unclear("choices stand in its prompts")
    delimiter = _delimiter(config, chat=chat)
    if not all(argument["arg_1"].startswith(delimiter) for argument in arguments):
        raise ValueError("a choice does not start with the task's target_delimiter")
    choices = [argument["arg_1"][len(delimiter) :] for argument in arguments]
    gold = _gold(sample, config, choices)
    lengths = [float(len(choice)) for choice in choices]
    sizes = [float(len(choice.encode())) for choice in choices]
    return {
        "acc": float(argmax(likelihoods) == gold),
        "acc_norm": float(argmax(divided(likelihoods, lengths)) == gold),
        "acc_bytes": float(argmax(divided(likelihoods, sizes)) == gold),
    }


def _rolling(text: str, responses: list[str]) -> dict[str, Any]:
    (response,) = responses
    likelihood, words, size = float(response), len(re.split(r"\s+", text)), len(text.encode())
    return {
        "word_perplexity": [likelihood, words],
        "byte_perplexity": [likelihood, size],
        "bits_per_byte": [likelihood, size],
    }


def divided(values: Sequence[float], lengths: Sequence[float]) -> list[float]:
    """Divide as numpy does: an empty choice gives -inf, or NaN for a log-likelihood of 0."""
    return [
        value / length if length else (value * float("inf"))
        for value, length in zip(values, lengths, strict=True)
    ]


def _delimiter(config: Mapping[str, Any], *, chat: bool) -> str:
    delimiter = config.get("target_delimiter", " ")
    if not isinstance(delimiter, str):
        raise Unclear("its target_delimiter is not text")
    if not chat:
        return delimiter
    if config.get("gen_prefix"):
        raise Unclear("a chat template with a gen_prefix")
    return ""


def _gold(sample: Sample, config: Mapping[str, Any], choices: list[str]) -> int:
    """Return the right choice's index. The sample's target is `str` of what lm-eval had."""
    source, target, doc = config.get("doc_to_target"), sample["target"], sample["doc"]
    if isinstance(source, str) and isinstance(doc, dict) and source in doc:
        value = doc[source]
        if type(value) not in (int, str):
            raise Unclear("its target is neither a choice's index nor its text")
        if str(value) != target:
            raise ValueError("its target is not the document's")
    elif type(source) is int:
        value = source
    elif not isinstance(source, str) or "def " in source or "<function" in source:
        raise Unclear("its target is made by code")
    elif target.startswith("["):
        raise Unclear("several right choices")
    else:
        value = int(target) if target.isdecimal() else target
    if isinstance(value, int):
        return value if 0 <= value < len(choices) else _NO_GOLD
    return choices.index(value) if value in choices else _NO_GOLD
