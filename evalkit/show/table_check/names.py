"""What a table calls a task, a metric or a model, and what records and suites call it."""

import re
from collections.abc import Iterable, Sequence

from evalkit.show.scores.rows import Row as Score

# As papers write them: without case, spaces and signs.
ALIASES = {
    "arcc": "arcchallenge", "arcch": "arcchallenge", "arcchal": "arcchallenge", "arce":
    "arceasy", "hella": "hellaswag", "hellas": "hellaswag", "wino": "winogrande", "wg":
    "winogrande", "winog": "winogrande", "obqa": "openbookqa", "tqa": "truthfulqa", "csqa":
    "commonsenseqa", "bigbenchhard": "bbh", "lambada": "lambadaopenai",
}  # fmt: skip
NO_SCORES = {
    "bit", "bits", "context", "contextlength", "count", "date", "documents", "epoch", "filter",
    "layer", "layers", "license", "memory", "modelsize", "n", "nshot", "nshots", "numdocs",
    "numfewshot", "numsamples", "parameters", "params", "pretraintokens", "rank", "samples",
    "seed", "shot", "shots", "size", "speed", "step", "steps", "tokens", "total",
    "trainingtokens", "version", "year",
}  # fmt: skip
ERRORS = {"stderr", "std", "standarderror", "stddev", "se", "err", "error", "stderror"}
_SHOTS = re.compile(r"[(\[]?\b\d+\s*-?\s*shots?\b[)\]]?|[(\[]\d+[)\]]|[↑↓%]", re.I)
_SPLIT = re.compile(r"[\s/|,:;()\[\]]+")


def plain(text: str) -> str:
    """A name without case, spaces and signs."""
    return re.sub(r"[\W_]", "", text.lower())


def bare(text: str) -> str:
    """A head without its shots, arrows and signs."""
    return _SHOTS.sub(" ", text)


def forms(text: str) -> list[str]:
    """What a head may be saying: all of it without its shots and marks, and each of its words."""
    found = [plain(bare(text)), *(plain(word) for word in _SPLIT.split(bare(text)))]
    return [ALIASES.get(each, each) for each in found if each]


def speaking_of(words: Sequence[str], scores: Iterable[Score]) -> list[Score]:
    """The scores whose task some words name, of the metric that they name where they name one."""
    said = {form for text in words for form in forms(text)}
    of_task = [score for score in scores if plain(score.task) in said]
    of_metric = [s for s in of_task if plain(s.metric) in said or plain(s.name) in said]
    return of_metric or of_task


def is_model(words: Sequence[str], model: str) -> bool:
    """Whether a row or a column is called as a model is, with its owner or without."""
    called = {plain(model), plain(model.rpartition("/")[2])}
    return any(plain(text) in called for text in words)


def is_no_score(heads: Sequence[str]) -> bool:
    """Whether a column is said to hold something else than scores: versions, shots, sizes."""
    return bool(heads) and plain(re.sub(r"[(\[].*?[)\]]", "", heads[-1])) in NO_SCORES


def is_error(heads: Sequence[str]) -> bool:
    """Whether a column holds the errors of the scores to its left."""
    return bool(heads) and plain(heads[-1]) in ERRORS
