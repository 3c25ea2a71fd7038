"""A run's samples in public: their files' names and content as types, and the digest that stands
for a text.

Nothing here writes or checks one; `public_form` does, and `verify`.
"""

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine.types import Unknown
from evalkit.inputs.types import Number

SCHEMA = "evalkit/public/2"
REVEALED = "evalkit/revealed/1"
HEAD, LINES = "public.json", "public.jsonl.gz"
_KEY = ".pack.key"  # behind a run's name: what its author keeps


class PublicMetric(TypedDict):
    """How the values of a metric become one."""

    metric: str
    aggregation: str | None


class PublicTask(TypedDict):
    """What public.json says of a leaf task. `plain`: no code or filter of its own scores it."""

    metric_list: list[PublicMetric] | None
    plain: bool


class PublicHead(TypedDict):
    """The content of public.json."""

    schema: str
    tasks: dict[str, PublicTask]


class HiddenText(TypedDict):
    """What a public pack says of a generated text. `text` is its digest; an engine of lm-eval's
    tells no more than that and why it ended."""

    text: str
    stop: str | Unknown
    tokens: NotRequired[int]
    logprob: NotRequired[Number]
    margin: NotRequired[Number | None]


class PublicLine(TypedDict):
    """A line of public.jsonl.gz: a document without its texts. `answers`: by request and repeat, a
    log-likelihood as a list of its fields; `metrics` and `filtered`: by filter; `lengths`: each
    choice's characters and bytes."""

    task: str
    doc_id: int
    sha256: str
    answers: list[list[HiddenText | list[Any]]]
    metrics: dict[str, dict[str, Any]]
    lengths: NotRequired[list[list[int]]]
    filtered: NotRequired[dict[str, Any]]


class Revealed(TypedDict):
    """What opens one document of a public pack; schemas/revealed.schema.json describes it."""

    schema: str
    record: str
    task: str
    doc_id: int
    salt: str
    document: list[Any]
    answers: list[list[str]] | None
    filtered: dict[str, Any] | None


class Salts:
    """A salt for each document, from a key that only the author has."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, task: str, doc_id: int) -> str:
        """A document's salt (hex), which tells nothing of another's."""
        return hmac.new(self._key, f"{task}/{doc_id}".encode(), hashlib.sha256).hexdigest()


def salts_of(run: Path, place: Path) -> Salts:
    """The salts of a run's public pack: from the key beside its folder, or in the folder `place`,
    where it is made if there is none. EvalkitError (1) where the file there is no key."""
    path = run.with_name(run.name + _KEY)
    path = path if path.exists() else place / path.name
    if not path.exists():
        canon.write_atomic(path, secrets.token_hex(32) + "\n", private=True)
    try:
        key = bytes.fromhex(canon.read_bytes(path, 100).decode().strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != 32:
        fix = "restore it, or move it away to pack anew"
        what = "this is no key of a public pack"
        raise EvalkitError(what, where=str(path), fix=fix, code=Exit.FAILED)
    return Salts(key)


def hidden(salt: str, value: Any) -> str:
    """sha256 (hex) that tells only who has both a document's salt and a text whether it is that."""
    return canon.digest([salt, value])[7:]
