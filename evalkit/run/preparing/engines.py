"""The engine that computes a plan's answers: evalkit's own, or a model class of lm-eval's.

A run resolves its engine once (`of`). From then on this object says which options it takes, what of
it is in the run's identity, where it computes, and how it is loaded; nobody else asks which of the
two it is. Nothing is computed here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import steering
from evalkit.inputs import engine_name
from evalkit.inputs.engine_name import Choice
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import FileEntry
from evalkit.plan import shards

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker computes with that is this host's own: the device and an adapter's folder."""

    device: str
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that an engine may take or refuse; None where nothing was asked for."""

    level: str | None = None
    dtype: str | None = None
    profile: str | None = None
    device: str | None = None
    threads: int = 1
    adapter: Path | None = None


@dataclass(frozen=True)
class Engine:
    """evalkit's own engine, and what any other must answer."""

    choice: Choice
    bit_repeatable: ClassVar[bool] = True
    fits_memory: ClassVar[bool] = True  # whether a plan is made for the memory of GPUs

    @property
    def computes_elsewhere(self) -> bool:
        """Whether a server computes."""
        return False

    def check(self, asked: Asked) -> None:
        """Raise EvalkitError for an option that is not for this engine, and where it is missing."""

    def versions(self) -> dict[str, Any]:
        """The versions that the run id covers besides `stamp.versions`."""
        return {}

    def numerics(self, asked: Asked, model: Model) -> dict[str, Any]:
        """The numerics in the run's identity: all that can change a bit of an answer."""
        from evalkit.engine import core

        profile = asked.profile or "native"
        return core.numerics_for(model, asked.dtype, profile, asked.threads).to_json()

    def level(self, asked: Asked, model: Model) -> str:
        """The level asked for, or the one that a shrunken random model of this config passes."""
        from evalkit.engine.probe import probe

        return asked.level or probe.resolve(model)

    def max_length(self, context: int) -> int:
        """The longest row that it takes, in tokens, of a model of that context."""
        return context

    def device(self, asked: str | None, say: Say) -> str:
        """The device asked for, or a GPU where there is one, or the CPU; it is told first."""
        from evalkit.engine.hardware import device

        chosen = device.pick(asked)
        for line in (device.described(chosen), *steering.lines()):
            say(line)
        return chosen

    def require_packages(self, model: Model, device: str) -> None:
        """EvalkitError that names what a quantised checkpoint lacks here."""
        from evalkit.engine.hardware import packages

        packages.require(_quantised(model), device, model.reference)

    def gpu_memories(self, device: str) -> list[int]:
        """Bytes of each GPU that its plan must fit; empty where a plan isn't made for GPUs."""
        from evalkit.engine.hardware import device as devices

        return devices.memories(device)

    def places(self, place: Place, model: Model, number: int | None, threads: int) -> list[Place]:
        """Where its workers are: a GPU each, or a share of this host's cores. `number` of them, or
        as many as this host is good for."""
        from evalkit.engine.hardware import device

        devices = device.usable(place.device, model.weight_bytes)
        if number is None:
            on_cpu = devices == ["cpu"]
            number = shards.available_cores() // threads if on_cpu else len(devices)
        return [Place(devices[n % len(devices)], place.adapter) for n in range(max(number, 1))]

    def hardware(self, device: str) -> dict[str, Any]:
        """What it computes on, as `stamp` wants it."""
        from evalkit import engine

        return engine.hardware(device)

    def load(
        self, inputs: dict[str, Any], model: Model, place: Place, max_length: int | None
    ) -> Any:
        """The engine with a model's weights. `inputs` are a run's, `max_length` its plan's, which
        this engine does without."""
        from evalkit import engine

        return engine.load(
            model, Tokenizer(model), engine.Numerics(**inputs["numerics"]), place.device,
            level=inputs["engine"]["level"], adapter=place.adapter,
        )  # fmt: skip

    def lanes(self, loaded: Any) -> list[Any]:
        """The loaded engine, once for each thread that may use it: for each device of the model."""
        from evalkit.engine import pipeline

        first = pipeline.first_layers(loaded.model)
        return pipeline.lanes(loaded, pipeline.Stages(first)) if len(first) > 1 else [loaded]

    def kernels(self, loaded: Any, model: Model, device: str) -> list[str]:
        """What computes that another host may compute by other means, in words."""
        from evalkit.engine.hardware import kernels, packages

        more = [kernels.CUMSUM_NOTE] if kernels.needs_cumsum(loaded.model.config, device) else []
        return [
            f"attention {kernels.told(loaded)}",
            *more,
            *packages.told(_quantised(model), loaded.model),
        ]

    def probe_key(self, loaded: Any, model: Model, place: Place) -> str:
        """What the outcome of a check of its level is kept by; empty if none is needed."""
        from evalkit.engine.probe import outcome

        adapter = models.resolve_adapter(place.adapter) if place.adapter else None
        return outcome.key_of(loaded, model, digests(adapter), place.device)


