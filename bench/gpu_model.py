"""How long `core` would take on GPUs: modelled minutes from step costs and lengths, not measured.

    python -m bench.gpu_model [RESULTS.jsonl]      # writes docs/gpu.md's table

What has to be computed is planned for real (`core`'s lengths, the policy of the class of GPUs) and
kept in bench/figures/gpu-work.json; `--plan` makes it again, in minutes. What that costs is stated
here, or taken from what `python -m bench.gpu --out FOLDER` measured: the share of the peak that a
scoring pass reaches, and a decode step's time beyond reading the weights and the keys. So one short
measurement says how far away a goal is. Everything it prints is marked as modelled.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import gpu_memory, lengths, tables
from evalkit.base import canon
from evalkit.plan import memory, store

WORK = tables.FIGURES / "gpu-work.json"
NEW_TOKENS = 160  # of an answer
MODELS = ("Llama-3.1-8B", "Qwen3-32B", "Llama-3.1-70B")
COUNTS = (1, 2, 4, 8)
CLASS = 141  # an H200
PLANNED = "Llama-3.1-8B"  # whose policy the work is planned by


@dataclass(frozen=True)
class Costs:
    """What a GPU does, stated or measured: FLOP/s at the peak of matrix products, bytes/s of its
    memory, the share of the peak that scoring and prefilling reach, seconds of a decode step beyond
    reading weights and keys, texts that decode at once (a plan may allow fewer), and seconds for
    planning, loading and scoring that nothing overlaps."""

    peak: float = 7.9e14
    bandwidth: float = 4.3e12
    share: float = 0.62
    step: float = 0.004
    slots: int = 256
    host: float = 50.0


STATED = Costs()
# What today's engine was estimated at before the GPU's policy and the new decode step.
BEFORE = Costs(share=0.42, step=0.034, slots=64, host=116.0)


@dataclass(frozen=True)
class Work:
    """What `core` makes one worker compute: tokens of scoring passes and of prompts, texts, the
    tokens of an answer, and the mean tokens of a text with its trunk while it grows."""

    scored: int
    prompts: int
    texts: int
    new: int
    kept: int


def planned() -> Work:
    """The work, by `core`'s lengths and the policy of the class."""
    needs = gpu_memory.needs(PLANNED)
    policy = memory.require(needs, CLASS, 1, PLANNED).policy
    scored = prompts = texts = kept = 0
    for leaf in lengths.read():
        made = lengths.tokenised([leaf], 128_256, NEW_TOKENS)
        last = None
        for batch in store.make_batches(made, policy, level="tree"):
            tokens = len(batch.rows) * batch.width
            if batch.trunk is not None and batch.trunk.id != last:
                last, tokens = batch.trunk.id, tokens + len(batch.trunk.tokens)
            if batch.settings is None:
                scored += tokens
            else:
                prompts, texts = prompts + tokens, texts + len(batch.targets)
                kept += sum(target.start for target in batch.targets)
    return Work(scored, prompts, texts, NEW_TOKENS, kept // max(texts, 1) + NEW_TOKENS // 2)


def minutes(name: str, gpus: int, work: Work, costs: Costs) -> float | None:
    """Modelled minutes of `core` for a model on so many GPUs of the class; None where it does not
    fit. Groups of the fewest GPUs that hold it share the work; within a group as many batches are
    under way as there are stages, so all of its GPUs compute."""
    needs = gpu_memory.needs(name)
    found = memory.fit(needs, CLASS)
    if found is None or gpus < found.gpus:
        return None
    parameters = gpu_memory.MODELS[name][1]
    passes = 2.0 * parameters * (work.scored + work.prompts) / (costs.peak * costs.share)
    slots = min(costs.slots, found.policy.slots(work.kept + 1024))
    steps = work.texts * work.new / slots
    read = (needs.weights + slots * work.kept * needs.cache) / costs.bandwidth
    decoding = steps * (read + costs.step * found.gpus)
    groups = gpus // found.gpus
    lanes = found.gpus * groups
    return (passes / lanes + decoding / lanes + costs.host) / 60


def measured(results: Sequence[dict[str, Any]], costs: Costs) -> Costs:
    """Costs with what `bench.gpu` measured in place of what was stated, as far as it did."""
    found = costs
    for one in results:
        if one["name"] == "matmul":
            found = replace(found, peak=float(one["peak_flops"]))
        if one["name"] == "pass" and one["share_of_peak"] > 0:
            found = replace(found, share=float(one["share_of_peak"]))
        if one["name"] == "step" and one["slots"] == max(
            r["slots"] for r in results if r["name"] == "step"
        ):
            needs = gpu_memory.needs(PLANNED)
            beyond = float(one["seconds"]) - needs.weights / found.bandwidth
            found = replace(found, step=max(beyond, 0.0), slots=int(one["slots"]))
    return found


def text(work: Work, costs: Costs, origin: str) -> str:
    """The table; every figure of it is modelled."""
    head = [f"modelled minutes of `core`, bf16, GPUs of {CLASS} GB", *map(str, COUNTS)]
    sides = [("", costs)] + ([(", before", BEFORE)] if costs == STATED else [])
    rows = [
        [name + note, *(_shown(minutes(name, count, work, side)) for count in COUNTS)]
        for name in MODELS
        for note, side in sides
    ]
    told = (
        f"Modelled, not measured, from costs that were {origin}: {costs.peak / 1e12:.0f} TFLOP/s at"
        f" the peak, of which passes reach {costs.share:.0%}; {costs.bandwidth / 1e12:.1f} TB/s;"
        f" {1000 * costs.step:.1f} ms a decode step beyond reading weights and keys; at most"
        f" {costs.slots} texts at once; {costs.host:.0f} s that nothing overlaps. Work:"
        f" {work.scored:,} tokens scored, {work.prompts:,} of prompts, {work.texts:,} answers of"
        f" {work.new} tokens."
    )
    return f"{tables.table(head, rows)}\n\n{told}"


def _shown(found: float | None) -> str:
    return "does not fit" if found is None else f"{found:.1f}"


def work() -> Work:
    """The work that is kept."""
    found: dict[str, int] = canon.read_json(WORK)
    return Work(**found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; from stated costs it goes into docs/gpu.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, help="what bench.gpu left")
    parser.add_argument("--plan", action="store_true", help="plan core's work again")
    given = parser.parse_args(arguments)
    if given.plan:
        canon.write_json(WORK, asdict(planned()))
    if given.results:
        lines = given.results.read_text("utf-8").splitlines()
        print(text(work(), measured([json.loads(each) for each in lines], STATED), "measured"))
        return
    made = text(work(), STATED, "stated")
    tables.write("bench-gpu-model", made, gpu_memory.PAGE)
    print(made)


if __name__ == "__main__":
    main()
