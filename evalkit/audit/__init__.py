"""`audit`: are a record's answers those of the model that it names? Some of them, replayed.

The model is needed, the datasets are not. Nothing is generated: one forward pass over a prompt and
its recorded answer gives every token's probability, so an audit costs a small part of the run, on
any kind of hardware, and one changed token does not change what follows it. A record that
contradicts itself is not audited. What an audit can't see: whether the prompts are the benchmark's
(`verify` holds them against the lock), and samples that were not drawn.
"""

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import architecture, attest, plan, scored, tokenise
from evalkit import model as models
from evalkit.audit import drawing, judging
from evalkit.audit import noise as noises
from evalkit.audit.drawing import Drawn
from evalkit.audit.judging import Judged
from evalkit.audit.noise import Noise
from evalkit.batching import make_batches
from evalkit.errors import EvalkitError, Exit
from evalkit.events import Events
from evalkit.keys import Private
from evalkit.model import Model
from evalkit.request import Request
from evalkit.tokenise import Target, Tokenised
from evalkit.verify import verify
from evalkit.verify.report import shown

SAMPLES = 300  # find 1% of altered samples with 95% probability
MEASURED = 24  # answers that the noise is measured on
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """What an auditor chooses: `samples` to draw, with `seed` (None: one is drawn now); `model` and
    `adapter` where they lie, if not where the record's names say."""

    samples: int = SAMPLES
    seed: int | None = None
    model: str | None = None
    adapter: Path | None = None
    device: str | None = None
    offline: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. `problems` by sample; `whole` is why the answers as a whole are not the
    model's, or nothing; `seconds` and `run_seconds` compare the replay with the run's execution
    (unknown where another machine's time is not told)."""

    of: int
    samples: int
    seed: int
    problems: dict[str, tuple[str, ...]]
    whole: str
    skipped: int
    tokens: int
    worst: float
    noise: Noise
    seconds: float
    run_seconds: float | None

    @property
    def passed(self) -> bool:
        """Whether every sample is as recorded."""
        return not self.problems and not self.whole

    @property
    def share(self) -> float:
        """The share of altered samples that would have been caught with 95% probability."""
        return 1.0 if not self.samples else 1 - 0.05 ** (1 / self.samples)

    @property
    def exit_code(self) -> Exit:
        """0 passed, 1 not."""
        return Exit.OK if self.passed else Exit.FAILED

    @property
    def claim(self) -> dict[str, Any]:
        """What a witness signs."""
        return {
            "verdict": "PASSED" if self.passed else "FAILED",
            "samples": self.samples,
            "failed": len(self.problems),
            "seed": self.seed,
            "share": self.share,
        }

    def lines(self) -> list[str]:
        """What a person reads; the verdict is the last line."""
        found = [
            f"drawn     {self.samples:,} of {self.of:,} samples, seed {self.seed}",
            f"replayed  {self.tokens:,} recorded tokens in {self.seconds:.1f} s{self._ratio()}",
            f"noise     {self.noise.scale:.2g} nats a token, measured on"
            f" {self.noise.measured:,}; the largest deviation is {self.worst:.2g} of what is"
            " allowed",
        ]
        if self.skipped:
            found.append(f"skipped   {self.skipped:,} answers whose engine did not tell tokens")
        for name, problems in list(self.problems.items())[:SHOWN]:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            found.append(f"FAIL      {shown(name)}: {shown(problems[0])}{more}")
        if len(self.problems) > SHOWN:
            found.append(f"FAIL      {len(self.problems) - SHOWN:,} more samples")
        if self.whole:
            found.append(f"FAIL      {self.whole}")
        if not self.passed:
            return [*found, f"AUDIT FAILED: {len(self.problems):,} of {self.samples:,} samples"]
        return [
            *found,
            f"AUDIT PASSED: had {self.share:.1%} of the samples or more been altered, this would"
            " have shown it with 95% probability",
        ]

    def _ratio(self) -> str:
        if not self.run_seconds or not self.seconds:
            return ""
        ratio = self.run_seconds / self.seconds
        return f"; the run's execution took {self.run_seconds:.1f} s, {ratio:.0f} times that"


def audit(folder: Path, asked: Asked, events: Events, key: Private | None = None) -> Audit:
    """Replay some of a record's answers on its model; with a key, sign what was found.

    Raises EvalkitError where the record contradicts itself, the model at hand is another, or
    nothing can be replayed.
    """
    if asked.samples < 1:
        raise EvalkitError("--sample must be at least 1")
    report = verify(folder)
    if not report.consistent:
        raise EvalkitError(
            f"the record contradicts itself, so there is nothing to audit: {report.verdict}",
            where=str(folder), fix="see evalkit verify", code=Exit.FAILED,
        )  # fmt: skip
    run = scored.read(folder)
    assert run.record is not None, "verify has read it"
    model = _model(run.record, asked)
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    planned = plan.Plan(folder)
    engine, tokenizer = _engine(run.record, model, planned, asked)
    everything = drawing.names(run)
    chosen = drawing.draw(everything, drawing.digest(folder), seed, asked.samples)
    drawn = drawing.gather(folder, run, planned, tokenizer, chosen)
    found = replay(engine, drawn, planned, model, events)
    found_audit = _conclude(found, drawn, run.record, seed, len(everything))
    if key is not None:
        attest.sign(folder, key, attest.AUDIT, found_audit.claim)
    return found_audit


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
    limit = architecture.rope_limit(model.config)
    policy = plan.Policy(**planned.body["policy"])
    batches = list(make_batches(Tokenised(rows), policy, level=engine.level, rope_limit=limit))
    replayed: dict[str, Any] = {}
    with events.phase("replay", len(batches), "batches") as phase:
        for batch in batches:
            replayed |= replays.replay(engine, batch, generated=batch.task in generated)
            phase.advance(1)
    seconds = time.monotonic() - started
    errors: list[float] = []
    for batch in batches[:: max(1, len(batches) // MEASURED)][:MEASURED]:
        errors += replays.noise(engine, batch, max(1, MEASURED // len(batches)))
    noise = noises.measure(errors)
    judged = Judged()
    for sample in drawn:
        judging.judge(
            sample, replayed, noise, lambda *given: replays.retold(engine, *given), judged
        )
    return Result(judged, noise, seconds)


def _rows(sample: Drawn) -> list[tokenise.Row]:
    """What to replay of a sample: each answer's tokens behind its prompt."""
    import numpy as np

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


def _conclude(
    found: Result, drawn: list[Drawn], record: dict[str, Any], seed: int, of: int
) -> Audit:
    judged, noise = found.judged, found.noise
    problems = {f"{s.name[0]} document {s.name[1]}": tuple(s.problems) for s in drawn if s.problems}
    fine = [sample.name for sample in drawn if not sample.problems]
    spread = noises.rms([error for name in fine for error in judged.errors.get(name, [])])
    whole = ""
    if not spread <= noise.whole:
        whole = (
            f"recorded and replayed log-probabilities are {spread:.2g} nats a token apart,"
            f" {noise.whole:.2g} is noise: other weights or numerics than recorded"
        )
    executed = record["phases"].get("execute", {}).get("seconds")
    run_seconds = float(executed) if isinstance(executed, int | float) else None
    return Audit(
        of, len(drawn), seed, problems, whole, judged.skipped, judged.tokens, judged.worst, noise,
        found.seconds, run_seconds,
    )  # fmt: skip


def _model(record: dict[str, Any], asked: Asked) -> Model:
    """The record's model; EvalkitError names the first file that is another."""
    recorded = record["model"]
    revision = recorded["revision"] if isinstance(recorded["revision"], str) else None
    model = models.resolve(
        asked.model or recorded["reference"],
        revision=None if asked.model else revision,
        offline=asked.offline,
        allow_pickle=asked.allow_pickle,
        trust_remote_code=asked.trust_remote_code,
    )
    wanted = {name: entry["sha256"] for name, entry in recorded["files"].items()}
    found = model.sha256()
    unlike = [n for n in sorted(wanted.keys() | found.keys()) if wanted.get(n) != found.get(n)]
    if unlike:
        raise EvalkitError(
            f"the model at hand is not the record's: {shown(unlike[0])} is another",
            where=str(model.folder), fix="give the recorded model with --model",
        )  # fmt: skip
    return model


def _engine(
    record: dict[str, Any], model: Model, planned: plan.Plan, asked: Asked
) -> tuple[Any, Any]:
    """Our own engine with the record's numerics as far as it names any, and the tokenizer."""
    from evalkit.engine import core, probe
    from evalkit.tokenizer import Tokenizer

    tokenizer = Tokenizer(model)
    tokenizer.max_length = planned.body["max_length"]
    told = record["numerics"]
    dtype = told["dtype"] if isinstance(told["dtype"], str) else None
    profile = told["profile"] if isinstance(told["profile"], str) else "native"
    own = record["engine"]["name"] == core.NAME
    level = record["engine"]["level"] if own else probe.resolve(model)
    numerics = core.numerics_for(model, dtype, profile)
    device = core.devices(core.pick_device(asked.device), model.weight_bytes)[0]
    adapter = _adapter(record, asked)
    engine = core.load(model, tokenizer, numerics, device, level=level, adapter=adapter)
    probe.check(engine)
    return engine, tokenizer


def _adapter(record: dict[str, Any], asked: Asked) -> Path | None:
    """The adapter's folder, which must be the record's."""
    recorded = record["model"]["adapter"]
    if recorded is None:
        return None
    folder = asked.adapter or Path(recorded["reference"])
    found = models.resolve_adapter(folder)
    if {n: e["sha256"] for n, e in found.items()} != {
        n: e["sha256"] for n, e in recorded["files"].items()
    }:
        raise EvalkitError("the adapter at hand is not the record's", where=str(folder))
    return folder
