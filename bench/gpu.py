"""`make bench-gpu`: the engine on one GPU in 12 minutes, on random weights of an 8B's shape, bf16.

    python -m bench.gpu [--out FOLDER] [--minutes 12] [--smoke] [PART ...]

Needs torch, transformers and this repository: no lm-eval, no benchmark, no network. One model is
built. Prompts are random tokens as long as `core`'s (bench/figures/lengths.json), and lm-eval's
side is `bench.baseline`. Each result is a line on the screen and in FOLDER/results.jsonl as soon as
it is there, and FOLDER/results.md shows all of them, so that a machine which goes away takes only
what it was measuring. Parts, in this order: `check` (the first minute, `make gpu-check`),
`decode`, `bbh`, `hellaswag`, `mmlu`, `baseline` (lm-eval's way), `laws`, `precise`. A part that no
time is left for is left out, and said to be. `--smoke` runs everything on the CPU on a tiny shape.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import checks, gpu_check, lengths, rates, report_gpu, shapes
from bench.lengths import Leaf
from bench.shapes import Shape
from evalkit.base import canon
from evalkit.plan import memory, store
from evalkit.plan.batch import Batch, Policy


@dataclass(frozen=True)
class Scale:
    """How much is measured: a model's shape, tokens of an answer (a real model's chain of thought
    has 130 to 160), documents of a leaf, numbers of slots, lm-eval's batch sizes, seconds a part,
    and the policy's class of GPUs (0: a CPU's)."""

    shape: Shape
    new_tokens: int = 160
    documents: int = 400
    checked: int = 2
    slots: tuple[int, ...] = (64, 256)
    sizes: tuple[int, ...] = (4, 64)
    seconds: float = 45.0
    memory: int = 0


SMOKE = Scale(Shape(shapes.TINY, "cpu", "bfloat16"), 6, 2, 1, (1, 4), (4, 8), 0.5)


def full() -> Scale:
    """The scale of the GPU that is here."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    shape = Shape(shapes.LLAMA_8B, "cuda:0", "bfloat16")
    return Scale(shape, memory=memory.class_of(total) or memory.CLASSES[0])


@dataclass
class Session:
    """One model, and where its results go. `until`: when time is up, by the monotonic clock."""

    scale: Scale
    out: Path | None
    until: float = float("inf")
    results: list[dict[str, Any]] = field(default_factory=list)
    engine: Any = None

    def tell(self, name: str, **figures: Any) -> None:
        """A result: on the screen at once, and on the disk."""
        self.results.append({"name": name, **figures})
        print(report_gpu.line(self.results[-1]), flush=True)
        if self.out:
            lines = (canon.dumps(canon.finite(each)) + "\n" for each in self.results)
            canon.write_atomic(self.out / "results.jsonl", "".join(lines))
            canon.write_atomic(self.out / "results.md", report_gpu.text(self.results) + "\n")

    def build(self) -> None:
        """Make the model, once."""
        started = time.perf_counter()
        self.engine = shapes.engine(shapes.build(self.scale.shape), self.scale.shape)
        rates.wait(self.scale.shape.device)
        self.tell("build", seconds=time.perf_counter() - started)

    @property
    def policy(self) -> Policy:
        """The policy that a plan for this GPU would have."""
        if not self.scale.memory:
            return Policy()
        needs = gpu_check.needs(self.scale.shape)
        return memory.require(needs, self.scale.memory, 1, "the shape").policy

    def batches(self, chosen: Sequence[Leaf], documents: int | None) -> list[Batch]:
        """The batches of some leaf tasks, planned as for this GPU."""
        size, new = self.scale.shape.config["vocab_size"], self.scale.new_tokens
        made = lengths.tokenised(chosen, size, new, documents)
        return list(store.make_batches(made, self.policy, level="tree"))


def leaves(member: str) -> list[Leaf]:
    """The leaf tasks of one of `core`'s members."""
    return [leaf for leaf in lengths.read() if leaf.name.startswith(member)]


