"""The JSON of what goes into a run, as types: a suite's lock, its identity, files, a run's inputs.

The schemas in `schemas/` are the source (`tests/test_types.py`). A value from a file has such a
type once `schema.check` has accepted it.
"""

from typing import NotRequired, TypedDict, final

from evalkit.base.machine.types import Unknown, Versions

Setting = str | int | float | bool | None | list[str]  # a value of a task's generation settings
Version = str | int | float | None  # a task's or a group's, as its YAML gives it


class FileEntry(TypedDict):
    """A file's size in bytes and the sha256 (hex) of its bytes."""

    size: int
    sha256: str


@final
class ShotRows(TypedDict):
    """The pinned rows that worked examples are drawn from. `split` is None for examples in the
    task's own YAML; `digest` covers lm-eval's doc_hash of all `rows` rows, in order."""

    split: str | None
    rows: int
    digest: str


class MetricEntry(TypedDict):
    """How a leaf task's values of one metric become one, and which way is up (None: unsaid)."""

    aggregation: str
    higher_is_better: bool | None


class GroupMetric(TypedDict):
    """How a group aggregates one metric. `filters` is None for all that its leaf tasks have. A
    metric aggregated in several ways has an entry for each filter, named `<metric>,<filter>`."""

    weight_by_size: bool
    filters: list[str] | None


class GroupScore(TypedDict):
    """How a group is scored from its leaf tasks; without metrics it is not scored."""

    alias: str
    version: Version
    metrics: dict[str, GroupMetric]


class Asked(TypedDict):
    """The settings of a suite that its prompts follow from."""

    apply_chat_template: bool | str
    fewshot_as_multiturn: bool
    system_instruction: str | None
    gen_kwargs: dict[str, Setting]
    seeds: dict[str, int]


class LockedDataset(TypedDict):
    """A dataset of a lock: a Hub repo at a commit, or local files at a digest of their bytes.
    `unproven` says why nothing shows that its rows are the Hub's, in a shipped lock."""

    revision: str | Unknown
    licence: str
    redistributable: bool
    unproven: NotRequired[str]


class LockedTask(TypedDict):
    """A leaf task of a lock: `rows` digests lm-eval's doc_hash of all `documents`, in order, and
    `settings` lm-eval's config. `shots` are the rows that worked examples are drawn from."""

    dataset: str
    config: str | None
    split: str
    documents: int
    rows: str
    shots: ShotRows | Unknown | None
    output_type: str
    num_fewshot: int
    version: Version
    metrics: dict[str, MetricEntry]
    filters: list[str]
    settings: str


class LockBody(TypedDict):
    """The content of lock.yaml."""

    schema: str
    suite: str
    lm_eval: str
    rows_file: str
    scorers: NotRequired[list[str]]
    unlocked: NotRequired[dict[str, str]]
    asked: Asked
    datasets: dict[str, LockedDataset]
    groups: dict[str, list[str]]
    group_scores: dict[str, GroupScore]
    tasks: dict[str, LockedTask]


class SuiteFileTask(TypedDict):
    """A member of a suite whose file sets its shots."""

    task: str
    num_fewshot: NotRequired[int | None]


class SuiteFileSeeds(TypedDict, total=False):
    """The seeds that a suite's file sets."""

    random: int
    numpy: int
    torch: int
    fewshot: int


class SuiteFile(TypedDict):
    """The content of a suite's YAML file."""

    name: str
    description: NotRequired[str]
    tasks: list[str | SuiteFileTask]
    include_path: NotRequired[str]
    apply_chat_template: NotRequired[bool | str]
    chat_template: NotRequired[bool | str]
    chat_template_args: NotRequired[dict[str, object]]
    think_start: NotRequired[str]
    think_end: NotRequired[bool | str]
    max_think_toks: NotRequired[int]
    fewshot_as_multiturn: NotRequired[bool]
    system_instruction: NotRequired[str | None]
    gen_kwargs: NotRequired[dict[str, Setting]]
    seeds: NotRequired[SuiteFileSeeds]
    limit: NotRequired[int | None]


