"""What is not the same for two executions: the inputs of their identity, software and hardware.

Ordered by how much each can do to an answer, so that the first that differs is the likely cause of
different answers. A cause is a guess from what was recorded, and said to be one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.base.machine import stamp
from evalkit.record.reading.findings import shown

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
HARDWARE = ("cpu", "gpu", *stamp.GPU_PARTS)
SOFTWARE = ("python", "os", "runtime")
COMPUTING = ("torch", "transformers", "tokenizers", "lm_eval", "accelerate", "numpy", "safetensors")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same: `name` starts with a word of `CAUSES`."""

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
    """A value for people: a digest by its first twelve characters."""
    return shown(re.sub(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])", r"\1", value))


def of_inputs(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """What differs between two runs' inputs, as run.json holds them."""
    found = [
        Difference(name, str(old), str(new))
        for name in ("suite", "model", "adapter", "numerics", "engine", "versions")
        for name, old, new in _unlike(name, before.get(name), after.get(name))
    ]
    return sorted(found, key=lambda each: list(CAUSES).index(each.kind))


def of_environments(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """What differs between two records' environments, beyond what is an input."""
    found = [
        Difference(f"hardware.{key}", str(before.get(key)), str(after.get(key)))
        for key in HARDWARE
        if before.get(key) != after.get(key)
    ]
    found += [
        Difference(f"packages.{key}", str(before.get(key)), str(after.get(key)))
        for key in SOFTWARE
        if before.get(key) != after.get(key)
    ]
    old, new = before["packages"], after["packages"]
    unlike = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    unlike.sort(key=lambda name: name not in COMPUTING)
    inputs = {*before["versions"], *after["versions"]}
    return found + [
        Difference(f"packages.{name}", str(old.get(name)), str(new.get(name)))
        for name in unlike
        if name not in inputs
    ]


def inputs_of(record: dict[str, Any]) -> dict[str, Any]:
    """A record's inputs, as run.json has them."""
    adapter = record["model"]["adapter"]
    kept = {k: v for k, v in record["suite"].items() if k not in ("name", "partial")}
    return {
        "suite": kept,
        "model": {name: entry["sha256"] for name, entry in record["model"]["files"].items()},
        "adapter": adapter and {n: e["sha256"] for n, e in adapter["files"].items()},
        "numerics": record["numerics"],
        "engine": record["engine"],
        "versions": record["environment"]["versions"],
    }


def _unlike(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every place where two nested values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _unlike(f"{name}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield name, before, after


def told(differences: Sequence[Difference]) -> list[str]:
    """A line each; packages that compute no answer are counted."""
    found = [f"differs   {each}" for each in differences if each.computes]
    if idle := len(differences) - len(found):
        found.append(f"differs   {idle:,} of what computes no answer: packages, the system")
    return found or ["differs   nothing recorded"]


def cause(differences: list[Difference], *, plain: str) -> str:
    """The likely cause of different answers, in a line; `plain` where nothing recorded differs."""
    decisive = [each for each in differences if each.computes]
    if not decisive:
        return plain
    first = decisive[0]
    same = [each for each in decisive if each.kind == first.kind]
    more = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
    return f"{CAUSES[first.kind]}: {first}{more}"
