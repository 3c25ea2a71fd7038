"""What a suite and a model together make of a task's requests: the chat template that prompts go
through, and the terms on which texts are generated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from evalkit.base.errors import EvalkitError
from evalkit.inputs.chat import texts
from evalkit.inputs.chat.templates import Template
from evalkit.inputs.models import checkpoint
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.suite import Suite
from evalkit.plan.requests.request import Terms, Thinking


@dataclass(frozen=True, slots=True)
class Asking:
    """`template` makes a prompt of a chat; None where the suite applies none. `words` begin and end
    a thought of the model's, whether or not the suite has its texts think; `thinks`: the suite
    tells the template that they do."""

    template: Callable[..., str] | None = None
    terms: Terms = field(default_factory=Terms)
    words: tuple[str, str] | None = None
    thinks: bool = False

    @property
    def dropped(self) -> int:
        """System turns that were left out so far, which the template refuses."""
        return self.template.dropped if isinstance(self.template, Template) else 0

    def check_scored(self, task: str, context: str) -> None:
        """EvalkitError for choices that would be scored within a thought, as lm-eval refuses them:
        what a model thinks of is no answer."""
        start, end = self.words or ("", "")
        is_open = bool(start) and texts.is_open(context, start, end)
        if self.template is None or not (is_open or self.thinks):
            return
        behind = f"behind an open {start}" if is_open else "of a model that is told to think"
        raise EvalkitError(
            f"task '{task}' scores choices {behind}",
            fix="set chat_template_args: {enable_thinking: false} in the suite, if the model's"
            " template knows it, or choose tasks that generate",
        )


PLAIN = Asking()


def of(suite: Suite, model: Model, tokenizer: Tokenizer) -> Asking:
    """How a suite asks a model; EvalkitError where it can't."""
    tokenizer.check_vocabulary()
    template = tokenizer.chat_template_for(suite)
    words = tokenizer.thought_words()
    thought = _thinking(suite, words)
    if thought and thought.start:
        words = (thought.start, thought.end)
    terms = Terms(suite.seeds["torch"], checkpoint.own_settings(model), thought)
    return Asking(template, terms, words, suite.chat.args.get("enable_thinking") is True)


def _thinking(suite: Suite, words: tuple[str, str] | None) -> Thinking | None:
    """How texts think, if the suite says that they may; what it leaves open, the model says."""
    chat = suite.chat
    if not chat.think_end:
        return None
    if isinstance(chat.think_end, str):
        known = {end: start for start, end in texts.KNOWN}
        start = chat.think_start or known.get(chat.think_end, "")
        return Thinking(start, chat.think_end, chat.max_think_toks)
    if words is None:
        return None  # the model's texts don't think
    return Thinking(chat.think_start or words[0], words[1], chat.max_think_toks)
