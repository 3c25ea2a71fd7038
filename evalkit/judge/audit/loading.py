"""Loads the model that a record names, ready to replay its answers.

The model's files must have the record's digests, and it is loaded with the record's numerics. A
record never makes its model's own code or pickles run: only the auditor's word does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.inputs.files import sha256s
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import FileEntry
from evalkit.plan import store
from evalkit.record.reading.findings import shown
from evalkit.record.types import Record
from evalkit.run.preparing import named

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

SAMPLES = 300  # find 1% of altered samples with 95% probability


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What an auditor chooses: how many `samples` to draw, with which `seed` (None: a new one), and
    where the `model` and `adapter` lie (the names in a record are never followed)."""

    samples: int = SAMPLES
    seed: int | None = None
    model: str | None = None
    adapter: Path | None = None
    device: str | None = None
    offline: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False


def model_of(record: Record, options: AuditOptions, where: Path) -> Model:
    """Return the record's model, at the recorded commit if the auditor names it as the record does.
    Raises EvalkitError if only the record at `where` names the model, or if a file is another."""
    recorded = record["model"]
    adapter = recorded["adapter"]["reference"] if recorded["adapter"] else None
    names = named.model(recorded["reference"], options.model)
    named.require([*names, *named.adapter(adapter, options.adapter)], where)
    same, revision = options.model in (None, recorded["reference"]), recorded["revision"]
    model = models.resolve(
        options.model or recorded["reference"],
        revision=revision if same and isinstance(revision, str) else None,
        offline=options.offline,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    if unlike := unlike_files(recorded["files"], model.sha256()):
        raise EvalkitError(
            f"the model at hand is not the record's: {shown(unlike[0])} is another",
            where=str(model.folder), fix="give the recorded model with --model",
        )  # fmt: skip
    return model


def unlike_files(recorded: dict[str, FileEntry], sha256: dict[str, str]) -> list[str]:
    """Return the names of the files that are missing on one side or have another sha256."""
    names = sorted(recorded.keys() | sha256.keys())
    return [n for n in names if n not in recorded or recorded[n]["sha256"] != sha256.get(n)]


def engine_for(
    record: Record, model: Model, planned: store.Plan, options: AuditOptions
) -> "tuple[Engine, Tokenizer]":
    """Return evalkit's own engine, with the record's known numerics, and the tokenizer."""
    from evalkit.engine import core
    from evalkit.engine.hardware import device
    from evalkit.engine.probe import probe

    tokenizer = Tokenizer(model)
    tokenizer.max_length = planned.body["max_length"]
    recorded = record["numerics"]
    dtype = recorded["dtype"] if isinstance(recorded["dtype"], str) else None
    profile = recorded["profile"] if isinstance(recorded["profile"], str) else "native"
    own = record["engine"]["name"] == core.NAME
    level = record["engine"]["level"] if own else probe.resolve(model)
    numerics = core.numerics_for(model, dtype, profile)
    place = device.usable(device.pick(options.device), model.weight_bytes)[0]
    adapter = _adapter(record, options)
    engine = core.load(model, tokenizer, numerics, place, level=level, adapter=adapter)
    probe.check(engine)
    return engine, tokenizer


def hardware(record: Record, engine: "Engine") -> str:
    """Say whether the engine's machine is like one that computed the record."""
    from evalkit.engine.hardware import device

    here = stamp.machine(device.hardware(str(engine.device)))
    unlike = [stamp.unlike(segment["hardware"], here) for segment in record["segments"]]
    if not all(unlike):
        return "like the run's"
    return f"another than the run's: {shown(unlike[0])}" if unlike else "the run's is not known"


def _adapter(record: Record, options: AuditOptions) -> Path | None:
    recorded, folder = record["model"]["adapter"], options.adapter
    if recorded is None:
        return None
    assert folder is not None, "model_of requires it"
    files = models.resolve_adapter(folder)
    if unlike_files(recorded["files"], sha256s(files)):
        raise EvalkitError("the adapter at hand is not the record's", where=str(folder))
    return folder
