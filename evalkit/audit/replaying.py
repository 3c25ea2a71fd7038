"""Drawn samples through the engine: recorded answers replayed, and the noise measured on them.

Rows are packed as the plan's are, so that what prompts share is computed once here too.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit import architecture, plan, scored, tokenise
from evalkit.audit import drawing, judging, loading
from evalkit.audit import noise as noises
from evalkit.audit.drawing import Drawn
from evalkit.audit.judging import Judged
from evalkit.audit.noise import Noise
from evalkit.batch import Batch
from evalkit.batching import make_batches
from evalkit.events import Events
from evalkit.model import Model
from evalkit.request import Request
from evalkit.tokenise import Target, Tokenised

MEASURED = 24  # answers that the noise is measured on


@dataclass(frozen=True, slots=True)
class Result:
    """A replay's outcome, before it is put into words."""

    judged: Judged
    noise: Noise
    seconds: float


def replay(
    engine: Any, drawn: list[Drawn], planned: plan.Plan, model: Model, events: Events
) -> Result:
    """Replay the drawn samples' answers and note in each what is wrong with it."""
    from evalkit.engine import replay as replays

    started = time.monotonic()
    rows = [row for sample in drawn for row in _rows(sample)]
    generated = {row.targets[0].request.task for sample in drawn for row in sample.rows.values()
                 if row.targets[0].request.kind == "generate_until"}  # fmt: skip
    batches = _batches(engine, rows, planned, model)
    replayed: dict[str, Any] = {}
    with events.phase("replay", len(batches), "batches") as phase:
        for batch in batches:
            replayed |= replays.replay(engine, batch, generated=batch.task in generated)
            phase.advance(1)
    seconds = time.monotonic() - started
    noise = _measured(engine, batches)
    judged = Judged()
    for sample in drawn:
        judging.judge(
            sample, replayed, noise, lambda *given: replays.retold(engine, *given), judged
        )
    return Result(judged, noise, seconds)


def _rows(sample: Drawn) -> list[tokenise.Row]:
    """What to replay of a sample: each answer's tokens behind its prompt."""
    found = []
    for part, row in sample.rows.items():
        request = row.targets[0].request
        if request.kind != "generate_until":
            found.append(row)
            continue
        answer = sample.answers.get(part)
        tokens = drawing.answered(answer) if answer else None
        if tokens:
            whole = np.concatenate([row.tokens, np.asarray(tokens[:-1], dtype=np.uint32)])
            asked = Request(request.task, request.doc_id, request.index, request.repeat,
                            "loglikelihood", request.context)  # fmt: skip
            target = Target(asked, len(row.tokens) - 1, tokens[-1])
            found.append(tokenise.Row(whole, (target,)))
    return found


def _batches(
    engine: Any, rows: list[tokenise.Row], planned: plan.Plan, model: Model
) -> list[Batch]:
    limit = architecture.rope_limit(model.config)
    policy = plan.Policy(**planned.body["policy"])
    return list(make_batches(Tokenised(rows), policy, level=engine.level, rope_limit=limit))


def _measured(engine: Any, batches: list[Batch]) -> Noise:
    from evalkit.engine import replay as replays

    errors: list[float] = []
    for batch in batches[:: max(1, len(batches) // MEASURED)][:MEASURED]:
        errors += replays.noise(engine, batch, max(1, MEASURED // len(batches)))
    return noises.measure(errors)


def noise_of(
    folder: Path, model: Model, asked: loading.Asked, numerics: dict[str, Any] | None = None
) -> Noise:
    """The noise of a run's numerics (or of others) on its model, measured on a few of its own
    samples."""
    run = scored.read(folder)
    assert run.record is not None, "a run of ours has a record"
    planned = plan.Plan(folder)
    record = run.record | ({"numerics": numerics} if numerics else {})
    engine, tokenizer = loading.engine_for(record, model, planned, asked)
    chosen = drawing.draw(drawing.names(run), drawing.digest(folder), 0, MEASURED)
    drawn = drawing.gather(folder, run, planned, tokenizer, chosen)
    rows = [row for sample in drawn for row in _rows(sample)]
    return _measured(engine, _batches(engine, rows, planned, model))
