"""A chat put through a model's chat template: one prompt, the same whenever it is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from evalkit.base.errors import EvalkitError

Message = dict[str, Any]


class Template:
    """A tokenizer's chat template with what a suite hands to it; called as lm-eval calls a model's
    `apply_chat_template`.

    A template may refuse a system turn. Then that is left out, as lm-eval's `hf` model does, and
    counted in `dropped`; where it holds the suite's own system instruction, that is an error.
    """

    def __init__(
        self, hf: Any, args: dict[str, Any], now: datetime | None, instruction: str | None
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
