"""What `bench.noise` draws from: the same questions and texts, through every variant of a model.

One honest run in bfloat16 writes the texts. Then each variant gives its log-probability of every
token, by one forward pass: what it would have recorded, had it written the same texts. What a
variant gave is a file of the bench's cache, so that an interrupted command goes on where it was.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import data, variants
from evalkit.base import canon
from evalkit.engine import core
from evalkit.engine import replay as replays
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.suite import SuiteTask
from evalkit.judge.audit import replaying
from evalkit.judge.audit.drawing import Drawn, Name
from evalkit.plan import store as plans
from evalkit.plan.grouping import make_batches
from evalkit.plan.requests.request import Request, Settings
from evalkit.plan.tokenise import Row, Tokenised, tokenise

# Tasks and documents of each; a variant goes through all in half a minute on one core. As many
# documents before these are left out: the audit's limits were chosen by what those showed.
ASKED = (
    (("arc_challenge",), 80),
    (("hellaswag",), 20),
    (("mmlu_formal_logic", "mmlu_astronomy", "mmlu_sociology", "mmlu_marketing"), 6),
    (("bbh_cot_fewshot_navigate", "bbh_cot_fewshot_object_counting"), 12),
)
NEW_TOKENS = 48
POLICY = plans.Policy()
SMALL = replace(POLICY, max_tokens=2048, row_tokens=64, chunk=64, max_slots=3)
FINE_TUNED = "fine-tuned for 20 steps"

Answers = dict[str, dict[str, Any]]  # by part id, as a journal has them
Values = dict[str, list[list[float]]]  # by part id: log-probabilities and margins


@dataclass(frozen=True)
class Variant:
    """Who answers. `honest`: with the record's weights in the record's dtype. `change` is made to a
    loaded model, `around` holds while it computes; `audits`: an auditor's machine may compute
    so. The rest is how evalkit is asked to compute."""

    name: str
    honest: bool
    change: variants.Change | None = None
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    dtype: str = "bfloat16"
    audits: bool = True
    threads: int = 1
    level: str = "tree"
    policy: plans.Policy = POLICY


class Pool:
    """The questions, as drawn samples without answers, and what each variant gave."""

    def __init__(self, model: Model) -> None:
        self.model, self.tokenizer = model, Tokenizer(model)
        self.tokenizer.max_length = int(model.config["max_position_embeddings"])
        self._folder = data.cache() / "noise" / canon.digest([model.sha256(), ASKED])[7:19]
        canon.make_folder(self._folder)
        self.samples: dict[Name, Drawn] = {}
        for row in tokenise(self._questions(), self.tokenizer).rows:
            for target in row.targets:
                name = (target.request.task, target.request.doc_id)
                sample = self.samples.setdefault(name, Drawn(name))
                sample.rows[target.request.id] = Row(row.tokens, (target,))

    def _questions(self) -> list[Request]:
        path = self._folder / "questions.json"
        if not path.is_file():
            found = []
            for tasks, count in ASKED:
                asked = data.suite([SuiteTask(task) for task in tasks], limit=2 * count,
                                   gen_kwargs={"max_gen_toks": NEW_TOKENS})  # fmt: skip
                found += [r for r in data.requests(data.load(asked)) if r.doc_id >= count]
            plain = [
                [r.task, r.doc_id, r.index, r.repeat, r.kind, r.context, r.continuation,
                 r.settings and r.settings.to_json()]
                for r in found
            ]  # fmt: skip
            canon.write_json(path, plain)
        found = []
        for *fields, settings in canon.read_json(path):
            until = settings and {"until": tuple(settings["until"])}
            found.append(Request(*fields, settings and Settings(**settings | until)))
        return found

    def texts(self, variant: Variant) -> Answers:
        """What a variant writes."""
        return self._kept(f"{variant.name}, texts", lambda: self._write(variant))

    def values(self, variant: Variant, texts: Answers) -> Values:
        """A variant's log-probability of every token that is scored or stands in `texts`."""
        return self._kept(variant.name, lambda: self._forward(variant, texts))

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        path = self._folder / f"{name.replace('/', '-')}.json"
        if not path.is_file():
            started = time.process_time()
            canon.write_json(path, make())
            print(f"{name}: {time.process_time() - started:.0f} s of processor time", flush=True)
        return canon.read_json(path)

    def _write(self, variant: Variant) -> Answers:
        found: Answers = {}
        with variant.around():
            engine = self._engine(variant)
            for batch in self._batches(self._rows(written=True), variant):
                found |= engine.execute(batch)
        return found

    def _forward(self, variant: Variant, texts: Answers) -> Values:
        written = [
            row
            for sample in self.samples.values()
            for row in replaying.rows_of(replace(sample, answers=texts))
            if row.targets[0].request.id in texts
        ]
        found: Values = {}
        asked = [row.targets[0].request for row in self._rows(written=True)]
        generated = {each.id: each.settings for each in asked if each.settings is not None}
        with variant.around():
            engine = self._engine(variant)
            for rows in (self._rows(written=False), written):
                for batch in self._batches(rows, variant):
                    for part, each in replays.replay(engine, batch, generated).items():
                        found[part] = [each.logprobs, each.margins]
        return found

    def _rows(self, *, written: bool) -> list[Row]:
        return [
            row
            for sample in self.samples.values()
            for row in sample.rows.values()
            if (row.targets[0].request.kind == "generate_until") is written
        ]

    def _batches(self, rows: list[Row], variant: Variant) -> Iterator[Any]:
        return make_batches(Tokenised(rows), variant.policy, level=variant.level)

    def _engine(self, variant: Variant) -> core.Engine:
        numerics = core.numerics_for(self.model, variant.dtype, "native", variant.threads)
        engine = core.load(self.model, self.tokenizer, numerics, "cpu", level=variant.level)
        if variant.dtype == "float32":  # of the weights as they are stored for bfloat16
            with torch.no_grad():
                for weight in engine.model.parameters():
                    weight.copy_(weight.bfloat16())
        if variant.change:
            with torch.set_grad_enabled(variant.name == FINE_TUNED):
                variant.change(engine.model)
        return engine
