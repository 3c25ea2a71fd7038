"""What `make bench-real` found, in figures: scores, how far two sides' answers are apart, times.

Everything is held against lm-eval's answers in float32. How near a tie was says that side too, but
for texts: of these only evalkit notes each token's margin to the runner-up.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import tables
from bench.real_pieces import DTYPES, SIDES, Real, Work
from evalkit.plan.requests.request import Request

Answers = dict[str, Any]  # by request id: [log-likelihood, greedy flag], or a text
Margin = Callable[[str, str, str], float | None]  # of a request, lm-eval's text and another
FIRST = DTYPES[0]


@dataclass
class Answered:
    """What is there of a side's work; `whole` where nothing is missing. `texts`: of evalkit's
    generations, what its engine notes of them; `cores`: those that pieces were measured on."""

    whole: bool = True
    answers: Answers = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu: float = 0.0
    tokens: int = 0
    cores: set[int] = field(default_factory=set)


def answered(real: Real, side: str, dtype: str, work: Work) -> Answered:
    """A side's pieces of a task, put together."""
    found = Answered()
    for piece in real.pieces(side, dtype, work):
        kept = real.kept.read(piece)
        if kept is None:
            found.whole = False
            continue
        found.answers |= kept["answers"]
        found.texts |= kept["texts"]
        found.seconds += kept["seconds"]
        found.cpu += kept["cpu"]
        found.tokens += kept["tokens"]
        found.cores.add(kept["cores"])
    return found


def figures(real: Real) -> dict[str, Any]:
    """The figures of everything that is there."""
    return {
        "machine": tables.machine(),
        "weights": real.kept.weights,
        "works": {work.name: _work(real, work) for work in real.works},
    }


def _work(real: Real, work: Work) -> dict[str, Any]:
    asked = real.asked[work]
    found: dict[str, Any] = {
        "task": work.task,
        "documents": len({_document(one.id) for one in asked}),
        "requests": len(asked),
        "dtypes": {},
    }
    sides = {(dtype, side): answered(real, side, dtype, work) for dtype in DTYPES for side in SIDES}
    whole = {key: one.answers if one.whole else {} for key, one in sides.items()}
    plain, texts = whole[FIRST, "lm-eval"], sides[FIRST, "evalkit"].texts

    def margin(name: str, one: str, other: str) -> float | None:
        known = texts.get(name)
        if known is None or known["text"] not in (one, other):  # whose tokens aren't known
            return None
        return parting(known, one, other, real.decode)

    for dtype in DTYPES:
        both = {side: sides[dtype, side] for side in SIDES}
        scores = {side: _scored(real.loaded[work], one) for side, one in both.items() if one.whole}
        found["dtypes"][dtype] = {
            "scores": {side: one.metrics for side, one in scores.items()},
            "differ": _differ([one.samples for one in scores.values()]),
            "distance": {
                side: distance(asked, plain, whole[dtype, side], margin) for side in SIDES
            },
            "spent": {
                side: {"seconds": one.seconds, "cpu": one.cpu, "tokens": one.tokens,
                       "cores": sorted(one.cores)}
                for side, one in both.items() if one.whole
            },
        }  # fmt: skip
    return found


@dataclass
class _Scores:
    """lm-eval's own scores of some answers: each metric's [value, standard error], and each
    sample's metrics by (leaf task, document, filter)."""

    metrics: dict[str, list[Any]]
    samples: dict[tuple[str, int, str], dict[str, float]]


def _scored(loaded: Any, one: Answered) -> _Scores:
    from evalkit.harness.scoring.score import Scoring

    by_leaf: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, answer in one.answers.items():
        by_leaf[name.rsplit("/", 3)[0]][name] = (
            {"text": answer}
            if isinstance(answer, str)
            else {"loglikelihood": answer[0], "is_greedy": answer[1]}
        )
    scoring = Scoring(loaded, by_leaf.__getitem__)
    samples = {
        (sample["task"], sample["doc_id"], sample["filter"]): {
            metric: sample[metric] for metric in sample["metrics"]
        }
        for sample in scoring.samples()
    }
    results = scoring.results()
    (member,) = loaded.top_level
    values = results.get("groups", {}).get(member) or results["results"][member]
    metrics = {
        metric: [value, values[metric.replace(",", "_stderr,")]]
        for metric, value in values.items()
        if "," in metric and "_stderr," not in metric
    }
    return _Scores(metrics, samples)


