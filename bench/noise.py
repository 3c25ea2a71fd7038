"""What an audit catches, and how often it is wrong: `python -m bench.noise` writes docs/audit.md.

A small model is trained, evaluated on a limited `core`, and audited: that gives the cost. Then it
is evaluated on the demo's tasks, and the same samples are answered again by honest variants (other
threads, levels, budgets, a lower precision said to be one) and by dishonest ones (weights rounded
to int8, one layer changed, another model of the same shape, another precision than the record says,
single answers altered), and each is audited as if it were the record. Detection against the number
of samples is by drawing from those judged.
"""

import copy
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import data
from bench.report_noise import Outcome, page
from evalkit import audit, canon, scored
from evalkit import model as models
from evalkit import plan as plans
from evalkit.audit import drawing, replaying
from evalkit.audit.drawing import Drawn
from evalkit.events import Events

DOC = data.ROOT / "docs" / "audit.md"
LIMIT, AUDITED = 20, 100  # of `core`: documents a task, samples
SAMPLES = 160  # of the demo's 210
SEED = 0
ALTERED = (0.01, 0.05)
CHANGED = 0.02  # of a layer's weights, relative to their own spread


def talker() -> Path:
    """The model: trained once, for seconds, to answer and stop."""
    from tests import models as made

    folder = data.cache() / "talker"
    if not (folder / "config.json").is_file():
        making = folder.with_name(".talker.making")
        shutil.rmtree(making, ignore_errors=True)
        made.talker(making)
        making.rename(folder)
    return folder


class Bench:
    """A finished run, its drawn samples, and engines to answer or replay them with."""

    def __init__(self, model: Path, run: Path) -> None:
        self.folder, self.events = run, Events()
        self.model = models.resolve(str(model))
        self.plan = plans.Plan(run)
        self.run = scored.read(run)
        self.record: dict[str, Any] = self.run.record or {}
        chosen = drawing.draw(drawing.names(self.run), drawing.digest(run), SEED, SAMPLES)
        self.engine, tokenizer = self.load()
        self.drawn = drawing.gather(run, self.run, self.plan, tokenizer, chosen)

    def load(self, dtype: str = "float32", threads: int = 1, level: str | None = None) -> Any:
        """An engine and its tokenizer."""
        from evalkit.engine import core
        from evalkit.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.model)
        tokenizer.max_length = self.plan.body["max_length"]
        numerics = core.numerics_for(self.model, dtype, "native", threads)
        level = level or self.plan.body["level"]
        return core.load(self.model, tokenizer, numerics, "cpu", level=level), tokenizer

    def answers(self, engine: Any, policy: plans.Policy | None = None) -> dict[str, Any]:
        """The drawn samples' answers, computed anew, by part id."""
        from evalkit.batching import make_batches
        from evalkit.tokenise import Tokenised

        rows = [row for sample in self.drawn for row in sample.rows.values()]
        policy = policy or plans.Policy(**self.plan.body["policy"])
        found: dict[str, Any] = {}
        for batch in make_batches(Tokenised(rows), policy, level=engine.level):
            found |= engine.execute(batch)
        return found

    def judge(
        self, name: str, answers: dict[str, Any], *, honest: bool, engine: Any = None
    ) -> Outcome:
        """Audit these answers as if they were the record's."""
        failed, errors = [], []
        engine = engine or self.engine
        fresh = [Drawn(s.name, s.rows, {p: answers[p] for p in s.rows}) for s in self.drawn]
        result = replaying.replay(engine, fresh, self.plan, self.model, self.events)
        for sample in fresh:
            failed.append(bool(sample.problems))
            errors.append(result.judged.errors.get(sample.name, []))
        outcome = Outcome(name, honest, failed, errors, result.noise)
        print(f"{name}: {sum(failed)} of {len(failed)} samples, {outcome.spread:.2f} scales")
        return outcome


