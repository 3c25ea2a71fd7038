"""The names that tables give to tasks, metrics and models, and those of records and suites."""

import re
from collections.abc import Iterable, Sequence

from evalkit.record.reading.score_table import Score

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
    """Return a name in lower case without spaces and signs."""
    return re.sub(r"[\W_]", "", text.lower())


def bare(text: str) -> str:
    """Return a head without shots, arrows and signs."""
    return _SHOTS.sub(" ", text)


def forms(text: str) -> list[str]:
    """Return the names that a head may mean: the whole of it, and each of its words."""
    words = [plain(bare(text)), *(plain(word) for word in _SPLIT.split(bare(text)))]
    return [ALIASES.get(word, word) for word in words if word]


def scores_named(words: Sequence[str], scores: Iterable[Score]) -> list[Score]:
    """Return the scores whose task these words name, and whose metric, if they name one."""
    named = {form for text in words for form in forms(text)}
    of_task = [score for score in scores if plain(score.task) in named]
    of_metric = [s for s in of_task if {plain(s.metric_name), plain(s.name)} & named]
    return of_metric or of_task


def is_model(words: Sequence[str], model: str) -> bool:
    """Return whether some word is a model's name, with its owner or without."""
    model_names = {plain(model), plain(model.rpartition("/")[2])}
    return any(plain(text) in model_names for text in words)


def is_no_score(heads: Sequence[str]) -> bool:
    """Return whether a column holds something else than scores: versions, shots, sizes."""
    return bool(heads) and plain(re.sub(r"[(\[].*?[)\]]", "", heads[-1])) in NO_SCORES


def is_error(heads: Sequence[str]) -> bool:
    """Return whether a column holds the errors of the scores to its left."""
    return bool(heads) and plain(heads[-1]) in ERRORS
