"""The engine that computes a plan's answers: evalkit's own, or a model class of lm-eval's.

A run resolves its engine once (`of`). The object then says which options the engine takes, what it
adds to the run's identity, where it computes and how it is loaded, so that no other module has to
know which of the two it is. Nothing is computed here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import steering
from evalkit.base.machine.types import Hardware, Text
from evalkit.inputs import engine_name
from evalkit.inputs.engine_name import Choice
from evalkit.inputs.files import sha256s
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import NumericsEntry, RunInputs
from evalkit.plan import shards

if TYPE_CHECKING:
    from evalkit.run.preparing.prepare import Options

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """What depends on the host of a worker: the device and the folder of an adapter."""

    device: str
    adapter: Path | None = None

    def adapter_digests(self) -> dict[str, str] | None:
        """Return the digests of the adapter's files, which the run id covers."""
        return sha256s(models.resolve_adapter(self.adapter)) if self.adapter else None


@dataclass(frozen=True)
class Engine:
    """evalkit's own engine, and the methods that other engines override."""

    choice: Choice
    bit_repeatable: ClassVar[bool] = True
    fits_memory: ClassVar[bool] = True  # whether a plan is made for the memory of GPUs

    @property
    def computes_elsewhere(self) -> bool:
        """Whether a server computes."""
        return False

    def check(self, asked: "Options") -> None:
        """Raise EvalkitError for an option that it does not take, and where it is not installed."""

    def versions(self) -> dict[str, Text]:
        """Return the versions that the run id covers besides `stamp.versions`."""
        return {}

    def numerics(self, asked: "Options", model: Model) -> NumericsEntry:
        """Return the numerics in the run's identity: all that can change a bit of an answer."""
        from evalkit.engine import core

        profile = asked.profile or "native"
        return core.numerics_for(model, asked.dtype, profile, asked.threads).to_json()

    def level(self, asked: "Options", model: Model) -> str:
        """Return the requested level, or one that a shrunken random model of this config passes."""
        from evalkit.engine.probe import probe

        return asked.level or probe.resolve(model)

    def max_length(self, context: int) -> int:
        """Return the most tokens of a row that it takes, for a model of that context."""
        return context

    def device(self, asked: str | None, say: Say) -> str:
        """Return the requested device, or a GPU where there is one, or the CPU, and `say` it."""
        from evalkit.engine.hardware import device

        chosen = device.pick(asked)
        for line in (device.described(chosen), *steering.lines()):
            say(line)
        return chosen

    def require_packages(self, model: Model, device: str) -> None:
        """Raise EvalkitError where packages for a quantised checkpoint are not installed."""
        from evalkit.engine.hardware import weights

        weights.require_packages(model, device)

    def gpu_memories(self, device: str) -> list[int]:
        """Return the bytes of each GPU that a plan must fit; none where it is not for GPUs."""
        from evalkit.engine.hardware import device as devices

        return devices.memories(device)

    def places(self, place: Place, model: Model, number: int | None, threads: int) -> list[Place]:
        """Return the places of `number` workers, or of as many as this host can have: each has a
        GPU or a share of the cores."""
        from evalkit.engine.hardware import device

        devices = device.usable(place.device, model.weight_bytes)
        if number is None:
            on_cpu = devices == ["cpu"]
            number = shards.available_cores() // threads if on_cpu else len(devices)
        return [Place(devices[n % len(devices)], place.adapter) for n in range(max(number, 1))]

    def hardware(self, device: str) -> Hardware:
        """Return the hardware that it computes on."""
        from evalkit import engine

        return engine.hardware(device)

    def load(self, inputs: RunInputs, model: Model, place: Place, max_length: int | None) -> Any:
        """Return the engine with a model's weights. `inputs` are the run's; `max_length`, the
        plan's, is not used by this engine."""
        from evalkit import engine

        numerics: Any = inputs["numerics"]  # of this engine all of it is known
        return engine.load(
            model, Tokenizer(model), engine.Numerics(**numerics), place.device,
            level=inputs["engine"]["level"], adapter=place.adapter,
        )  # fmt: skip

    def lanes(self, loaded: Any) -> list[Any]:
        """Return the loaded engine for each thread that may use it: one for each device."""
        from evalkit.engine import pipeline

        first = pipeline.first_layers(loaded.model)
        return pipeline.lanes(loaded, pipeline.Stages(first)) if len(first) > 1 else [loaded]

    def kernels(self, loaded: Any, model: Model, device: str) -> list[str]:
        """Return lines on the kernels that may differ from those of another host."""
        from evalkit.engine.hardware import kernels, weights

        more = [kernels.CUMSUM_NOTE] if kernels.needs_cumsum(loaded.model.config, device) else []
        return [
            f"attention {kernels.describe_attention(loaded)}",
            *more,
            *weights.describe_quantized(model, loaded.model),
        ]

    def probe_key(self, loaded: Any, model: Model, place: Place) -> str:
        """Return the key of a check of its level; empty where it needs no check."""
        from evalkit.engine.probe import outcome

        return outcome.key_of(loaded, model, place.adapter_digests(), place.device)


