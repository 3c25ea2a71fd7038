"""Verdicts on programs that a model wrote: `verdicts.jsonl` in a run's folder, a line a program.

A program is a sample's filtered answer with the task's test behind it; its name is the sha256 of
its text. So whoever has the samples can make every program again, run it, and hold the verdict
against the one that is recorded. Nothing here runs anything.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

NAME = "verdicts.jsonl"
SCHEMA = "evalkit/verdicts/1"
OUTCOMES = ("passed", "failed", "timed out")
METRICS = ("pass_at_k", "pass_at_1", "pass@1")  # whose value follows from verdicts

Verdicts = dict[str, str]  # a program's sha256 -> its outcome


def program(candidate: str, test: str) -> str:
    """What is run: an answer with its test behind it."""
    return f"{candidate}\n{test}"


def name_of(text: str) -> str:
    """A program's name: sha256 (hex) of its text."""
    return canon.digest_bytes(text.encode("utf-8", "surrogatepass"))[7:]


def of_sample(sample: dict[str, Any]) -> Iterator[str]:
    """The programs of a sample, in the order of its answers."""
    for answer in _flat(sample["filtered_resps"]):
        yield program(answer, sample["target"])


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield str(value)


def pass_at_k(passed: int, count: int, k: int) -> float:
    """The chance that at least one of k answers drawn from `count` passes, where `passed` do: the
    unbiased estimator of Chen et al. (2021), 1 - C(n - c, k) / C(n, k), multiplied out."""
    if count - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(count - passed + 1, count + 1))


def line(program: str, outcome: str) -> dict[str, Any]:
    """A program's line."""
    return {"schema": SCHEMA, "program": program, "outcome": outcome}


def parse(lines: Iterable[bytes]) -> Verdicts:
    """Verdicts by program; ValueError where a line is none, or a program has two unlike ones."""
    found: Verdicts = {}
    for raw in lines:
        value = canon.loads(raw)
        if value.keys() != {"schema", "program", "outcome"} or value["schema"] != SCHEMA:
            raise ValueError("not a line of verdicts")
        if value["outcome"] not in OUTCOMES:
            raise ValueError(f"unknown outcome {value['outcome']!r}")
        if found.setdefault(value["program"], value["outcome"]) != value["outcome"]:
            raise ValueError(f"program {value['program'][:12]} has two verdicts")
    return found


def read(run: Path) -> Verdicts:
    """A run's verdicts, none where there are none yet; EvalkitError (1) where they are damaged."""
    try:
        return parse((run / NAME).read_bytes().splitlines())
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise EvalkitError(
            f"{NAME} is damaged: {error}", where=str(run), fix="delete it and grade again",
            code=Exit.FAILED,
        ) from None  # fmt: skip