def variants(bench: Bench) -> Iterator[Outcome]:
    """Every variant's audit."""
    own = bench.answers(bench.engine)
    yield bench.judge("the same again", own, honest=True)
    engine, _ = bench.load(threads=2)
    yield bench.judge("2 threads", bench.answers(engine), honest=True)
    for level in ("B", "C"):
        engine, _ = bench.load(level=level)
        yield bench.judge(f"level {level}", bench.answers(engine), honest=True)
    engine, _ = bench.load()
    small = replace(plans.Policy(), max_tokens=2048, row_tokens=64, chunk=64, max_slots=3)
    yield bench.judge("smaller budgets", bench.answers(engine, small), honest=True)
    low, _ = bench.load(dtype="bfloat16")
    half = bench.answers(low)
    lower, _ = bench.load(dtype="bfloat16", level="C")
    yield bench.judge("bf16, audited in bf16 at level C", half, honest=True, engine=lower)
    yield bench.judge("bf16 at smaller budgets, likewise", bench.answers(low, small),
                      honest=True, engine=lower)  # fmt: skip
    full, _ = bench.load()
    yield bench.judge("float32 said to be bf16", own, honest=False, engine=lower)
    yield bench.judge("bf16 said to be float32", half, honest=False, engine=full)
    for name, change in CHANGES.items():
        other, _ = bench.load()
        change(other.model)
        yield bench.judge(f"{name}, float32", bench.answers(other), honest=False, engine=full)
        other, _ = bench.load(dtype="bfloat16")
        change(other.model)
        yield bench.judge(f"{name}, bf16", bench.answers(other), honest=False, engine=lower)
    for share in ALTERED:
        yield bench.judge(f"{share:.0%} of answers altered", altered(bench, own, share),
                          honest=False, engine=full)  # fmt: skip


def _quantised(model: Any) -> None:
    """Round every matrix of the layers to int8, a scale for each output."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.dim() == 2:
                scale = weight.abs().amax(dim=1, keepdim=True) / 127
                weight.copy_((weight / scale).round() * scale)


def _one_layer(model: Any) -> None:
    """Add noise to the last layer's matrices."""
    import torch

    source = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in model.model.layers[-1].parameters():
            if weight.dim() == 2:
                shift = torch.randn(weight.shape, generator=source).to(weight.dtype)
                weight.add_(CHANGED * weight.std() * shift)


def _another(model: Any) -> None:
    """Weights of another model of the same shape: these ones, shuffled within each matrix."""
    import torch

    source = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            order = torch.randperm(weight.numel(), generator=source)
            weight.copy_(weight.flatten()[order].view_as(weight))


CHANGES: dict[str, Callable[[Any], None]] = {
    "weights rounded to int8": _quantised,
    f"one layer changed by {CHANGED:.0%}": _one_layer,
    "another model of the same shape": _another,
}


def altered(bench: Bench, answers: dict[str, Any], share: float) -> dict[str, Any]:
    """These answers with those of some samples made others: a choice's log-likelihood put just
    above the best one's, a text's last word replaced by another text's."""
    source = random.Random(SEED)
    found = copy.deepcopy(answers)
    chosen = source.sample(bench.drawn, max(1, round(share * len(bench.drawn))))
    texts = [a for a in answers.values() if "text" in a]
    for sample in chosen:
        parts = sorted(sample.rows)
        if "text" in found[parts[0]]:
            other = source.choice(texts)
            found[parts[0]] |= {key: other[key] for key in ("text", "tokens", "logprobs",
                                                            "margins", "stop")}  # fmt: skip
        else:
            values = [canon.number(found[part]["loglikelihood"]) for part in parts]
            worst = parts[values.index(min(values))]
            found[worst]["loglikelihood"] = max(values) + 1e-3
    return found


def main() -> None:
    """Train, run, audit, write."""
    with data.served():
        import tempfile

        from evalkit import run
        from evalkit.prepare import Options

        model = talker()
        with tempfile.TemporaryDirectory() as folder:
            asked = Options(model=str(model), limit=LIMIT, out=Path(folder))
            cost = _cost(run.evaluate(asked, Events(), workers=1), model)
            asked = Options(model=str(model), suite="demo", out=Path(folder))
            made = run.evaluate(asked, Events(), workers=1)
            outcomes = list(variants(Bench(model, made)))
    canon.write_atomic(DOC, page(outcomes, cost, SAMPLES))


def _cost(run: Path, model: Path) -> str:
    started = time.monotonic()
    asked = audit.Asked(samples=AUDITED, seed=SEED, model=str(model))
    found = audit.audit(run, asked, Events())
    print("\n".join(found.lines()))
    assert found.run_seconds, "a run of ours says how long it took"
    return (
        f"Of `core` with {LIMIT} documents a task, {found.of:,} samples, {found.samples} were"
        f" replayed in {found.seconds:.1f} s, where executing the run had taken"
        f" {found.run_seconds:.1f} s:"
        f" {found.run_seconds / found.seconds:.0f} times that. Verifying the record first, loading"
        f" the model and measuring the noise made it {time.monotonic() - started:.0f} s in all."
    )


if __name__ == "__main__":
    main()
