"""Everything that is decided before a run starts.

The inputs of a run's identity can all be had without building a request, so the same command finds
its unfinished run, and an upgrade or a changed option is named before it costs a night.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from evalkit.base import canon, private
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import stamp
from evalkit.inputs import engine_name, hub, locked
from evalkit.inputs import suite as suites
from evalkit.inputs.chat import templates
from evalkit.inputs.files import sha256s
from evalkit.inputs.locked import Lock
from evalkit.inputs.models import architecture, checkpoint
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.inputs.suite import Suite
from evalkit.inputs.types import FileEntry, NumericsEntry, RunInputs
from evalkit.plan import memory
from evalkit.plan.store import LEVELS, Policy
from evalkit.record.sections import OptionsEntry
from evalkit.run.preparing import engines
from evalkit.run.preparing.engines import Engine

FREE_BYTES = 200_000_000  # what a full run of the largest shipped suite leaves, with room


@dataclass(frozen=True, slots=True)
class Options:
    """The options that a user gave."""

    model: str
    suite: str = "core"
    revision: str | None = None
    limit: int | None = None
    out: Path = Path("results")
    offline: bool = False
    dtype: str | None = None
    profile: str | None = None
    level: str | None = None
    adapter: Path | None = None
    engine: str = engine_name.OWN
    engine_args: tuple[str, ...] = ()
    device: str | None = None
    seed: int | None = None
    threads: int = 1
    memory: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    fresh: bool = False
    again: bool = False
    clock: str | None = None  # of a recorded run that is gone on with or repeated

    def published(self) -> OptionsEntry:
        """Return the options as a record keeps them: of a path of this host only its last part."""
        snapshot = hub.snapshot(Path(self.model)) if Path(self.model).is_dir() else None
        given = asdict(self) | {
            "model": snapshot[0] if snapshot else _published(self.model),
            "suite": _published(self.suite),
            "out": _published(self.out),
            "adapter": None if self.adapter is None else _published(self.adapter),
            "engine_args": list(self.engine_args),
        }
        del given["clock"]  # the suite's section has it
        return cast(OptionsEntry, given)

    def places(self) -> dict[str, str]:
        """Return the whole paths of the model, the suite and the adapter, of those that are files
        or folders here and nothing that evalkit or the Hub has."""
        path = Path(self.model)
        places: dict[str, str | Path | None] = {
            "model": None if self.model in models.BUILT_IN or hub.snapshot(path) else path,
            "suite": None if self.suite in suites.shipped() else self.suite,
            "adapter": self.adapter,
        }
        return {option: str(Path(place).absolute()) for option, place in places.items()
                if place is not None and Path(place).exists()}  # fmt: skip


def _published(name: str | Path) -> str:
    return private.words(private.place(str(name)))


@dataclass(frozen=True, slots=True)
class Job:
    """The resolved inputs of a run. `inputs` is what the run id covers besides the plan's batches,
    `adapter` an adapter's files as in `Model.files`, and `room` the memory of GPUs where the policy
    is for them."""

    options: Options
    model: Model
    adapter: dict[str, FileEntry] | None
    parameters: int | None
    suite: Suite
    lock: Lock
    room: memory.Room | None
    engine: Engine
    device: str
    inputs: RunInputs

    @property
    def policy(self) -> Policy:
        """The policy by which rows are packed."""
        return policy_of(self.room)

    @property
    def level(self) -> str:
        """The level: how the engine may share work between rows."""
        return self.inputs["engine"]["level"]

    @property
    def folder(self) -> Path:
        """The folder of this model's runs."""
        return self.options.out / self.model.short_name


