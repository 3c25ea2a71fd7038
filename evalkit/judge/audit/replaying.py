"""Replays recorded answers of drawn samples on the engine, and measures rounding on them.

Rows are packed as the plan's are, so that what prompts share is computed once here too.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evalkit.base import canon
from evalkit.base.events import Events, Phase
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model
from evalkit.inputs.types import NumericsEntry
from evalkit.judge.audit import drawing, loading, noise
from evalkit.judge.audit.drawing import Drawn
from evalkit.judge.audit.judging import Judge, Replayed
from evalkit.judge.audit.loading import AuditOptions
from evalkit.judge.audit.noise import Noise, Rounding, Value
from evalkit.plan import store
from evalkit.plan.batch import Batch
from evalkit.plan.grouping import make_batches
from evalkit.plan.requests.request import Request
from evalkit.plan.tokenise import Row, Target, Tokenised
from evalkit.record.reading import scored

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

MEASURED = 24  # answers that noise is measured on where no better numerics are at hand


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a replay: what the judge added up, and the time it took."""

    judge: Judge
    seconds: float


def replay(
    engine: "Engine", drawn: list[Drawn], policy: store.Policy, model: Model, events: Events
) -> Result:
    """Replay the drawn samples' answers and note in each sample what is wrong with it. Where the
    record's numerics round, the answers are compared with the model in float32, and the rounding is
    measured by replaying them in the record's numerics too."""
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
            rounding = noise.measure_rounding(values, noise.OTHER)
    judge = Judge(rounding, partial(replays.retold, engine))
    for sample in drawn:
        judge.sample(sample, exact)
    return Result(judge, time.monotonic() - started)


def _forward(
    engine: "Engine", drawn: list[Drawn], batches: list[Batch], phase: Phase
) -> dict[str, Replayed]:
    from evalkit.engine import replay as replays

    requests = [row.targets[0].request for sample in drawn for row in sample.rows.values()]
    settings = {req.id: req.settings for req in requests if req.settings is not None}
    replayed: dict[str, Replayed] = {}
    for batch in batches:
        replayed |= replays.replay(engine, batch, settings)
        phase.advance(1)
    return replayed


def measured(
    drawn: list[Drawn], rounded: Mapping[str, Replayed], exact: Mapping[str, Replayed]
) -> Rounding:
    """Return the rounding between two replays of the same answers. The values compared are those
    that are recorded: each token of a text, the sum of a log-likelihood."""
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
    return noise.measure_rounding(values, noise.ROUNDED)


def _alone(engine: "Engine", batches: list[Batch]) -> list[tuple[float, float]]:
    """Return pairs of log-probabilities of a few answers: replayed in their batch, and alone."""
    from evalkit.engine import replay as replays

    pairs: list[tuple[float, float]] = []
    for batch in batches[:: max(1, len(batches) // MEASURED)][:MEASURED]:
        pairs += replays.twice(engine, batch, max(1, MEASURED // len(batches)))
    return pairs


def rows_of(sample: Drawn) -> list[Row]:
    """Return the rows to replay of a sample: each answer's tokens behind its prompt."""
    rows = []
    for part, row in sample.rows.items():
        request = row.targets[0].request
        if request.kind != "generate_until":
            rows.append(row)
            continue
        answer = sample.answers.get(part)
        tokens = drawing.tokens_of(answer) if answer else None
        if tokens:
            whole = np.concatenate([row.tokens, np.asarray(tokens[:-1], dtype=np.uint32)])
            scoring = Request(request.task, request.doc_id, request.index, request.repeat,
                              "loglikelihood", request.context)  # fmt: skip
            rows.append(Row(whole, (Target(scoring, len(row.tokens) - 1, tokens[-1]),)))
    return rows


def _batches(engine: "Engine", rows: list[Row], policy: store.Policy, model: Model) -> list[Batch]:
    limit = architecture.rope_limit(model.config)
    return list(make_batches(Tokenised(rows), policy, level=engine.level, rope_limit=limit))


def policy_of(planned: store.Plan) -> store.Policy:
    """Return the policy by which a plan packs its rows."""
    return store.Policy(**planned.body["policy"])


def noise_of(
    folder: Path, model: Model, options: AuditOptions, numerics: NumericsEntry | None = None
) -> Noise:
    """Return the noise of a run's (or other) `numerics`, measured on a few of its own samples."""
    run = scored.read(folder)
    assert run.record is not None, "a run of ours has a record"
    planned = store.Plan(folder)
    record = run.record if numerics is None else run.record | {"numerics": numerics}
    engine, tokenizer = loading.engine_for(record, model, planned, options)
    chosen = drawing.draw_of(folder, drawing.names(run), 0, MEASURED)
    drawn = drawing.gather(folder, run, planned, tokenizer, chosen)
    rows = [row for sample in drawn for row in rows_of(sample)]
    pairs = _alone(engine, _batches(engine, rows, policy_of(planned), model))
    return noise.measure_noise([a - b for a, b in pairs])