def _differ(sides: Sequence[dict[tuple[str, int, str], dict[str, float]]]) -> dict[str, int] | None:
    """Of each metric (with its filter), the samples in which two sides differ."""
    if len(sides) < 2:
        return None
    found: dict[str, int] = {}
    for key, values in sides[0].items():
        for metric, value in values.items():
            name = f"{metric},{key[2]}"
            found[name] = found.get(name, 0) + (sides[1][key][metric] != value)
    return found


def distance(
    asked: Sequence[Request], plain: Answers, other: Answers, margin: Margin = lambda *_: None
) -> dict[str, Any]:
    """How far answers are from plain ones, over the requests that both have.

    Of log-likelihoods the mean difference (`shift`), and the mean, root mean square and largest of
    what they differ by; of documents with choices those whose best choice is another one, by
    log-likelihood ("acc") and by log-likelihood per character ("acc_norm"), each with its margin
    to the runner-up in `plain`; of texts how many are equal, and of the others the margin (nats)
    of the token at which they part, which `margin` gives where it knows it.
    """
    both = [one for one in asked if one.id in plain and one.id in other]
    chosen = [one for one in both if one.settings is None]
    apart = [other[one.id][0] - plain[one.id][0] for one in chosen]
    written = [one.id for one in both if one.settings is not None]
    unlike = [name for name in written if plain[name] != other[name]]
    return {
        "documents": len({_document(one.id) for one in both}),
        "loglikelihoods": len(apart),
        "shift": statistics.fmean(apart) if apart else None,
        "mean": statistics.fmean(map(abs, apart)) if apart else None,
        "root_mean_square": statistics.fmean(x * x for x in apart) ** 0.5 if apart else None,
        "largest": max(map(abs, apart), default=None),
        "greedy": sum(plain[one.id][1] != other[one.id][1] for one in chosen),
        "flips": {
            "acc": list(_flips(chosen, plain, other, per_character=False)),
            "acc_norm": list(_flips(chosen, plain, other, per_character=True)),
        },
        "texts": len(written),
        "equal": len(written) - len(unlike),
        "parted": [margin(name, plain[name], other[name]) for name in unlike],
    }


def _document(request: str) -> str:
    return request.rsplit("/", 2)[0]


def _flips(
    chosen: Sequence[Request], plain: Answers, other: Answers, *, per_character: bool
) -> Iterator[float]:
    """The margins in `plain` of the documents whose best choice is another in `other`."""
    documents: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in chosen:
        # lm-eval divides by the choice's length; its delimiter, a blank, stands before it
        size = len(one.continuation) - 1 if per_character else 1
        documents[_document(one.id)].append((plain[one.id][0] / size, other[one.id][0] / size))
    for pairs in documents.values():
        here, there = ([pair[side] for pair in pairs] for side in (0, 1))
        best, runner_up = sorted(here, reverse=True)[:2]
        if here.index(best) != there.index(max(there)):
            yield best - runner_up


def parting(text: dict[str, Any], one: str, other: str, decode: Callable[..., str]) -> float:
    """The margin of the token at which two texts part; `text` has the tokens of one of them."""
    pairs = enumerate(zip(one, other, strict=False))
    shorter = min(len(one), len(other))
    same = next((place for place, (here, there) in pairs if here != there), shorter)
    tokens = text["tokens"]
    reached = (n for n in range(len(tokens)) if len(decode(tokens[: n + 1])) > same)
    return float(text["margins"][next(reached, len(tokens) - 1)])