def prepare(
    options: Options, say: Callable[[str], None] = lambda _: None, *, computes: bool = True
) -> Job:
    """Resolve the device, which `say` gets first, the model, the suite and the numerics. Raises
    EvalkitError for what can't be run. `computes`: whether this process or its children run the
    model."""
    _check_numbers(options)
    engine = _engine(options)
    suite = suites.load(options.suite, limit=options.limit, seed=options.seed)
    lock = locked.scorable(suites.lock_of(suite))
    device = _device(options, engine, say, computes=computes)  # before gigabytes are fetched
    model = models.resolve(
        options.model,
        revision=options.revision,
        offline=options.offline,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    suite = _at_its_time(suite, model, options.clock)
    adapter = models.resolve_adapter(options.adapter) if options.adapter else None
    parameters = checkpoint.num_parameters(model)
    _check_out(options.out / model.short_name)
    numerics = engine.numerics(options, model)
    if computes:
        engine.require_packages(model, device)
    room = _room(options, engine, model, parameters, numerics, device)
    inputs: RunInputs = {
        "suite": suites.identity(suite, lock),
        "model": model.sha256(),
        "adapter": sha256s(adapter) if adapter else None,
        "numerics": numerics,
        "engine": {"name": engine.choice.name, "level": engine.level(options, model),
                   "policy": policy_of(room).to_json(), "args": engine.choice.args,
                   "versions": engine.versions(), "bit_repeatable": engine.bit_repeatable},
        "versions": stamp.versions(),
    }  # fmt: skip
    return Job(options, model, adapter, parameters, suite, lock, room, engine, device, inputs)


def _check_numbers(options: Options) -> None:
    if options.limit is not None and options.limit < 1:
        raise EvalkitError("--limit must be at least 1")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise EvalkitError("--seed must lie between 0 and 4294967295")
    if options.threads < 1:
        raise EvalkitError("--threads must be at least 1")


def _device(options: Options, engine: Engine, say: Callable[[str], None], *, computes: bool) -> str:
    """Return the engine's device; the CPU where a plan is made for GPUs of other hosts."""
    if not computes and options.memory and not engine.computes_elsewhere:
        say(f"planned for NVIDIA GPUs of {options.memory} GB")
        return "cpu"
    return engine.device(options.device, say)


def _room(
    options: Options, engine: Engine, model: Model, parameters: int | None,
    numerics: NumericsEntry, device: str,
) -> memory.Room | None:  # fmt: skip
    """Return the room on the GPUs that a plan is for, None for a CPU."""
    from evalkit.engine.hardware.device import AUTO

    sizes = engine.gpu_memories(device)
    wanted = options.memory
    if wanted is None:
        wanted = memory.class_of(min(sizes)) if sizes else 0
    if wanted is None:
        raise EvalkitError(
            f"a GPU of {min(sizes) / 2**30:.1f} GiB is smaller than any that plans are made for",
            fix="--memory 8 plans for the smallest; batches that do not fit are split",
            code=Exit.MISSING,
        )
    if not engine.fits_memory or not wanted:
        return None
    needs = needs_of(model, parameters, numerics)
    number = None if not sizes else len(sizes) if device == AUTO else 1
    return memory.require(needs, wanted, number, model.reference)


def policy_of(room: memory.Room | None) -> Policy:
    """Return the policy for GPUs, or the one for a CPU."""
    return room.policy if room else Policy()


def needs_of(model: Model, parameters: int | None, numerics: NumericsEntry) -> memory.Needs:
    """Return the memory of a GPU that a model needs under these numerics."""
    from evalkit.engine import quantization

    stored = 4 if numerics["dtype"] == "float32" else 2
    is_known = parameters is not None and quantization(model) is None
    weights = stored * parameters if is_known and parameters else model.weight_bytes
    config = architecture.text_config(model.folder, model.reference, model.trust_remote_code)
    number = 4 if numerics["profile"] == "precise" else stored
    return memory.Needs(architecture.shape_of(config), weights, number)


def _engine(options: Options) -> Engine:
    engine = engines.parse(options.engine, options.engine_args)
    if options.level is not None and options.level not in LEVELS:
        raise EvalkitError(
            f"unknown level '{options.level}'", fix=f"choose from {', '.join(LEVELS)}"
        )
    engine.check(options)
    return engine


def _check_out(folder: Path) -> None:
    """Make the model's results folder; EvalkitError where it can't be written or is nearly full."""
    canon.make_folder(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EvalkitError(
            "the results folder is not writable",
            where=str(folder),
            fix="choose another with --out",
            code=Exit.MISSING,
        )
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise EvalkitError(
            f"only {free // 1_000_000} MB are free for results, a run needs"
            f" {FREE_BYTES // 1_000_000}",
            where=str(folder),
            fix="free space or choose another --out",
            code=Exit.MISSING,
        )


def _at_its_time(suite: Suite, model: Model, clock: str | None) -> Suite:
    """Return the suite with the time that its chat template reads, if it reads one."""
    reads = [suite.chat.text] if suite.chat.text is not None else _templates(model)
    if not suite.apply_chat_template or not any(templates.READS_CLOCK in text for text in reads):
        return suite
    return replace(suite, chat=suite.chat.at(clock or templates.now()))


def _templates(model: Model) -> list[str]:
    names = [Path(name).name for name in model.tokenizer_files()]
    names = [name for name in names if "template" in name or name == "tokenizer_config.json"]
    files = (path for path in model.folder.rglob("*") if path.name in names and path.is_file())
    return [path.read_text("utf-8", "replace") for path in files]
