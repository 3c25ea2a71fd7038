"""Both sides of a comparison: lm-eval's own run of a suite with its `hf` model, and ours.

A suite is stated once, as the dictionary of a suite file; `theirs` translates it into a call of
`lm_eval.simple_evaluate`, `ours` writes it to a file, locks it and evaluates it.
`compare` holds one against the other: everything equal but the log-likelihoods, whose sums over
tokens are taken in another order and with other neighbours in the batch.
"""

import gzip
import json
import logging
import time
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evalkit.base import canon

BATCH_SIZE = 4
# Of a log-likelihood. lm-eval sums a window's tokens in float32, so of a text's 2,000 nats its own
# rounding takes more than the 1e-4 that a choice's few are held to.
TOLERANCE, ROUNDING = 1e-4, 2.0**-23
# What lm-eval's results say of the tasks and scores; the rest says who ran it, where and when.
SECTIONS = (
    "results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples",
)  # fmt: skip
# Metrics that are sums of log-likelihoods or probabilities, not counts of right answers.
PROBABILITIES = "truthfulqa_mc2"  # whose accuracy is a probability, not a count
SMOOTH = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity", "brier_score")
HASHES = ("doc_hash", "prompt_hash", "target_hash")

Value = dict[str, Any]
# a suite's text -> its lock and the single rows: making one takes longest of all
_locks: dict[str, tuple[str, str]] = {}


@dataclass(frozen=True)
class Side:
    """One run: lm-eval's results (without samples) and its samples by (task, doc_id, filter)."""

    results: Value
    samples: dict[tuple[str, int, str], Value]
    seconds: float
    folder: Path | None = None  # ours

    def answers(self) -> Iterator[Value]:
        """Every answer in our journal."""
        assert self.folder is not None, "lm-eval keeps no journal"
        for path in sorted((self.folder / "journal").glob("*.jsonl")):
            for line in path.read_text().splitlines():
                yield from json.loads(line)["answers"].values()


@dataclass
class Figures:
    """What a comparison saw; `tolerance`: of a log-likelihood."""

    tolerance: float = TOLERANCE
    documents: int = 0
    greedy: int = 0  # greedy flags that are true, of log-likelihoods
    worst: float = 0.0  # |difference| of two log-likelihoods
    differences: list[str] = field(default_factory=list)

    def same(self, what: str, theirs: Any, ours: Any) -> None:
        """Note a difference."""
        if theirs != ours:
            self.differences.append(f"{what}: lm-eval {str(theirs)[:120]} ours {str(ours)[:120]}")


def load(model: Path, **more: Any) -> Any:
    """lm-eval's `hf` model of a folder or a GGUF file, in float32 on the CPU."""
    from lm_eval.models.huggingface import HFLM

    named = {"pretrained": str(model)}
    if model.suffix == ".gguf":
        named = {"pretrained": str(model.parent), "gguf_file": model.name}
    return HFLM(**named, device="cpu", dtype="float32", batch_size=BATCH_SIZE, **more)


def theirs(model: Any, suite: Value, folder: Path) -> Side:
    """lm-eval's own run of `suite`, whose paths are relative to `folder`."""
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # tiny models: more threads only wait for one another
    own = suite.get("include_path")
    manager = (
        TaskManager(include_path=str(folder / own), include_defaults=False)
        if own
        else TaskManager()
    )
    shots = {item.get("num_fewshot") for item in suite["tasks"] if isinstance(item, dict)}
    assert len(shots) <= 1, "lm-eval has one number of shots for all tasks"
    started = time.monotonic()
    with chdir(folder / (own or ".")):  # where lm-eval looks for a task's own data files
        results: Any = lm_eval.simple_evaluate(
            model,
            tasks=[item["task"] if isinstance(item, dict) else item for item in suite["tasks"]],
            num_fewshot=next(iter(shots), None),
            limit=suite.get("limit"),
            system_instruction=suite.get("system_instruction"),
            apply_chat_template=suite.get("apply_chat_template", False),
            fewshot_as_multiturn=suite.get("fewshot_as_multiturn", False),
            gen_kwargs=dict(suite.get("gen_kwargs", {})) or None,
            task_manager=manager,
        )
    samples = {
        (task, sample["doc_id"], sample["filter"]): sample
        for task, found in results.pop("samples").items()
        for sample in found
    }
    return Side(results, samples, time.monotonic() - started)


def ours(model: Path, suite: Value, folder: Path) -> Side:
    """Our run of `suite`, which is written to `folder` and locked there."""
    from evalkit.base.events import Events
    from evalkit.harness import locking
    from evalkit.inputs import rows
    from evalkit.run import evaluate as run
    from evalkit.run.preparing.prepare import Options

    path = folder / f"{suite['name']}.yaml"
    path.write_text(text := yaml.safe_dump(suite))
    if suite.get("include_path") or text not in _locks:  # a folder of tasks may be another's
        lock = locking.write_lock(str(path))
        _locks[text] = (lock.read_text(), rows.beside(lock).read_text())
    for suffix, kept in zip((".lock.yaml", ".lock.rows"), _locks[text], strict=True):
        path.with_suffix(suffix).write_text(kept)
    started = time.monotonic()
    options = Options(model=str(model), suite=str(path), out=folder / "results", device="cpu")
    made = run.evaluate(options, Events(), workers=0)
    samples = {}
    with gzip.open(made / "samples.jsonl.gz", "rt") as lines:
        for line in lines:
            sample = json.loads(line)
            samples[sample["task"], sample["doc_id"], sample["filter"]] = sample
    results = json.loads((made / "results.json").read_text())
    return Side(results, samples, time.monotonic() - started, made)


