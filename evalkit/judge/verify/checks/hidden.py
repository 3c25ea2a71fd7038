"""Checks a document of a public pack, whose texts are left out, against its own numbers.

An answer must be one that a model can give, of the kind that its task asks for. Scores that follow
from log-likelihoods are held against them as far as no right answer is needed for it: two scores by
the same choice are equal, and a text's log-likelihood is the one that its perplexity is made of.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from evalkit.base import canon
from evalkit.harness.samples import REQUESTED_AS
from evalkit.inputs.types import LockBody
from evalkit.judge.verify.checks import choices
from evalkit.judge.verify.checks.aggregates import KNOWN, aggregation
from evalkit.judge.verify.checks.scores import same
from evalkit.record.reading.evidence import possible
from evalkit.record.reading.evidence.journal import STOPS
from evalkit.record.reading.findings import shown
from evalkit.record.salted import HiddenText, PublicLine, PublicTask

_SHA256 = re.compile("[0-9a-f]{64}")
_FIELDS = {
    "loglikelihood": ("loglikelihood", "is_greedy", "num_tokens"),
    "loglikelihood_rolling": ("loglikelihood", "num_tokens"),
}
_TOLD = {"tokens", "logprob", "margin"}  # of a text, by evalkit's own engine


def named(answer: Any, kind: str, *, foreign: bool) -> dict[str, Any] | None:
    """Return an answer's numbers by name, as the journal has them; None for a text. ValueError says
    why a task of this kind has no such answer; `foreign`: an engine of lm-eval's gave it."""
    kind = REQUESTED_AS.get(kind, kind)
    if kind not in _FIELDS:
        if not isinstance(answer, dict):
            raise ValueError("a text is asked for, and it is answered by numbers")
        _check_text(answer, foreign=foreign)
        return None
    if not isinstance(answer, list) or len(answer) != len(_FIELDS[kind]):
        raise ValueError("its answers are none to what its task asks")
    found: Any = dict(zip(_FIELDS[kind], answer, strict=True))
    if type(found["num_tokens"]) is not int or type(found.get("is_greedy", True)) is not bool:
        raise ValueError("its answers are none to what its task asks")
    if problem := possible.likelihood(found, foreign=foreign):
        raise ValueError(f"an answer can't be: {problem}")
    numbers: dict[str, Any] = found
    return numbers


def _check_text(answer: dict[str, Any], *, foreign: bool) -> None:
    """Raise ValueError for what no generated text can be."""
    told = answer.keys() - {"text", "stop"}
    untold = foreign and not told and possible.is_unknown(answer["stop"])
    if not _SHA256.fullmatch(answer["text"]) or not (untold or told == _TOLD):
        raise ValueError("a text has other fields than a public pack's")
    if untold:
        return
    tokens, margin = answer["tokens"], answer["margin"]
    if answer["stop"] not in STOPS or type(tokens) is not int or tokens < 1:
        raise ValueError("a text ended otherwise than texts do")
    if canon.number(answer["logprob"]) > possible.ROUNDING * tokens:
        raise ValueError("a text has a probability above 1")
    if margin is None or not possible.is_number(margin):
        raise ValueError("a text's smallest margin is not a number")


def likelihood(answer: HiddenText | list[Any]) -> float:
    """Return an answer's log-likelihood; of a text whose engine tells none, 0."""
    return canon.number(answer[0] if isinstance(answer, list) else answer.get("logprob", 0))


def contradiction(line: PublicLine, kind: str) -> str:
    """Say where a document's scores contradict its answers; empty where they don't. A score of 0
    may stand for an answer that is not a number."""
    answers = [list(map(likelihood, repeats)) for repeats in line["answers"]]
    if any(value != value for repeats in answers for value in repeats):
        return ""
    values = [repeats[0] for repeats in answers]
    wrong = any(_is_unlike(line, kind, metrics, values) for metrics in line["metrics"].values())
    name = f"{shown(line['task'])} document {line['doc_id']}"
    return f"{name}: its scores contradict its answers" if wrong else ""


def _is_unlike(
    line: PublicLine, kind: str, metrics: Mapping[str, Any], values: list[float]
) -> bool:
    if kind == "multiple_choice":
        return _choices_are_unlike(line, metrics, values)
    if kind == "loglikelihood":
        answer: Any = line["answers"][0][0]
        wanted = {"acc": int(answer[1]), "perplexity": values[0]}
        return any(not same(metrics[name], wanted[name]) for name in metrics.keys() & wanted)
    pairs = [metrics[name] for name in choices.ROLLING & metrics.keys()]
    return any(not same(likelihood, values[0]) or units < 0 for likelihood, units in pairs)


def _choices_are_unlike(line: PublicLine, metrics: Mapping[str, Any], values: list[float]) -> bool:
    """Say whether two scores by the same choice are unlike, or two choices are both right."""
    if "acc_mutual_info" in metrics:  # asked a second time, without the question
        values = values[: len(values) // 2]
    lengths = line["lengths"][: len(values)]
    sizes = [[float(length[unit]) for length in lengths] for unit in (0, 1)]
    winners = {
        "acc": choices.argmax(values),
        "acc_norm": choices.argmax(choices.divided(values, sizes[0])),
        "acc_bytes": choices.argmax(choices.divided(values, sizes[1])),
    }
    right = {winners[name] for name, v in metrics.items() if name in winners and v == 1}
    wrong = {winners[name] for name, v in metrics.items() if name in winners and v != 1}
    return len(right) > 1 or bool(right & wrong)


def aggregations(tasks: Mapping[str, PublicTask], lock: LockBody | None) -> Iterator[str]:
    """Yield where the pack's values become a score otherwise than the lock says, and either way is
    one that is computed again here."""
    for leaf, locked in (lock["tasks"] if lock else {}).items():
        for name, metric in locked["metrics"].items():
            wanted = metric["aggregation"]
            recorded = aggregation(tasks[leaf], name) if leaf in tasks else wanted
            if recorded != wanted and {recorded, wanted} & KNOWN:
                what = f"{shown(name)} aggregated by {shown(recorded)}, locked {shown(wanted)}"
                yield f"{shown(leaf)}: {what}"