class TemplateFile(TypedDict):
    """A suite's own chat template: its path relative to the suite's file, and its sha256 (hex)."""

    name: str
    sha256: str


class ChatIdentity(TypedDict, total=False):
    """What a suite says of chats and thinking; only what it sets."""

    chat_template_file: TemplateFile
    chat_template_args: dict[str, object]
    think_start: str
    think_end: bool | str
    max_think_toks: int
    clock: str


class Member(TypedDict):
    """A task, group or tag of a suite; `num_fewshot` is None where the task's own counts."""

    task: str
    num_fewshot: int | None


class DatasetRevision(TypedDict):
    """Which revision of a dataset a suite means."""

    revision: str | Unknown


class Seeds(TypedDict):
    """The seeds of a suite, by the names that lm-eval gives them."""

    random: int
    numpy: int
    torch: int
    fewshot: int


class SuiteIdentity(ChatIdentity):
    """Everything that the suite id covers."""

    tasks: list[Member]
    limit: int | None
    apply_chat_template: bool | str
    fewshot_as_multiturn: bool
    system_instruction: str | None
    gen_kwargs: dict[str, Setting]
    seeds: Seeds
    task_files: dict[str, str]
    datasets: dict[str, DatasetRevision]
    rows: dict[str, str]
    scorers: dict[str, str | None]
    shots: dict[str, ShotRows | Unknown]


class Quantization(TypedDict):
    """How a checkpoint's weights are quantised, and whether they were unpacked before use."""

    method: str
    bits: int | Unknown
    dequantized: bool | Unknown


class SpecialToken(TypedDict):
    """The ids of a special token where the tokenizer's and config.json's differ."""

    tokenizer: int | None
    config: int | list[int]


class AdapterEntry(TypedDict):
    """A LoRA adapter: its folder as the user named it, and its files."""

    reference: str
    files: dict[str, FileEntry]


class NumericsEntry(TypedDict):
    """What can change a bit of an answer besides weights and batch. evalkit's own engine knows all
    of it; what a model class of lm-eval decides itself is unknown."""

    profile: str | Unknown
    dtype: str | Unknown
    attention: str | Unknown
    tf32: bool | Unknown
    deterministic: bool | Unknown
    threads: int | Unknown


class EngineEntry(TypedDict):
    """What executes a plan. `args` and `versions` are those of a model class of lm-eval's, and
    empty for evalkit's own engine."""

    name: str
    level: str
    policy: dict[str, int]
    args: dict[str, str]
    versions: dict[str, str | Unknown]
    bit_repeatable: bool


class RunInputs(TypedDict):
    """What a run follows from besides batches. `model`, `adapter`: sha256 (hex) by file name."""

    suite: SuiteIdentity
    model: dict[str, str]
    adapter: dict[str, str] | None
    numerics: NumericsEntry
    engine: EngineEntry
    versions: Versions


Number = float | str  # a float64; a non-finite one is "nan", "inf" or "-inf"


@final
class Loglikelihood(TypedDict):
    """The answer to a log-likelihood request."""

    loglikelihood: Number
    is_greedy: bool
    num_tokens: int


@final
class RollingLoglikelihood(TypedDict):
    """The answer to a rolling log-likelihood request, or to one window of it."""

    loglikelihood: Number
    num_tokens: int


class Thought(TypedDict):
    """How many tokens of a text are a thought, and whether the thought ended."""

    tokens: int | Unknown
    ended: bool


@final
class Generation(TypedDict):
    """The answer to a generation request. A model class of lm-eval may tell the text only."""

    text: str
    tokens: list[int] | Unknown
    logprobs: list[Number] | Unknown
    margins: list[Number] | Unknown
    stop: str | Unknown
    raw: NotRequired[str]
    thought: NotRequired[Thought]


Answer = Loglikelihood | RollingLoglikelihood | Generation