def compare(theirs: Side, ours: Side, tolerance: float = TOLERANCE) -> Figures:
    """Hold our run against lm-eval's; AssertionError that lists where they differ.

    Prints the figures: `pytest -rP` shows them.
    """
    from evalkit.harness import publish

    figures = Figures(tolerance)
    figures.same("documents", sorted(theirs.samples), sorted(ours.samples))
    for key in sorted(theirs.samples.keys() & ours.samples.keys()):
        figures.documents += 1
        _compare_samples("/".join(map(str, key)), theirs.samples[key], ours.samples[key], figures)
    for section in SECTIONS:
        _same_values(section, theirs.results.get(section), ours.results.get(section), figures)
    configs = json.loads(json.dumps(canon.finite(publish.clean(theirs.results["configs"]))))
    _same_values("configs", configs, ours.results["configs"], figures)
    assert not figures.differences, "\n".join(figures.differences[:20])
    print(figures)
    return figures


def _compare_samples(where: str, theirs: Value, ours: Value, figures: Figures) -> None:
    for name in (*HASHES, "metrics", "filter"):
        figures.same(f"{where} {name}", theirs[name], ours[name])
    figures.same(f"{where} target", str(theirs["target"]), ours["target"])
    contexts = [str(arguments[0]) for arguments in theirs["arguments"]]
    figures.same(
        f"{where} prompts", contexts, [each["arg_0"] for each in ours["arguments"].values()]
    )
    for name in ("resps", "filtered_resps"):
        _compare_answers(f"{where} {name}", theirs[name], ours[name], figures)
    for name in theirs["metrics"]:
        _compare_metric(f"{where} {name}", theirs[name], ours[name], figures)


def _compare_metric(where: str, theirs: Any, ours: Any, figures: Figures) -> None:
    """A document's score: one number, equal to the last digit, or the parts of one, as (sum of
    log-likelihoods, words) of a perplexity."""
    if isinstance(theirs, tuple) or hasattr(theirs, "tolist"):
        theirs = list(theirs) if isinstance(theirs, tuple) else theirs.tolist()
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for one, other in zip(theirs, ours, strict=True):
            if isinstance(one, float):
                _near(where, one, other, figures)
            else:
                _compare_metric(where, one, other, figures)
    elif (where.endswith(SMOOTH) or where.startswith(PROBABILITIES)) and isinstance(theirs, float):
        _near(where, theirs, ours, figures)
    else:
        figures.same(where, canon.finite(theirs), ours)


def _compare_answers(where: str, theirs: Any, ours: Any, figures: Figures) -> None:
    """Responses as nested as lm-eval has them: ours are the same shape, every leaf a string."""
    if isinstance(theirs, tuple) and len(theirs) == 2 and isinstance(theirs[1], bool):
        figures.greedy += theirs[1] and not where.endswith("filtered_resps")
        _near(where, theirs[0], float(ours[0]), figures)
        figures.same(f"{where} greedy", str(theirs[1]), ours[1])
    elif isinstance(theirs, (list, tuple)):
        figures.same(f"{where} length", len(theirs), len(ours))
        for one, other in zip(theirs, ours, strict=False):
            _compare_answers(where, one, other, figures)
    elif isinstance(theirs, (int, float)):  # lm-eval's sum over no windows is the integer 0
        _near(where, theirs, float(ours), figures)
    else:
        figures.same(where, str(theirs), ours)


def _near(where: str, theirs: float, ours: float, figures: Figures) -> None:
    figures.worst = max(figures.worst, abs(theirs - ours))
    if not abs(theirs - ours) <= figures.tolerance + ROUNDING * abs(theirs):
        figures.differences.append(f"{where}: lm-eval {theirs} ours {ours}")


def _same_values(where: str, theirs: Any, ours: Any, figures: Figures) -> None:
    """Equal to the last digit, but for smooth metrics."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        figures.same(f"{where}'s fields", list(theirs), list(ours))
        for key in theirs.keys() & ours.keys():
            _same_values(f"{where}/{key}", theirs[key], ours[key], figures)
        return
    metric = where.rsplit("/", 1)[-1].split(",")[0].removesuffix("_stderr")
    if (
        (metric in SMOOTH or PROBABILITIES in where)
        and isinstance(theirs, float)
        and isinstance(ours, float)
    ):
        if not abs(theirs - ours) <= 1e-5 * abs(theirs):
            figures.same(where, theirs, ours)
    else:
        figures.same(where, canon.finite(theirs), ours)
