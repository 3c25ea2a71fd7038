"""One thing asked of a model: the value that lm-eval's side hands to the plan.

Text ends at the plan: a `Request` still holds strings, a planned row holds token ids only.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from evalkit.base.errors import EvalkitError

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
DEFAULT_MAX_GEN_TOKS = 256  # lm-eval's for a task that gives none
_SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a generation runs: lm-eval's `generation_kwargs`, normalised.

    Greedy unless `do_sample`; `seed` is the suite's, mixed with each request's id, so that a
    sampled answer does not depend on which requests share its batch.
    """

    until: tuple[str, ...]
    max_gen_toks: int
    do_sample: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The settings as the plan holds them."""
        return {name: getattr(self, name) for name in self.__slots__} | {"until": list(self.until)}


@dataclass(frozen=True, slots=True)
class Request:
    """One loglikelihood, rolling loglikelihood or generation.

    `context` is the prompt (the whole text of a rolling request); `continuation` is what a
    loglikelihood scores; `settings` is a generation's.
    """

    task: str
    doc_id: int
    index: int
    repeat: int
    kind: Kind
    context: str
    continuation: str = ""
    settings: Settings | None = field(default=None)

    @property
    def local_id(self) -> str:
        """The request's id within its task."""
        return f"{self.doc_id}/{self.index}/{self.repeat}"

    @property
    def id(self) -> str:
        """`<leaf task>/<doc_id>/<request index>/<repeat>`."""
        return f"{self.task}/{self.local_id}"


def settings_from(gen_kwargs: dict[str, Any], *, task: str, seed: int) -> Settings:
    """Normalise a task's generation_kwargs as lm-eval 0.4.13's `normalize_gen_kwargs` does.

    Raises EvalkitError for a setting that evalkit can't honour: ignoring one would change a score.
    """
    given = dict(gen_kwargs)
    until = given.pop("until", None) or []
    lengths = [given.pop(name, None) for name in _LENGTHS]
    do_sample = given.pop("do_sample", None)
    numbers = {name: given.pop(name, default) for name, default in _SAMPLING.items()}
    if given:
        raise EvalkitError(
            f"task '{task}' sets generation_kwargs that evalkit does not know: "
            + ", ".join(sorted(given)),
            fix=f"use until, do_sample, max_gen_toks, {', '.join(_SAMPLING)}",
        )
    try:
        max_gen_toks = next((int(n) for n in lengths if n is not None), DEFAULT_MAX_GEN_TOKS)
        temperature, top_p = float(numbers["temperature"] or 0.0), float(numbers["top_p"])
        top_k = int(numbers["top_k"])
    except (TypeError, ValueError) as error:
        raise EvalkitError(
            f"task '{task}' has generation_kwargs that are no numbers: {error}"
        ) from None
    if max_gen_toks < 1:
        raise EvalkitError(
            f"task '{task}' asks for {max_gen_toks} new tokens; at least 1 is needed"
        )
    until = (until,) if isinstance(until, str) else tuple(until)
    if not (temperature > 0.0 if do_sample is None else do_sample):
        return Settings(until, max_gen_toks)
    if temperature <= 0.0:
        temperature = 1.0  # transformers' default when a task samples and gives none
    return Settings(until, max_gen_toks, True, temperature, top_p, top_k, seed)
