"""The model that a record names, ready to replay its answers.

It is held against the record's digests, and loaded with the record's numerics.

Nothing that a record says makes its model's own code or pickles run: only the auditor's word does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.plan import store
from evalkit.record.reading.findings import shown
from evalkit.run.preparing import named

SAMPLES = 300  # find 1% of altered samples with 95% probability


@dataclass(frozen=True, slots=True)
class Asked:
    """What an auditor chooses: `samples` to draw, with `seed` (None: one is drawn now); `model` and
    `adapter` where they lie: a record's own words are never followed."""

    samples: int = SAMPLES
    seed: int | None = None
    model: str | None = None
    adapter: Path | None = None
    device: str | None = None
    offline: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False


def model_of(record: dict[str, Any], asked: Asked, where: Path) -> Model:
    """The record's model, at the recorded commit where the auditor names it as the record does.

    EvalkitError where only the record at `where` names it, and for the first file that is another.
    """
    recorded = record["model"]
    beside = recorded["adapter"]["reference"] if recorded["adapter"] else None
    names = named.model(recorded["reference"], asked.model)
    named.require([*names, *named.adapter(beside, asked.adapter)], where)
    same = asked.model in (None, recorded["reference"])
    pinned = same and isinstance(recorded["revision"], str)
    model = models.resolve(
        asked.model or recorded["reference"],
        revision=recorded["revision"] if pinned else None,
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


def engine_for(
    record: dict[str, Any], model: Model, planned: store.Plan, asked: Asked
) -> tuple[Any, Any]:
    """Our own engine with the record's numerics as far as it names any, and the tokenizer."""
    from evalkit.engine import core
    from evalkit.engine.hardware import device
    from evalkit.engine.probe import probe
    from evalkit.inputs.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(model)
    tokenizer.max_length = planned.body["max_length"]
    told = record["numerics"]
    dtype = told["dtype"] if isinstance(told["dtype"], str) else None
    profile = told["profile"] if isinstance(told["profile"], str) else "native"
    own = record["engine"]["name"] == core.NAME
    level = record["engine"]["level"] if own else probe.resolve(model)
    numerics = core.numerics_for(model, dtype, profile)
    place = device.usable(device.pick(asked.device), model.weight_bytes)[0]
    adapter = _adapter(record, asked)
    engine = core.load(model, tokenizer, numerics, place, level=level, adapter=adapter)
    probe.check(engine)
    return engine, tokenizer


def hardware(record: dict[str, Any], engine: Any) -> str:
    """Whether the engine's machine is like one that computed the record, in words."""
    from evalkit.engine.hardware import device

    here = stamp.machine(device.hardware(str(engine.device)))
    unlike = [stamp.unlike(segment["hardware"], here) for segment in record["segments"]]
    if not all(unlike):
        return "like the run's"
    return f"another than the run's: {shown(unlike[0])}" if unlike else "the run's is not known"


def _adapter(record: dict[str, Any], asked: Asked) -> Path | None:
    """The adapter's folder, which must be the record's."""
    recorded = record["model"]["adapter"]
    if recorded is None:
        return None
    folder = asked.adapter
    assert folder is not None, "model_of requires it"
    found = models.resolve_adapter(folder)
    if {n: e["sha256"] for n, e in found.items()} != {
        n: e["sha256"] for n, e in recorded["files"].items()
    }:
        raise EvalkitError("the adapter at hand is not the record's", where=str(folder))
    return folder
