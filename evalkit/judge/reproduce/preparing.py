"""Prepares a reproduction: checks the original, resolves what would run, and names what differs.

Nothing runs here. A record's settings are taken over, but nothing that can be opened, run or sent
to: those names come from the reproducer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.base.machine.types import Unknown
from evalkit.inputs import engine_name
from evalkit.inputs import suite as suites
from evalkit.judge.reproduce import differences as differing
from evalkit.judge.reproduce.differences import Difference
from evalkit.judge.verify import require_consistent
from evalkit.plan import store
from evalkit.record.reading.identity import inputs_of, read_record
from evalkit.record.types import Record
from evalkit.run.preparing import named, prepare
from evalkit.run.preparing.prepare import Job, Options


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reproducer chooses. `given` are options of the new execution that replace the recorded
    ones; `sample` asks for that many batches of the original's plan only, drawn with `seed`."""

    out: Path
    given: Mapping[str, Any]  # fields of `Options`; None and () stand for what was not given
    workers: int | None = None
    sample: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A reproduction that could start: the original, the job that would run, what differs."""

    original: Path
    record: Record
    job: Job
    differences: tuple[Difference, ...]

    def lines(self) -> list[str]:
        """Say what would run, after the differences of the environment."""
        tasks, model = self.record["tasks"], self.record["model"]["reference"]
        figures = store.figures(store.Plan(self.original).body)
        executed = self.record["phases"].get("execute")
        took = f", {executed['seconds']:.1f} s then" if executed else ""
        return [
            *differing.lines(self.differences),
            f"original  {model} on {self.record['suite']['name']}, run"
            f" {self.record['ids']['run'][7:19]}",
            f"to do     {sum(task['n'] for task in tasks.values()):,} documents of {len(tasks):,}"
            f" leaf tasks, {figures.batches:,} batches, {figures.computed:,} tokens{took}",
        ]


def prepared(original: Path, wanted: Wanted) -> Prepared:
    """Prepare to reproduce a run's folder; EvalkitError (1) for one that contradicts itself."""
    from evalkit import engine

    require_consistent(original, "reproduce")
    record = read_record(original)
    job = prepare.prepare(options(record, wanted, original))
    if original.resolve().is_relative_to(job.folder.resolve()):
        raise EvalkitError(
            "the original lies where the reproduction would be", where=str(job.folder),
            fix="choose another --out",
        )  # fmt: skip
    here = stamp.environment(engine.hardware(job.device))
    inputs = differing.of_inputs(inputs_of(record), {**job.inputs})
    environments = differing.of_environments(record["environment"], {**here})
    return Prepared(original, record, job, (*inputs, *environments))


def options(record: Record, wanted: Wanted, where: Path) -> Options:
    """Return the recorded settings with the given ones in their place. Raises EvalkitError (3) if
    the record names a model, an adapter, an engine or a suite that is not shipped, and the
    reproducer gave none. What lets a model run code is never recorded."""
    given = {name: value for name, value in wanted.given.items() if value not in (None, ())}
    model, numerics, engine = record["model"], record["numerics"], record["engine"]
    adapter = model["adapter"]["reference"] if model["adapter"] else None
    named.require(
        [
            *named.model(model["reference"], given.get("model")),
            *named.suite(record["suite"]["name"], given.get("suite")),
            *named.adapter(adapter, given.get("adapter")),
            *named.engine(engine["name"], engine["args"], given.get("engine")),
        ],
        where,
    )
    own = given.get("engine", engine["name"]) == engine["name"] == engine_name.OWN
    same_model = given.get("model") in (None, model["reference"])
    recorded = Options(
        model=model["reference"],
        suite=record["suite"]["name"],
        revision=_text(model["revision"]) if same_model else None,
        limit=record["suite"]["limit"],
        out=wanted.out,
        dtype=_text(numerics["dtype"]),
        profile=_text(numerics["profile"]) if own else None,
        level=engine["level"] if own else None,
        seed=suites.common_seed(record["suite"]["seeds"]),  # --seed sets all of them
        threads=numerics["threads"] if own and isinstance(numerics["threads"], int) else 1,
        memory=engine["policy"].get("memory", 0),
        clock=record["suite"].get("clock"),
    )
    return replace(recorded, **given)


def _text(value: str | Unknown) -> str | None:
    return value if isinstance(value, str) else None
