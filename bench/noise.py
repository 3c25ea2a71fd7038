"""What an audit catches, and how often it is wrong: `python -m bench.noise MODEL` writes
docs/audit.md.

A real model (a folder or a name) answers real questions once in bfloat16, as a record would have
it. The same questions are answered by honest variants, which compute otherwise, and by dishonest
ones, whose weights are others (`bench.variants`). Each variant's answers are audited as if they
were the record; how often an audit of N samples fails is by drawing N of those judged, with
replacement. An hour on one core, and a part of it again where it was stopped (`bench.pool`).
"""

import copy
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import data, variants
from bench.pool import FINE_TUNED, SMALL, Answers, Pool, Values, Variant
from bench.report_noise import TUNED_ON, Outcome, page
from evalkit.base import canon
from evalkit.inputs.models import model as models
from evalkit.judge.audit import replaying
from evalkit.judge.audit.drawing import Drawn
from evalkit.judge.audit.judging import Judge
from evalkit.judge.audit.noise import Rounding

DOC = data.ROOT / "docs" / "audit.md"
SEED = 0
ALTERED = (0.01, 0.05)
RECORD = Variant("bf16, as audited", honest=True)
EXACT = Variant("float32 said to be bf16", honest=False, dtype="float32")


@dataclass(frozen=True)
class Replayed:
    """A kept replay, as the engine gives it."""

    logprobs: list[float]
    margins: list[float]

    @property
    def total(self) -> float:
        """The log-likelihood of the whole answer."""
        return canon.total(self.logprobs)


def listed(pool: Pool) -> list[Variant]:
    """Every variant but the record's own and float32."""
    rows = [next(iter(sample.rows.values())) for sample in pool.samples.values()]
    texts = [[int(token) for token in row.tokens] for row in rows[:TUNED_ON]]
    layer = f"one layer changed by {variants.LAYER_CHANGE:.0%}"
    return [
        Variant("2 threads", True, threads=2),
        Variant("smaller budgets", True, policy=SMALL),
        Variant("level prefix", True, level="prefix"),
        Variant("sums in another order", True, variants.split_sums),
        Variant("sums of rounded parts", True, variants.rounded_sums),
        Variant("norms and activations in one kernel", True, variants.fused),
        Variant("attention by plain products", True, around=variants.plain_attention),
        Variant("attention in float32", True, around=variants.float32_attention),
        Variant("logits in float32", True, variants.float32_logits, audits=False),
        Variant("int8, a scale for each output", False, variants.quantised(8)),
        Variant("4 bits, groups of 32, stored as bf16", False, variants.quantised(4, 32)),
        Variant(layer, False, variants.one_layer),
        Variant("a LoRA merged in", False, variants.merged_lora),
        Variant(FINE_TUNED, False, variants.fine_tuned(texts)),
    ]


class Bench:
    """A pool whose record is written, and what audits of it make of other answers."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.texts = pool, pool.texts(RECORD)
        self.exact = self._replayed(pool.values(EXACT, self.texts))
        self.own = self.rounding(RECORD)

    def rounding(self, auditor: Variant) -> Rounding:
        """The rounding that an auditor's machine measures."""
        rounded = self._replayed(self.pool.values(auditor, self.texts))
        return replaying.measured(self.samples(self.texts), rounded, self.exact)

    def samples(self, answers: Answers) -> list[Drawn]:
        """The pool's samples with these answers."""
        return [
            Drawn(sample.name, sample.rows, {p: answers[p] for p in sample.rows if p in answers})
            for sample in self.pool.samples.values()
        ]  # fmt: skip

    def answers(self, values: Values) -> Answers:
        """The answers that a variant with these values records."""
        found: Answers = {}
        for part, each in self._replayed(values).items():
            if part in self.texts:
                found[part] = self.texts[part] | {"logprobs": each.logprobs}
            else:
                greedy = min(each.margins) >= 0
                found[part] = {"loglikelihood": each.total, "is_greedy": greedy}
        return found

    def judge(
        self, variant: Variant, answers: Answers, values: Values, rounding: Rounding
    ) -> Outcome:
        """Audit these answers as if they were the record's."""
        drawn = self.samples(answers)
        written = iter(sample.answers[part] for sample in drawn for part in sorted(sample.answers)
                       if "text" in sample.answers[part])  # fmt: skip

        def decode(*_: object) -> tuple[dict[str, Any], str]:
            answer = next(written)  # texts stay as they were written
            return answer, answer["stop"]

        judged = Judge(rounding, decode)
        for sample in drawn:
            judged.sample(sample, self.exact)
        failed = [bool(sample.problems) for sample in drawn]
        units = [judged.values[sample.name] for sample in drawn]
        margins = [margin for part in self.texts for margin in values[part][1]]
        return Outcome(variant.name, variant.honest, failed, units, rounding, margins)

    def _replayed(self, values: Values) -> dict[str, Any]:
        return {part: Replayed(*each) for part, each in values.items()}

    def outcomes(self) -> Iterator[Outcome]:
        """Every variant's audit."""
        every = [RECORD, EXACT, *listed(self.pool)]
        machines = [self.rounding(v) for v in every if v.honest and v.audits]
        least = min(machines, key=lambda rounding: rounding.logit)
        for variant in every:
            values = self.pool.values(variant, self.texts)
            answers = self.answers(values)
            outcome = self.judge(variant, answers, values, self.own)
            if variant.honest:
                elsewhere = self.judge(variant, answers, values, least)
                outcome = replace(outcome, elsewhere=elsewhere)
            yield outcome
        values = self.pool.values(RECORD, self.texts)
        for share in ALTERED:
            variant = Variant(f"{share:.0%} of answers altered", honest=False)
            yield self.judge(variant, self.altered(self.answers(values), share), values, self.own)

    def altered(self, answers: Answers, share: float) -> Answers:
        """These answers with those of some samples made others: a choice's log-likelihood put just
        above the best one's, a text's tokens replaced by another text's."""
        source = random.Random(SEED)
        found = copy.deepcopy(answers)
        samples = list(self.pool.samples.values())
        for sample in source.sample(samples, max(1, round(share * len(samples)))):
            parts = sorted(sample.rows)
            if "text" in found[parts[0]]:
                values = found[parts[0]]["logprobs"]
                found[parts[0]]["logprobs"] = [each - 1.0 for each in values]
            else:
                scores = [canon.number(found[part]["loglikelihood"]) for part in parts]
                worst = parts[scores.index(min(scores))]
                found[worst]["loglikelihood"] = max(scores) + 1e-3
        return found


def main() -> None:
    """Answer, audit, write."""
    with data.served():
        bench = Bench(Pool(models.resolve(sys.argv[1])))
        outcomes = list(bench.outcomes())
    for outcome in outcomes:
        print(f"{outcome.name}: {outcome.whole()}")
    canon.write_atomic(DOC, page(outcomes, len(bench.pool.samples), Path(sys.argv[1]).name))


if __name__ == "__main__":
    main()
