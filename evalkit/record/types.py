"""The JSON files of a run's folder as types: run.json, journal lines, record.json.

They mirror the schemas key by key (tests/test_record_types.py). A value from a file has such a type
only once `schema.check` has accepted it.
"""

from typing import NotRequired, TypedDict, final

from evalkit.base.machine.types import Code, Environment, Unknown
from evalkit.inputs.types import (
    Answer,
    EngineEntry,
    FileEntry,
    NumericsEntry,
    RunInputs,
    SuiteIdentity,
    Version,
)
from evalkit.plan.types import PlanIds
from evalkit.record.sections import (
    Carried,
    Command,
    Graded,
    GroupResult,
    Health,
    Metric,
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


class ImportedSuite(TypedDict):
    """What lm-eval's results say of a suite."""

    name: str
    tasks: list[dict[str, str]]
    limit: int | None
    partial: bool


class ImportedModel(TypedDict):
    """What lm-eval's results say of a model."""

    reference: str
    revision: Unknown
    parameters: Unknown


class ImportedDataset(TypedDict):
    """What lm-eval's results say of where documents come from."""

    repo: str
    config: str | None
    split: str | None
    revision: Unknown
    rows: Unknown
    licence: Unknown


class ImportedTask(TypedDict):
    """What lm-eval's results say of a leaf task."""

    alias: str
    metrics: dict[str, Metric]
    n: int
    documents: int
    num_fewshot: int
    version: Version
    output_type: str | None
    dataset: ImportedDataset


class ImportedEngine(TypedDict):
    """What lm-eval's results say of what computed the answers."""

    name: str
    bit_repeatable: bool


@final
class ImportedRecord(TypedDict):
    """What lm-eval's results say, in a record's form, without the keys that are not known."""

    schema: str
    ids: dict[str, str]
    execution: str
    tasks: dict[str, ImportedTask]
    groups: dict[str, GroupResult]
    suite: ImportedSuite
    model: ImportedModel
    numerics: dict[str, Unknown]
    engine: ImportedEngine
    environment: dict[str, dict[str, str]]
    created: str | None


AnyRecord = Record | ImportedRecord


class PlainTask(TypedDict):
    """The numbers of a leaf task in a stranger's results."""

    metrics: dict[str, Metric]
    n: int
    documents: int


class PlainScores(TypedDict):
    """The numbers in a stranger's results, in the places where a record has its own. They are as
    they stand there: nothing has checked them yet."""

    tasks: dict[str, PlainTask]
    groups: dict[str, GroupResult]