class LmEval(Engine):
    """A model class of lm-eval's, which decides itself how it computes."""

    bit_repeatable = False
    fits_memory = False

    def check(self, asked: "Options") -> None:
        """Raise EvalkitError for options that it does not take, and where it is not installed."""
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

    def versions(self) -> dict[str, Text]:
        """Return lm-eval's version and that of the package that the class runs on."""
        from evalkit.harness.models import classes

        return classes.versions(self.choice)

    def numerics(self, asked: "Options", model: Model) -> NumericsEntry:
        """Return the dtype, where the class takes one; the rest is unknown."""
        from evalkit.engine import core
        from evalkit.harness.models import classes

        dtype = core.numerics_for(model, asked.dtype, "native", 1).dtype
        return classes.numerics(self.choice, dtype, asked.dtype)

    def level(self, asked: "Options", model: Model) -> str:
        """Rows share nothing."""
        return "none"

    def max_length(self, context: int) -> int:
        """Return what the class takes of the context."""
        from evalkit.harness.models import classes

        return classes.plan_length(self.choice, context)

    @property
    def computes_elsewhere(self) -> bool:
        """Whether the class sends its requests to a server."""
        from evalkit.harness.models import classes

        return classes.is_served(classes.model_class(self.choice))

    def device(self, asked: str | None, say: Say) -> str:
        """Return the CPU where a server computes; else as evalkit's engine does."""
        from evalkit.engine.hardware import device

        if self.computes_elsewhere:
            say(f"a server computes: {self.choice.name}")
            return device.pick("cpu")
        return super().device(asked, say)

    def require_packages(self, model: Model, device: str) -> None:
        """The class has packages of its own."""

    def gpu_memories(self, device: str) -> list[int]:
        """Return nothing: the class fits its batches into the memory itself."""
        return []

    def places(self, place: Place, model: Model, number: int | None, threads: int) -> list[Place]:
        """Return the place of one worker, or of `number`; the class decides how to use the host."""
        return [place] * (number or 1)

    def hardware(self, device: str) -> Hardware:
        """Return this host's hardware, or a server's, which can't be known."""
        from evalkit import engine
        from evalkit.harness.models import classes

        return classes.hardware(self.choice, engine.hardware(device))

    def load(self, inputs: RunInputs, model: Model, place: Place, max_length: int | None) -> Any:
        """Return the class, made with its arguments."""
        from evalkit.harness.models import foreign

        assert max_length is not None, "such a worker is started when there is a plan"
        return foreign.load(
            self.choice, model, Tokenizer(model), numerics=inputs["numerics"],
            device=place.device, adapter=place.adapter, max_length=max_length,
        )  # fmt: skip

    def lanes(self, loaded: Any) -> list[Any]:
        """Return one engine: the class is not made for several threads."""
        return [loaded]

    def kernels(self, loaded: Any, model: Model, device: str) -> list[str]:
        """Return nothing: the kernels are not known."""
        return []

    def probe_key(self, loaded: Any, model: Model, place: Place) -> str:
        """Return no key: rows share nothing that could be wrong."""
        return ""


def of(choice: Choice) -> Engine:
    """Return the engine of that name."""
    return LmEval(choice) if choice.foreign else Engine(choice)


def parse(name: str, arguments: tuple[str, ...]) -> Engine:
    """Return the engine that a user names; EvalkitError for an unknown one."""
    return of(engine_name.parse(name, arguments))


def of_inputs(inputs: RunInputs) -> Engine:
    """Return the engine that a run's inputs name."""
    return of(Choice(inputs["engine"]["name"], inputs["engine"]["args"]))
