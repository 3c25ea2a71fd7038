"""The sections of a record as types: results, the model, where it ran, what it took.

They mirror the parts of schemas/record.schema.json; `record.types` puts them together, and
tests/test_record_types.py compares them with the schema.
"""

from typing import NotRequired, TypedDict

from evalkit.base.machine.types import Flag, Text, Unknown
from evalkit.inputs.chat.texts import TextsEntry
from evalkit.inputs.types import (
    AdapterEntry,
    FileEntry,
    Number,
    Quantization,
    SpecialToken,
    Version,
)

Count = int | Unknown
# How lm-eval makes a standard error.
MEAN = "sample standard deviation / sqrt(n)"
POOLED = "pooled over leaf tasks"
UNWEIGHTED = "root of summed squares / number of leaf tasks"
BOOTSTRAP = "bootstrap"


class Metric(TypedDict):
    """A metric's value and its standard error."""

    value: Number
    stderr: Number | None
    stderr_method: str | None
    higher_is_better: bool | None


class TaskDataset(TypedDict):
    """Where the documents of a leaf task come from."""

    repo: str
    config: str | None
    split: str
    revision: Text
    rows: str
    licence: Text
    redistributable: Flag


class TaskResult(TypedDict):
    """The result of a leaf task."""

    alias: str
    output_type: str
    version: Version
    num_fewshot: int
    n: int
    n_expected: int
    documents: int
    metrics: dict[str, Metric]
    questions: str
    prompts: str
    dataset: TaskDataset
    texts: NotRequired[TextsEntry]


class GroupResult(TypedDict):
    """The result of a group."""

    alias: str
    version: Version
    subtasks: list[str]
    n: int
    metrics: dict[str, Metric]


class ModelDescription(TypedDict):
    """The model section of run.json and record.json."""

    reference: str
    revision: Text
    files: dict[str, FileEntry]
    adapter: AdapterEntry | None
    quantization: Quantization | None
    config: str
    tokenizer: str
    chat_template: str | None
    parameters: Count
    dtype: Text
    trust_remote_code: bool
    special_tokens: NotRequired[dict[str, SpecialToken]]
    tokenizer_reads_otherwise: NotRequired[str | None]
    generation: NotRequired[dict[str, object]]


class Health(TypedDict):
    """Counts of what should be zero."""

    truncated_prompts: int
    missing_bos: int
    double_bos: int
    fewshot_leaks: int
    empty_texts: int
    empty_generations: int
    cut_generations: Count
    answers_not_found: int
    nan_answers: int
    exact_ties: int
    split_batches: int
    appended_eos: NotRequired[int]
    dropped_system_turns: NotRequired[int]
    endless_thoughts: NotRequired[int]


class OptionsEntry(TypedDict):
    """The options of a run as run.json and record.json keep them; see `prepare.Options`."""

    model: str
    suite: str
    revision: str | None
    limit: int | None
    out: str
    offline: bool
    dtype: str | None
    profile: str | None
    level: str | None
    adapter: str | None
    engine: str
    engine_args: list[str]
    device: str | None
    seed: int | None
    threads: int
    memory: int | None
    allow_pickle: bool
    trust_remote_code: bool
    fresh: bool
    again: bool


class Command(TypedDict):
    """The command line of a run and its resolved options."""

    argv: list[str]
    config: OptionsEntry


class Energy(TypedDict):
    """Joules by part."""

    cpu: float | Unknown
    gpu: float | Unknown


class Phase(TypedDict):
    """Time and work of one phase."""

    seconds: float
    tokens: int | None
    tokens_per_second: float | None
    peak_memory_bytes: Count | None
    energy_joules: Energy


# A part of a host's hardware; an object where it is unknown.
HardwarePart = str | int | float | bool | None | list[str | float] | dict[str, object]


class Segment(TypedDict):
    """One process's stretch of a run."""

    segment: str
    started: Text
    stopped: Text
    host: Text
    hardware: str | dict[str, HardwarePart]
    slurm: dict[str, str | int | None] | None
    batches: int
    level: NotRequired[Text | None]
    repeats: NotRequired[Text | None]
    kernels: NotRequired[list[str] | Unknown]


class Carried(TypedDict):
    """The run whose answers a record takes over."""

    run: str
    batches: int


class Preferred(TypedDict):
    """The segment whose answers count where two segments disagree."""

    segment: str
    batches: int


class GradingLimits(TypedDict):
    """What a graded program may take."""

    seconds: int
    memory_bytes: int


class Grading(TypedDict):
    """grading.json: how the programs of a run were executed."""

    image: str
    runtime: str
    limits: GradingLimits


class Graded(Grading):
    """The record's section on graded programs, with their counts."""

    programs: int
    passed: int