def _quantised(model: Model) -> str | None:
    """How a checkpoint's weights are quantised, by its name; None where they are not."""
    from evalkit.engine import quantization

    found = quantization(model)
    return str(found["method"]) if found else None


class LmEval(Engine):
    """A model class of lm-eval's, which decides itself how it computes."""

    bit_repeatable = False
    fits_memory = False

    def check(self, asked: Asked) -> None:
        """It shares nothing between rows and has numerics of its own."""
        from evalkit.harness.models import classes

        name = self.choice.name
        if asked.level not in (None, "none"):
            raise EvalkitError(f"{name} shares nothing between rows: its level is none")
        if asked.threads != 1:
            raise EvalkitError(f"--threads is not for {name}, which has numerics of its own")
        if asked.profile:
            raise EvalkitError(f"--profile is not for {name}, which has numerics of its own")
        classes.model_class(self.choice)
        classes.check_device(self.choice, asked.device)
        if asked.adapter:
            classes.adapter_parameter(self.choice)

    def versions(self) -> dict[str, Any]:
        """lm-eval's and what the class runs on; EvalkitError where that is not installed."""
        from evalkit.harness.models import classes

        return classes.versions(self.choice)

    def numerics(self, asked: Asked, model: Model) -> dict[str, Any]:
        """The dtype, where the class takes one; the rest is unknown."""
        from evalkit.engine import core
        from evalkit.harness.models import classes

        dtype = core.numerics_for(model, asked.dtype, "native", 1).dtype
        return classes.numerics(self.choice, dtype, asked.dtype)

    def level(self, asked: Asked, model: Model) -> str:
        """Rows share nothing."""
        return "none"

    def max_length(self, context: int) -> int:
        """What the class takes of it."""
        from evalkit.harness.models import classes

        return classes.plan_length(self.choice, context)

    @property
    def computes_elsewhere(self) -> bool:
        """Whether the class sends its requests to a server."""
        from evalkit.harness.models import classes

        return classes.is_served(classes.model_class(self.choice))

    def device(self, asked: str | None, say: Say) -> str:
        """A server computes somewhere else; other classes as evalkit's engine."""
        from evalkit.engine.hardware import device

        if self.computes_elsewhere:
            say(f"a server computes: {self.choice.name}")
            return device.pick("cpu")
        return super().device(asked, say)

    def require_packages(self, model: Model, device: str) -> None:
        """The class has packages of its own."""

    def gpu_memories(self, device: str) -> list[int]:
        """None: the class fits its batches into the memory itself."""
        return []

    def places(self, place: Place, model: Model, number: int | None, threads: int) -> list[Place]:
        """One worker, which uses what it finds as it likes, or as many as asked for."""
        return [place] * (number or 1)

    def hardware(self, device: str) -> dict[str, Any]:
        """This host's, or a server's, which can't be known."""
        from evalkit import engine
        from evalkit.harness.models import classes

        return classes.hardware(self.choice, engine.hardware(device))

    def load(
        self, inputs: dict[str, Any], model: Model, place: Place, max_length: int | None
    ) -> Any:
        """The class with its arguments."""
        from evalkit.harness.models import foreign

        assert max_length is not None, "such a worker is started when there is a plan"
        return foreign.load(
            self.choice, model, Tokenizer(model), numerics=inputs["numerics"],
            device=place.device, adapter=place.adapter, max_length=max_length,
        )  # fmt: skip

    def lanes(self, loaded: Any) -> list[Any]:
        """The class is not made for several threads."""
        return [loaded]

    def kernels(self, loaded: Any, model: Model, device: str) -> list[str]:
        """Nothing is known of that."""
        return []

    def probe_key(self, loaded: Any, model: Model, place: Place) -> str:
        """Nothing is shared that could be wrong."""
        return ""


def of(choice: Choice) -> Engine:
    """The engine of that name."""
    return LmEval(choice) if choice.foreign else Engine(choice)


def parse(name: str, arguments: tuple[str, ...]) -> Engine:
    """The engine that a user names; EvalkitError for an unknown one."""
    return of(engine_name.parse(name, arguments))


def of_inputs(inputs: dict[str, Any]) -> Engine:
    """The engine that a run's inputs name."""
    return of(Choice(inputs["engine"]["name"], inputs["engine"]["args"]))


def digests(files: dict[str, FileEntry] | None) -> dict[str, str] | None:
    """What the run id covers of an adapter's files, as `models.resolve_adapter` has them."""
    return None if files is None else {name: entry["sha256"] for name, entry in files.items()}