def decode(session: Session) -> None:
    """Decoding by the number of slots."""
    (leaf,) = (one for one in leaves("bbh") if one.name.endswith("word_sorting"))
    scale = session.scale
    for slots in scale.slots:
        found = rates.decoding(session.engine, leaf, scale.shape, slots, scale.new_tokens)
        session.tell("decode", **found)


def _member(session: Session, name: str, chosen: Sequence[Leaf]) -> None:
    """Some of a member's documents, and how long all of them would take at that rate."""
    scale = session.scale
    batches = session.batches(chosen, scale.documents)
    session.engine.execute(batches[0])  # loads kernels
    found = rates.execute(session.engine, batches, scale.shape, scale.seconds)
    asked = sum(min(leaf.documents, scale.documents) for leaf in chosen)
    whole = sum(leaf.documents for leaf in leaves(name))
    session.tell(name, **found | {"projected": found["projected"] * whole / asked})


def bbh(session: Session) -> None:
    """Two of BBH's leaf tasks: the one with the longest prompts and one in the middle."""
    chosen = sorted(leaves("bbh"), key=lambda leaf: leaf.prefix)
    _member(session, "bbh", [chosen[-1], chosen[len(chosen) // 2]])


def hellaswag(session: Session) -> None:
    """HellaSwag: four continuations of some length for each document."""
    _member(session, "hellaswag", leaves("hellaswag"))


def mmlu(session: Session) -> None:
    """MMLU: one token for each choice."""
    _member(session, "mmlu", leaves("mmlu")[::4])


def baseline(session: Session) -> None:
    """lm-eval's way with the same weights, at a small and a large batch."""
    scale = session.scale
    with checks.plain(session.engine):
        for name in ("hellaswag", "bbh"):
            batches = session.batches(leaves(name)[:1], scale.documents)
            for size in scale.sizes:
                found = rates.like_lm_eval(
                    session.engine.model, batches, scale.shape, size, scale.seconds / 3
                )
                session.tell("lm-eval", member=name, **found)


def laws(session: Session, profile: str = "native") -> None:
    """Correctness against plain forwards in float32, and the laws."""
    chosen = [leaf for member in lengths.CORE for leaf in leaves(member)[:2]]
    batches = session.batches(chosen, session.scale.checked)
    exact = checks.exact_copy(session.engine.model)
    found = checks.errors(session.engine, batches, exact, shapes.Stub())
    session.tell("laws", profile=profile, **found)


def precise(session: Session) -> None:
    """The same for the profile that computes in float32; it changes the model, so it is last."""
    import torch

    exact = checks.exact_copy(session.engine.model)
    session.engine = shapes.engine(session.engine.model, session.scale.shape, "precise")
    chosen = [leaf for member in lengths.CORE for leaf in leaves(member)[:1]]
    batches = session.batches(chosen, session.scale.checked)
    found = checks.errors(session.engine, batches, exact, shapes.Stub())
    session.tell("laws", profile="precise", **found)
    del exact
    torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Session], None]] = {
    "check": gpu_check.run, "decode": decode, "bbh": bbh, "hellaswag": hellaswag, "mmlu": mmlu,
    "baseline": baseline, "laws": laws, "precise": precise,
}  # fmt: skip


def run(session: Session, parts: Sequence[str]) -> None:
    """The parts in order, as long as there is time."""
    session.build()
    for name in parts:
        if time.monotonic() > session.until:
            session.tell("left out", part=name)
            continue
        started = time.perf_counter()
        PARTS[name](session)
        session.tell("part", part=name, seconds=time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; every result is printed and kept as it comes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=12.0, help="no part begins later")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape on the CPU")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"no part {unknown[0]}; choose from {', '.join(PARTS)}")
    if not given.smoke and not gpu_check.is_here():
        sys.exit("bench.gpu: torch sees no NVIDIA GPU; --smoke tries everything on the CPU")
    if given.out:
        canon.make_folder(given.out)
    until = time.monotonic() + 60 * given.minutes - 45
    run(Session(SMOKE if given.smoke else full(), given.out, until), given.parts or list(PARTS))


if __name__ == "__main__":
    main()
