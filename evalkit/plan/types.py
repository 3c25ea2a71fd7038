"""The content of plan.json as types. schemas/plan.schema.json is the source; `tests/test_types.py`
holds these types against it.
"""

from typing import Literal, NotRequired, TypedDict

from evalkit.inputs.types import FileEntry

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]  # of a request
# A target, a JSON array (in Python a list): row, index in the row of its path's last token,
# position of the first scored output, the token scored behind the path's end (-1: none), and the
# request's id within its task.
TargetEntry = tuple[int, int, int, int, str]


class PlanIds(TypedDict):
    """The identities of a plan and of its suite."""

    suite: str
    plan: str


class PolicyEntry(TypedDict):
    """How rows were packed; see `batch.Policy`. The last three only in a plan for GPUs."""

    max_tokens: int
    row_tokens: int
    max_tree: int
    min_trunk: int
    chunk: int
    max_rows: int
    max_scored: int
    max_slots: int
    max_cache: int
    waves: int
    prefill: NotRequired[int]
    max_trunk: NotRequired[int]
    memory: NotRequired[int]


class SettingsEntry(TypedDict):
    """How a generation runs; see `request.Settings`. The last ones only where they are set."""

    until: list[str]
    max_gen_toks: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    seed: int
    min_p: NotRequired[float]
    repetition_penalty: NotRequired[float]
    presence_penalty: NotRequired[float]
    frequency_penalty: NotRequired[float]
    think_start: NotRequired[str]
    think_end: NotRequired[str]
    max_think_toks: NotRequired[int]


class Block(TypedDict):
    """Where the compressed token ids of a trunk or a batch stand in plan.tokens, in bytes."""

    offset: int
    size: int


class TrunkEntry(Block):
    """A shared prefix: `parent` is the index of the trunk before it, `length` its own tokens."""

    id: str
    parent: int | None
    length: int


class BatchEntry(Block):
    """A batch: `settings` and `trunk` are indices into the plan's lists; `rows`, `width` (tokens
    that rows are padded to), `cost` and `tokens` are counts."""

    id: str
    task: str
    kind: Kind
    settings: int | None
    trunk: int | None
    rows: int
    width: int
    cost: int
    tokens: int
    targets: list[TargetEntry]


class PlanBody(TypedDict):
    """The content of plan.json."""

    schema: str
    ids: PlanIds
    level: str
    policy: PolicyEntry
    tokenizer: dict[str, str]
    max_length: int
    settings: list[SettingsEntry]
    trunks: list[TrunkEntry]
    batches: list[BatchEntry]
    truncated: dict[str, int]
    leaking: dict[str, int]
    empty_texts: dict[str, list[str]]
    missing_bos: NotRequired[int]
    appended_eos: NotRequired[int]
    dropped_system_turns: NotRequired[int]
    double_bos: NotRequired[int]
    tokens: FileEntry
