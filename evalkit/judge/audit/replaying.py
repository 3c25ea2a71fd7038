"""Drawn samples through the engine: recorded answers replayed, and rounding measured on them.

Rows are packed as the plan's are, so that what prompts share is computed once here too.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.base import canon
from evalkit.base.events import Events
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model
from evalkit.judge.audit import drawing, judging, loading
from evalkit.judge.audit import noise as noises
from evalkit.judge.audit import rounding as roundings
from evalkit.judge.audit.drawing import Drawn
from evalkit.judge.audit.judging import Judged, Replayed
from evalkit.judge.audit.noise import Noise
from evalkit.judge.audit.rounding import Rounding, Value
from evalkit.plan import store, tokenise
from evalkit.plan.batch import Batch
from evalkit.plan.grouping import make_batches
from evalkit.plan.requests.request import Request
from evalkit.plan.tokenise import Target, Tokenised
from evalkit.record.reading import scored

MEASURED = 24  # answers that noise is measured on where no better numerics are at hand


@dataclass(frozen=True, slots=True)
class Result:
    """A replay's outcome, before it is put into words."""

    judged: Judged
    rounding: Rounding
    seconds: float


def replay(
    engine: Any, drawn: list[Drawn], policy: store.Policy, model: Model, events: Events
) -> Result:
    """Replay the drawn samples' answers and note in each what is wrong with it.

    Where the record's numerics round, the answers are held against the model in float32, and the
    rounding is measured by replaying them in the record's numerics too.
    """
    from evalkit.engine import replay as replays

    started = time.monotonic()
    rows = [row for sample in drawn for row in rows_of(sample)]
    batches = _batches(engine, rows, policy, model)
    low = replays.rounds(engine)
    with events.phase("replay", len(batches) * (1 + low), "batches") as phase:
        replayed = _forward(engine, drawn, batches, phase)
        if low:
            with replays.in_float32(engine):
                exact = _forward(engine, drawn, batches, phase)
            rounding = measured(drawn, replayed, exact)
        else:
            exact = replayed
            values = [Value(a - b, [b]) for a, b in _alone(engine, batches)]
            rounding = roundings.measure(values, roundings.OTHER)
    judged = Judged()
    for sample in drawn:
        judging.judge(sample, exact, rounding, partial(replays.retold, engine), judged)
    return Result(judged, rounding, time.monotonic() - started)


def _forward(
    engine: Any, drawn: list[Drawn], batches: list[Batch], phase: Any
) -> dict[str, Replayed]:
    """Every answer of the batches, by part id."""
    from evalkit.engine import replay as replays

    asked = [row.targets[0].request for sample in drawn for row in sample.rows.values()]
    generated = {request.id: request.settings for request in asked if request.settings is not None}
    found: dict[str, Replayed] = {}
    for batch in batches:
        found |= replays.replay(engine, batch, generated)
        phase.advance(1)
    return found


def measured(
    drawn: list[Drawn], rounded: Mapping[str, Replayed], exact: Mapping[str, Replayed]
) -> Rounding:
    """The rounding between two replays of the same answers, value by value as they are recorded:
    each token of a text, the sum of a log-likelihood."""
    values = []
    for sample in drawn:
        for part, row in sample.rows.items():
            if part not in exact:
                continue
            old, new = rounded[part].logprobs, exact[part].logprobs
            if row.targets[0].request.kind == "generate_until":
                values += [Value(a - b, [b]) for a, b in zip(old, new, strict=True)]
            else:
                values.append(Value(canon.total(old) - canon.total(new), new))
    return roundings.measure(values, roundings.ROUNDED)


def _alone(engine: Any, batches: list[Batch]) -> list[tuple[float, float]]:
    """Log-probabilities of a few answers, replayed and each by itself."""
    from evalkit.engine import replay as replays

    pairs: list[tuple[float, float]] = []
    for batch in batches[:: max(1, len(batches) // MEASURED)][:MEASURED]:
        pairs += replays.twice(engine, batch, max(1, MEASURED // len(batches)))
    return pairs


def rows_of(sample: Drawn) -> list[tokenise.Row]:
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
    engine: Any, rows: list[tokenise.Row], policy: store.Policy, model: Model
) -> list[Batch]:
    limit = architecture.rope_limit(model.config)
    return list(make_batches(Tokenised(rows), policy, level=engine.level, rope_limit=limit))


def policy_of(planned: store.Plan) -> store.Policy:
    """How a plan packs its rows."""
    return store.Policy(**planned.body["policy"])


def noise_of(
    folder: Path, model: Model, asked: loading.Asked, numerics: dict[str, Any] | None = None
) -> Noise:
    """The noise of a run's numerics (or of others) on its model, measured on a few of its own
    samples."""
    run = scored.read(folder)
    assert run.record is not None, "a run of ours has a record"
    planned = store.Plan(folder)
    record = run.record | ({"numerics": numerics} if numerics else {})
    engine, tokenizer = loading.engine_for(record, model, planned, asked)
    chosen = drawing.draw(drawing.names(run), drawing.digest(folder), 0, MEASURED)
    drawn = drawing.gather(folder, run, planned, tokenizer, chosen)
    rows = [row for sample in drawn for row in rows_of(sample)]
    pairs = _alone(engine, _batches(engine, rows, policy_of(planned), model))
    return noises.measure([a - b for a, b in pairs])
