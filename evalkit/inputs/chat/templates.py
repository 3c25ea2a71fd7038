"""A suite's settings of chats and thinking, and the chat template that makes a prompt of a chat:
the same prompt whenever it is made.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, cast

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.inputs.types import ChatIdentity, SuiteFile

# Under these a record says what the suite said, where it said something.
IDENTITY = (
    "chat_template_file", "chat_template_args", "think_start", "think_end", "max_think_toks",
)  # fmt: skip
MAX_BYTES = 1 << 20  # of a template's file
TIME = "%Y-%m-%dT%H:%M:%SZ"
READS_CLOCK = "strftime_now"  # what a template calls the clock


class Message(TypedDict):
    """A turn of a chat, as lm-eval makes it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A suite's own chat template (`text`, from its file `name`; None: the model's), what is handed
    to a template, and how texts think.

    `think_end` is True where the model's template or tokenizer is to say what ends a thought.
    `clock` is the time that a template reads, fixed once a run; None where it reads none.
    """

    name: str | None = None
    text: str | None = None
    args: dict[str, object] = field(default_factory=dict)
    think_start: str = ""
    think_end: str | bool = False
    max_think_toks: int = 0
    clock: str | None = None

    def identity(self) -> ChatIdentity:
        """Return what the suite id covers: only what is set, under the suite's keys."""
        file = None
        if self.text is not None:
            file = {"name": self.name, "sha256": canon.digest_bytes(self.text.encode())[7:]}
        values = {
            "chat_template_file": file,
            "chat_template_args": self.args,
            "think_start": self.think_start,
            "think_end": self.think_end,
            "max_think_toks": self.max_think_toks,
            "clock": self.clock,
        }
        return cast(ChatIdentity, {key: value for key, value in values.items() if value})

    def at(self, clock: str | None) -> "Chat":
        """Return the same settings with another time."""
        return replace(self, clock=clock)

    @property
    def now(self) -> datetime | None:
        """The time that a template reads."""
        return None if self.clock is None else datetime.strptime(self.clock, TIME)


def now() -> str:
    """Return this second, UTC, in the form of a recorded clock."""
    return datetime.now(UTC).strftime(TIME)


def parse(raw: SuiteFile, suite: Path) -> tuple[bool | str, Chat]:
    """Return whether a suite applies a chat template (or the name of one of the model's), and its
    other settings of chats. Raises EvalkitError for keys that contradict each other and for a
    template file that isn't the suite's."""
    wanted: bool | str = raw.get("apply_chat_template", False)
    if "chat_template" in raw:
        if "apply_chat_template" in raw:
            raise EvalkitError("chat_template and apply_chat_template are both given", fix="give"
                               " one of them: they are the same", where=str(suite))  # fmt: skip
        wanted = raw["chat_template"]
    name = text = None
    if isinstance(wanted, str) and _is_file(wanted, suite):
        name, text, wanted = wanted, _template(suite, wanted), True
    end, start = raw.get("think_end") or False, raw.get("think_start") or ""
    for key in ("think_start", "max_think_toks"):
        if raw.get(key) and not end:
            raise EvalkitError(f"{key} says nothing without think_end", where=str(suite))
    args = raw.get("chat_template_args") or {}
    if (args or raw.get("fewshot_as_multiturn")) and not wanted:
        key = "chat_template_args" if args else "fewshot_as_multiturn"
        raise EvalkitError(f"{key} says nothing without a chat template", where=str(suite),
                           fix="set chat_template: true")  # fmt: skip
    return wanted, Chat(name, text, args, start, end, raw.get("max_think_toks") or 0)


def _is_file(wanted: str, suite: Path) -> bool:
    """Whether a chat template's name is that of a file: one that is there, or looks like one."""
    looks = "/" in wanted or re.search(r"\.(jinja2?|j2|txt|tmpl)$", wanted)
    return bool(looks) or (suite.parent / wanted).is_file()


def _template(suite: Path, name: str) -> str:
    folder = suite.parent.resolve()
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder):
        raise EvalkitError("a suite's chat template lies beside it or below", where=str(suite))
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        return data.decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EvalkitError(f"can't read the suite's chat template '{name}': {reason}",
                           where=str(suite)) from None  # fmt: skip


class Template:
    """A tokenizer's chat template with what a suite hands to it; called as lm-eval calls a model's
    `apply_chat_template`.

    A template may refuse a system turn. Then that is left out, as lm-eval's `hf` model does, and
    counted in `dropped`; where it holds the suite's own system instruction, that is an error.
    """

    def __init__(
        self, hf: Any, args: Mapping[str, object], now: datetime | None, instruction: str | None
    ) -> None:
        self.dropped = 0
        self._hf, self._args, self._now, self._instruction = hf, args, now, instruction

    def __call__(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A chat as one prompt."""
        import jinja2

        others = [message for message in chat_history if message["role"] != "system"]
        try:
            return self._render(chat_history, add_generation_prompt)
        except jinja2.exceptions.TemplateError as error:
            if len(others) == len(chat_history):
                raise
            if self._instruction:
                raise EvalkitError(
                    f"the model's chat template refuses a system turn: {error}",
                    fix="leave system_instruction out of the suite, or give a chat_template of the"
                    " suite's own that takes one",
                ) from None
        self.dropped += 1
        return self._render(others, add_generation_prompt)

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        with _clock_at(self._now):
            text: str = self._hf.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._args,
            )
        return text


@contextmanager
def _clock_at(now: datetime | None) -> Iterator[None]:
    """Let transformers' templates read this time, if any, until the end of the block."""
    from transformers.utils import chat_template_utils

    untyped: Any = chat_template_utils
    before = untyped.datetime
    if now is not None:
        untyped.datetime = _Stopped(now)
    try:
        yield
    finally:
        untyped.datetime = before


class _Stopped:
    """A clock that stands still."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        """The one time there is."""
        return self._moment
