"""Tasks whose answers are programs, and the verdicts on these programs that scoring goes by.

lm-eval's metric `code_eval` would run the programs on this host. `GRADER` in its place looks
verdicts up and notes what it is asked about, so that they can be run where they harm nobody
(`host.grading`). A program without a verdict counts as failed, and as missing.

A program is a sample's filtered answer with the task's test behind it; its name is the sha256 of
its text. So whoever has the samples can make and run it again. verdicts.jsonl has the verdicts.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit, no_right
from evalkit.harness.samples import Sample, flat

NAME = "verdicts.jsonl"
SCHEMA = "evalkit/verdicts/1"
MAX_BYTES = 1 << 30  # a program has 150
OUTCOMES = ("passed", "failed", "timed out")
METRICS = ("pass_at_k", "pass_at_1", "pass@1")  # whose value follows from verdicts
# Tasks' modules that run programs by `code_eval` only.
GRADED = ("lm_eval.tasks.humaneval.", "lm_eval.tasks.mbpp.")

Verdicts = dict[str, str]  # a program's sha256 -> its outcome


def program(candidate: str, test: str) -> str:
    """What is run: an answer with its test behind it."""
    return f"{candidate}\n{test}"


def name_of(text: str) -> str:
    """A program's name: sha256 (hex) of its text."""
    return canon.digest_bytes(text.encode("utf-8", "surrogatepass"))[7:]


def of_sample(sample: Sample) -> Iterator[str]:
    """The programs of a sample, in the order of its answers."""
    for answer in flat(sample["filtered_resps"]):
        yield program(str(answer), sample["target"])


def pass_at_k(passed: int, count: int, k: int) -> float:
    """The chance that at least one of k answers drawn from `count` passes, where `passed` do: the
    unbiased estimator of Chen et al. (2021), 1 - C(n - c, k) / C(n, k), multiplied out."""
    if count - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(count - passed + 1, count + 1))


def line(program: str, outcome: str) -> dict[str, str]:
    """Return a program's line."""
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
        return parse(canon.read_bytes(run / NAME, MAX_BYTES).splitlines())
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise no_right(run / NAME) from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise EvalkitError(
            f"{NAME} is damaged: {error}", where=str(run), fix="delete it and grade again",
            code=Exit.FAILED,
        ) from None  # fmt: skip


class Grader:
    """The metric: what it is asked about, by name, and the verdicts that it answers from."""

    def __init__(self) -> None:
        self.verdicts: Verdicts = {}
        self.asked: dict[str, str] = {}

    def compute(
        self, references: list[str], predictions: list[list[str]], k: Any = (1,), **_: Any
    ) -> tuple[dict[str, float], dict[str, object]]:
        """pass@k over the answers of each question, as `code_eval` means it."""
        ks, values = [k] if isinstance(k, int) else list(k), []
        for test, answers in zip(references, predictions, strict=True):
            texts = [program(answer, test) for answer in answers]
            names = [name_of(text) for text in texts]
            self.asked.update(zip(names, texts, strict=True))
            passed = sum(self.verdicts.get(name) == "passed" for name in names)
            values.append((passed, len(names)))
        found = {
            f"pass@{each}": sum(pass_at_k(c, n, each) for c, n in values) / len(values)
            for each in ks
            if all(n >= each for _, n in values)
        }
        return found, {}


GRADER = Grader()  # lm-eval's modules keep what they loaded, so there is one for all


def is_graded(task: Any) -> bool:
    """Whether a task's answers are programs that are graded by verdicts."""
    if not getattr(task, "UNSAFE_CODE", False):
        return False
    functions = [entry["metric"] for entry in task.get_config("metric_list") or []]
    modules = [str(getattr(function, "__module__", "")) for function in functions]
    return bool(modules) and all(name.startswith(GRADED) for name in modules)


@contextmanager
def judged(known: Verdicts) -> Iterator[dict[str, str]]:
    """Within the block, scoring goes by these verdicts; the programs that it asks about by name."""
    GRADER.verdicts, GRADER.asked = known, {}
    try:
        yield GRADER.asked
    finally:
        GRADER.verdicts = {}
