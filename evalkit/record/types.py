"""The JSON files of a run's folder as types: run.json, journal lines, record.json. A line of
samples.jsonl.gz is `harness.samples.Sample`.

They mirror schemas/record.schema.json and journal.schema.json key by key;
tests/test_record_types.py compares them. Nothing is checked here: a value that was read from a file
has such a type only after `schema.check` has accepted it.
"""

from typing import NotRequired, TypedDict

from evalkit.base.machine.types import Code, Environment
from evalkit.inputs.types import (
    Answer,
    EngineEntry,
    FileEntry,
    NumericsEntry,
    RunInputs,
    SuiteIdentity,
)
from evalkit.plan.types import PlanIds
from evalkit.record.sections import (
    Carried,
    Command,
    Graded,
    GroupResult,
    Health,
    ModelDescription,
    OptionsEntry,
    Phase,
    Preferred,
    Segment,
    TaskResult,
)


class JournalLine(TypedDict):
    """A line of journal/<segment>.jsonl: the answers of one batch, by part id."""

    schema: str
    run: str
    batch: str
    segment: str
    answers: dict[str, Answer]
    sha256: str
    split: NotRequired[int]


class RunIds(PlanIds):
    """The identities of a run that are known before it executes."""

    run: str


class Ids(RunIds):
    """The identities of a finished run."""

    answers: str


class RecordedSuite(SuiteIdentity):
    """The suite section of run.json and record.json."""

    name: str
    partial: bool


class RunBody(TypedDict):
    """The content of run.json: what was decided before the run executed."""

    schema: str
    ids: RunIds
    execution: str
    created: str
    suite: RecordedSuite
    inputs: RunInputs
    carried: Carried | None
    model: ModelDescription
    options: OptionsEntry
    unique_tokens: int


class Record(TypedDict):
    """The content of record.json."""

    schema: str
    ids: Ids
    execution: str
    created: str
    suite: RecordedSuite
    answers: dict[str, str]
    tasks: dict[str, TaskResult]
    groups: dict[str, GroupResult]
    model: ModelDescription
    numerics: NumericsEntry
    engine: EngineEntry
    health: Health
    environment: Environment
    code: Code
    command: Command
    phases: dict[str, Phase]
    segments: list[Segment]
    carried: Carried | None
    graded: Graded | None
    preferred: Preferred | None
    files: dict[str, FileEntry]
