"""`make bench-gpu`: the engine on one GPU, on random weights in the shape of Llama-3.1-8B, in bf16.

    python -m bench.gpu [--smoke] [PART ...]

Needs torch, transformers and this repository, not lm-eval, no benchmark and no network: prompts are
random tokens as long as `core`'s (bench/figures/lengths.json), and lm-eval's side is
`bench.baseline`. Parts: `checks` (correctness in bf16 and `precise`, the laws), `decode` (tokens a
second by slots), and `core`'s members, each wholly or for five minutes. A part's figures are kept
in bench/figures/bench-gpu.json as it ends, so parts can be run one by one; the tables go into
docs/speed.md. `--smoke` runs everything on the CPU in seconds, on a tiny shape, and
only prints.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import checks, lengths, passes, rates, report_gpu, shapes, tables
from bench.lengths import CORE, Leaf
from bench.shapes import Shape
from evalkit.plan import store
from evalkit.plan.batch import Batch

PARTS = ("checks", "decode", *CORE)


@dataclass(frozen=True)
class Scale:
    """How much is measured: a model's shape, tokens of an answer (a real model's chain of thought
    has 130 to 160), documents of a leaf, numbers of slots, and lm-eval's batch sizes."""

    shape: Shape
    new_tokens: int = 160
    documents: int | None = None
    checked: int = 2  # documents of each checked leaf
    slots: tuple[int, ...] = (1, 4, 16, 32, 64, 128, 256)
    sizes: tuple[int, ...] = (4, 16, 64)
    seconds: float = 60.0


FULL = Scale(Shape(shapes.LLAMA_8B, "cuda:0", "bfloat16"))
SMOKE = Scale(Shape(shapes.TINY, "cpu", "bfloat16"), 6, 2, 2, (1, 4), (4, 8), 0.5)


def leaves(member: str) -> list[Leaf]:
    """The leaf tasks of one of `core`'s members."""
    return [leaf for leaf in lengths.read() if leaf.name.startswith(member)]


def planned(chosen: Sequence[Leaf], scale: Scale, documents: int | None) -> list[Batch]:
    """Their batches."""
    made = lengths.tokenised(chosen, scale.shape.config["vocab_size"], scale.new_tokens, documents)
    return list(store.make_batches(made, store.Policy(), level="A"))


def check(scale: Scale) -> dict[str, Any]:
    """Correctness in the weights' dtype and under `precise`, and the laws in both."""
    chosen = [leaf for member in CORE for leaf in leaves(member)[:2]]
    batches = planned(chosen, scale, scale.checked)
    weights = shapes.build(scale.shape)
    exact = checks.exact_copy(weights)
    stub = shapes.Stub()
    found = {}
    for profile in ("native", "precise"):
        engine = shapes.engine(weights, scale.shape, profile)
        found[profile] = checks.errors(engine, batches, exact, stub)
    return found


def decode(scale: Scale) -> dict[str, Any]:
    """Decoding by the number of slots."""
    engine = shapes.engine(shapes.build(scale.shape), scale.shape)
    (leaf,) = (one for one in leaves("bbh") if one.name.endswith("word_sorting"))
    new = scale.new_tokens
    found = [rates.decoding(engine, leaf, scale.shape, slots, new) for slots in scale.slots]
    return {"matmul_peak_flops": rates.matmul_peak(scale.shape), "slots": found}


def member(scale: Scale, name: str) -> dict[str, Any]:
    """One of `core`'s members: all of it by evalkit, some of it as lm-eval does it."""
    engine = shapes.engine(shapes.build(scale.shape), scale.shape)
    batches = planned(leaves(name), scale, scale.documents)
    engine.execute(batches[0])  # loads kernels
    ours = rates.execute(engine, batches, scale.shape, 5 * scale.seconds)
    with checks.plain(engine):
        theirs = [
            rates.like_lm_eval(engine.model, batches, scale.shape, size, scale.seconds)
            for size in scale.sizes
        ]
    return {"evalkit": ours, "lm-eval": theirs}


def run(scale: Scale, parts: Sequence[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """Measure the parts; `keep` is given the figures after each."""
    for part in parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        works = {"checks": check, "decode": decode}
        made = works[part](scale) if part in works else member(scale, part)
        keep({part: made})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and without --smoke publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--smoke", action="store_true", help="a tiny shape on the CPU")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"no part {unknown[0]}; choose from {', '.join(PARTS)}")
    scale = SMOKE if given.smoke else FULL
    path = tables.FIGURES / "bench-gpu.json"
    figures: dict[str, Any] = {} if given.smoke else _kept(path)

    def keep(made: dict[str, Any]) -> None:
        figures.update(made, machine=tables.machine(), gpu=report_gpu.gpu(scale.shape.device))
        figures["shape"] = passes.parameters(scale.shape.config)
        if not given.smoke:
            tables.publish("bench-gpu", report_gpu.text(figures), figures)

    run(scale, given.parts or PARTS, keep)
    print(report_gpu.text(figures))


def _kept(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


if __name__ == "__main__":
    main()
