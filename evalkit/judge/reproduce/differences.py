"""Compares two executions: what they were computed from and on, then their answers.

Differences of inputs, software and hardware are ordered by their possible effect, so the first one
is the likely cause: a guess, and the report says so. Of two unequal texts only the first different
token is judged, by the margins that both sides recorded: what follows it differs anyway.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.base import canon
from evalkit.base.machine import stamp
from evalkit.base.machine.types import Environment
from evalkit.inputs.types import Answer, Generation
from evalkit.judge.audit.noise import Noise
from evalkit.record.journal import Answers, numbers
from evalkit.record.reading.findings import shown
from evalkit.record.reading.identity import inputs_of
from evalkit.record.types import Record

CAUSES = {  # a difference's first word, and what it does to answers
    "suite": "another question was asked",
    "model": "other weights or another tokenizer",
    "adapter": "another adapter",
    "numerics": "other numerics",
    "engine": "another engine, level or batching",
    "versions": "another version of what computes the answers",
    "hardware": "other hardware",
    "packages": "other software",
}
INPUTS = ("suite", "model", "adapter", "numerics", "engine", "versions")
HARDWARE = ("cpu", "gpu", *stamp.GPU_PARTS)
SOFTWARE = ("python", "os", "runtime")
COMPUTING = ("torch", "transformers", "tokenizers", "lm_eval", "accelerate", "numpy", "safetensors")
NOTHING = "no recorded input differs: one of the records was changed, or a machine does not repeat"
FEW = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same; `name` starts with a word of `CAUSES`."""

    name: str
    before: str
    after: str

    @property
    def kind(self) -> str:
        """Its word in `CAUSES`."""
        return self.name.partition(".")[0]

    @property
    def computes(self) -> bool:
        """Whether it could change an answer: of software only what computes them."""
        name = self.name.partition(".")[2]
        return self.kind != "packages" or name == "python" or name in COMPUTING

    def __str__(self) -> str:
        return f"{shown(self.name)}: {_short(self.before)} -> {_short(self.after)}"


def _short(value: str) -> str:
    """Return a value for people: digests are cut to twelve characters."""
    return shown(re.sub(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])", r"\1", value))


def of_inputs(before: Mapping[str, object], after: Mapping[str, object]) -> list[Difference]:
    """Return what differs between two runs' inputs, as run.json holds them."""
    return [
        Difference(name, str(old), str(new))
        for section in INPUTS
        for name, old, new in _unlike(section, before.get(section), after.get(section))
    ]


# A kind of difference, the names to compare, and where they stand on the two sides.
_Section = tuple[str, Sequence[str], Mapping[str, object], Mapping[str, object]]


def of_environments(before: Environment, after: Mapping[str, Any]) -> list[Difference]:
    """Return what differs between two records' environments, beyond the inputs."""
    inputs: set[str] = {*before["versions"], *after["versions"]}
    packages = (before["packages"].keys() | after["packages"].keys()) - inputs
    sections: tuple[_Section, ...] = (
        ("hardware", HARDWARE, before, after),
        ("packages", SOFTWARE, before, after),
        ("packages", sorted(packages, key=lambda name: (name not in COMPUTING, name)),
         before["packages"], after["packages"]),
    )  # fmt: skip
    return [
        Difference(f"{kind}.{name}", str(old.get(name)), str(new.get(name)))
        for kind, names, old, new in sections
        for name in names
        if old.get(name) != new.get(name)
    ]


def of_records(before: Record, after: Record) -> tuple[Difference, ...]:
    """Return what differs between two records' inputs and environments."""
    inputs = of_inputs(inputs_of(before), inputs_of(after))
    return (*inputs, *of_environments(before["environment"], after["environment"]))


