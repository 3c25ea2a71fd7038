"""An engine that computes nothing: its answers are made of a hash of the batch.

What is left of a run's time and memory is what evalkit itself costs.
"""

import hashlib
import math
import random
from pathlib import Path
from typing import Any

from bench.synthetic import NEW_TOKENS
from evalkit.base.events import Events
from evalkit.base.machine import stamp
from evalkit.plan.store import Batch, Plan
from evalkit.record import journal
from evalkit.run import folder, telemetry
from evalkit.run.processes import worker
from tests.models import COMMON

Answers = dict[str, dict[str, Any]]


class Engine:
    """Answers a batch at once, in the form and about the length of real answers."""

    last_split = 0

    def execute(self, batch: Batch) -> Answers:
        """The answer of each target; a batch's id covers all that an engine sees of it."""
        source = random.Random(hashlib.sha256(batch.id.encode()).digest())
        if batch.settings:
            return {target.id: _text(source) for target in batch.targets}
        return {
            target.id: _loglikelihood(source, len(batch.tokens_of(target)) - target.start)
            for target in batch.targets
        }


def _loglikelihood(source: random.Random, tokens: int) -> dict[str, Any]:
    value = -1 - 19 * source.random()  # never the likeliest: of one document's choices, one may be
    return {"loglikelihood": value, "is_greedy": False, "num_tokens": tokens}


def _text(source: random.Random) -> dict[str, Any]:
    """A chain of thought with its answer, cut off where it is too long."""
    size = min(source.randint(NEW_TOKENS // 4, NEW_TOKENS + 20), NEW_TOKENS)
    words = source.choices(COMMON, k=size - 6)
    end = f" So the answer is {words[0]}." if size < NEW_TOKENS else ""
    chances = [0.4 + 0.5 * source.random() for _ in range(size)]  # the runner-up has half the rest
    return {
        "text": " ".join(words) + end,
        "tokens": [source.randrange(1000) for _ in range(size)],
        "logprobs": [math.log(chance) for chance in chances],
        "margins": [math.log(chance / ((1 - chance) / 2)) for chance in chances],
        "stop": "stop_string" if end else "length",
    }


def work(where: Path) -> None:
    """Answer a planned run's batches, one after another, into its journal, with the events that a
    record is made from."""
    run, plan, engine, events = folder.read(where), Plan(where), Engine(), Events()
    segment, hardware = worker.segment_name(), {"device": "cpu", "gpu": [], "cuda": None}
    events.open(where / "events" / f"{segment}.jsonl")
    events.log("segment.start", segment=segment, **stamp.segment_start(hardware))
    events.log("environment", **stamp.environment(hardware))
    writer = journal.Writer(where / "journal", run.body["ids"]["run"], segment)
    span = telemetry.Span()
    for batch in plan.entries:
        writer.append(batch, engine.execute(plan.batch(batch)), split=engine.last_split)
    writer.close()
    events.log("executed", tokens=None, **span.taken())
    events.log("segment.stop", segment=segment)
    events.close()
