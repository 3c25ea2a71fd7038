"""One thing asked of a model: the value that lm-eval's side hands to the plan.

Text ends at the plan: a `Request` still holds strings, a planned row holds token ids only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from evalkit.base.errors import EvalkitError
from evalkit.plan.types import Kind, SettingsEntry

DEFAULT_MAX_GEN_TOKS = 256  # lm-eval's for a task that gives none
TOP_K = 50  # transformers' where neither a task that samples nor the model gives one
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a generation runs: lm-eval's `generation_kwargs`, normalised.

    Greedy unless `do_sample`; `seed` is the suite's, mixed with each request's id, so that a
    sampled answer does not depend on which requests share its batch. What a task sampling leaves
    open is the model's own. The penalties' neutral values mean that none is asked for: a model's
    own repetition penalty still counts.

    With `think_end` a text thinks before it answers (`thinking`): `max_gen_toks` counts both, and
    no more than `max_think_toks` are spent on thinking (0: all of them may be).
    """

    until: tuple[str, ...]
    max_gen_toks: int
    do_sample: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    think_start: str = ""
    think_end: str = ""
    max_think_toks: int = 0

    def to_json(self) -> SettingsEntry:
        """Return the settings as the plan holds them: those from `min_p` on only where set."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"until": list(self.until)}
        stated = {name: value for name, value in values.items() if value or name not in OPTIONAL}
        return cast(SettingsEntry, stated)

    @classmethod
    def from_json(cls, entry: SettingsEntry) -> "Settings":
        """Return the settings that a plan's entry holds."""
        values: Any = {**entry, "until": tuple(entry["until"])}
        return cls(**values)


OPTIONAL = Settings.__slots__[Settings.__slots__.index("min_p") :]


@dataclass(frozen=True, slots=True)
class Thinking:
    """Between which words a text thinks, and for how many tokens at most (0: no limit of its own).
    Without a `start` every text begins in thought."""

    start: str
    end: str
    most: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a suite and a model add to a task's generation_kwargs: the seed of what is sampled, how
    texts think, and the model's own generation settings (`checkpoint.own_settings`)."""

    seed: int = 0
    own: Mapping[str, Any] = field(default_factory=dict)
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One loglikelihood, rolling loglikelihood or generation.

    `context` is the prompt (the whole text of a rolling request); `continuation` is what a
    loglikelihood scores; `settings` is a generation's, and `reserved` the new tokens that its task
    asks for, which its prompt leaves room for even where the model writes fewer. `leaks`: the
    document is one of the worked examples in its own prompt.
    """

    task: str
    doc_id: int
    index: int
    repeat: int
    kind: Kind
    context: str
    continuation: str = ""
    settings: Settings | None = field(default=None)
    reserved: int = 0
    leaks: bool = False

    @property
    def local_id(self) -> str:
        """The request's id within its task."""
        return f"{self.doc_id}/{self.index}/{self.repeat}"

    @property
    def id(self) -> str:
        """`<leaf task>/<doc_id>/<request index>/<repeat>`."""
        return f"{self.task}/{self.local_id}"


def recorded_terms(record: Mapping[str, Any], settings: Sequence[SettingsEntry]) -> Terms:
    """Return the terms on which a record's texts were generated, from the record and the settings
    in its plan."""
    own = record["model"].get("generation") or {}
    thinking = None
    for entry in settings if record["suite"].get("think_end") else ():
        if end := entry.get("think_end"):
            thinking = Thinking(entry.get("think_start", ""), end, entry.get("max_think_toks", 0))
            break
    return Terms(record["suite"]["seeds"]["torch"], own, thinking)


def new_tokens(gen_kwargs: Mapping[str, Any]) -> int:
    """Return how many new tokens a task asks for; ValueError or TypeError for no number."""
    stated = (gen_kwargs.get(name) for name in _LENGTHS)
    return next((int(n) for n in stated if n is not None), DEFAULT_MAX_GEN_TOKS)


def settings_from(gen_kwargs: Mapping[str, Any], *, task: str, terms: Terms) -> Settings:
    """Normalise a task's generation_kwargs as lm-eval 0.4.13's `normalize_gen_kwargs` does. Where
    a task samples, the model's own settings fill in what it does not give.

    Raises EvalkitError for a setting that evalkit can't apply: ignoring one would change a score.
    """
    given = dict(gen_kwargs)
    until = given.pop("until", None) or []
    for name in _LENGTHS:
        given.pop(name, None)
    do_sample = given.pop("do_sample", None)
    numbers = {name: given.pop(name, None) for name in (*_SAMPLING, *_PENALTIES)}
    if given.get("num_beams") == 1:
        del given["num_beams"]
    if given:
        raise EvalkitError(
            f"task '{task}' sets generation_kwargs that evalkit does not know: "
            + ", ".join(sorted(given)),
            fix=f"use until, do_sample, max_gen_toks, {', '.join((*_SAMPLING, *_PENALTIES))}",
        )
    try:
        max_gen_toks = int(terms.own.get("max_new_tokens", new_tokens(gen_kwargs)))
        given_numbers = {n: float(value) for n, value in numbers.items() if value is not None}
    except (TypeError, ValueError) as error:
        raise EvalkitError(
            f"task '{task}' has generation_kwargs that are no numbers: {error}"
        ) from None
    if max_gen_toks < 1:
        raise EvalkitError(
            f"task '{task}' asks for {max_gen_toks} new tokens; at least 1 is needed"
        )
    until = (until,) if isinstance(until, str) else tuple(until)
    more: Any = {name: given_numbers[name] for name in _PENALTIES if name in given_numbers}
    if thinking := terms.thinking:
        more |= {"think_start": thinking.start, "think_end": thinking.end}
        more |= {"max_think_toks": thinking.most}
        max_gen_toks += thinking.most
    if given_numbers.get("temperature", 0.0) > 0.0 if do_sample is None else do_sample:
        more |= {"do_sample": True, "seed": terms.seed, **_sampling(given_numbers, task, terms.own)}
    return Settings(until, max_gen_toks, **more)


def _sampling(given: dict[str, float], task: str, own: Mapping[str, Any]) -> dict[str, float]:
    """Return how a task samples: what it gives, else the model's values, else transformers'."""
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": TOP_K, "min_p": 0.0}
    for name in values:
        value = given.get(name, own.get(name))
        values[name] = values[name] if value is None else float(value)
    if values["temperature"] <= 0.0:
        whose = f"task '{task}'" if "temperature" in given else "the model's generation config"
        raise EvalkitError(
            f"{whose} gives temperature {values['temperature']:g} to sample with",
            where=task,
            fix="set do_sample: false for the most probable text (in the task, or in the suite's"
            " gen_kwargs), or a temperature above 0",
        )
    return values | {"top_k": int(values["top_k"])}