def _unlike(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield every place where two nested values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _unlike(f"{name}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield name, before, after


def lines(differences: Sequence[Difference]) -> list[str]:
    """Return a line for each difference; packages that compute no answer are only counted."""
    computing = [f"differs   {diff}" for diff in differences if diff.computes]
    if idle := len(differences) - len(computing):
        computing.append(f"differs   {idle:,} of what computes no answer: packages, the system")
    return computing or ["differs   nothing recorded"]


def cause(differences: Sequence[Difference]) -> str:
    """Return the likely cause of different answers, in a line."""
    computing = [diff for diff in differences if diff.computes]
    if not computing:
        return NOTHING
    first = computing[0]
    same = sum(diff.kind == first.kind for diff in computing)
    more = f" (and {same - 1} more)" if same > 1 else ""
    return f"{CAUSES[first.kind]}: {first}{more}"


@dataclass(slots=True)
class Apart:
    """How far two sides' answers are apart: requests in all, those that are unequal, those that the
    noise does not explain (the first few in words), and the largest difference of two
    log-likelihoods."""

    total: int = 0
    unequal: int = 0
    beyond: int = 0
    largest: float = 0.0
    first: list[str] = field(default_factory=list)

    def note(self, request: str, before: Answer | None, after: Answer | None, noise: Noise) -> None:
        """Add one request's answers."""
        self.total += 1
        if before == after:
            return
        self.unequal += 1
        problem = "answered on one side only"
        if before is not None and after is not None:
            self.largest = max(self.largest, _distance(before, after))
            problem = _problem(before, after, noise)
        if problem:
            self.beyond += 1
            if len(self.first) < FEW:
                self.first.append(f"{request}: {problem}")


def apart(pairs: Iterable[tuple[str, Answer | None, Answer | None]], noise: Noise) -> Apart:
    """Compare the answers of all (request, one side's answer, the other's)."""
    result = Apart()
    for request, before, after in pairs:
        result.note(request, before, after, noise)
    return result


def matched(
    before: Answers, after: Answers, leaves: Iterable[str]
) -> Iterator[tuple[str, Answer | None, Answer | None]]:
    """Yield (request, one side's answer, the other's), a leaf task at a time."""
    for leaf in leaves:
        old, new = before.of(leaf), after.of(leaf)
        for request in sorted(old.keys() | new.keys()):
            yield request, old.get(request), new.get(request)


def _distance(before: Answer, after: Answer) -> float:
    if "text" in before or "text" in after:
        return 0.0
    off = abs(canon.number(before["loglikelihood"]) - canon.number(after["loglikelihood"]))
    return off if off == off else 0.0


def _problem(before: Answer, after: Answer, noise: Noise) -> str:
    """Say how two unequal answers differ beyond the noise; empty where they don't."""
    if "text" in before and "text" in after:
        return _text_problem(before, after, noise)
    if "text" in before or "text" in after:
        return "a text on one side only"
    count = max(before["num_tokens"], after["num_tokens"])
    off = canon.number(before["loglikelihood"]) - canon.number(after["loglikelihood"])
    allowed = noise.of_tokens(count)
    within = abs(off) <= allowed  # never for a NaN
    return "" if within else f"log-likelihood off by {off:.3g}, {allowed:.3g} is noise"


def _text_problem(before: Generation, after: Generation, noise: Noise) -> str:
    old_tokens, new_tokens = before["tokens"], after["tokens"]
    if not isinstance(old_tokens, list) or not isinstance(new_tokens, list):
        same = before["text"] == after["text"]
        return "" if same else "another text, of which no tokens are told"
    for index, (old, new) in enumerate(zip(old_tokens, new_tokens, strict=False)):
        if old != new:
            widest = max(numbers(side["margins"])[index] for side in (before, after))
            problem = f"token {index} is another, {widest:.3g} ahead, {noise.tie:.3g} is noise"
            return "" if widest <= noise.tie else problem
    if len(old_tokens) != len(new_tokens):
        return "one text goes on where the other ends"
    pairs = zip(numbers(before["logprobs"]), numbers(after["logprobs"]), strict=True)
    worst = max(abs(a - b) for a, b in pairs)
    return "" if worst <= noise.of_tokens(1) else f"a token's log-probability is off by {worst:.3g}"
