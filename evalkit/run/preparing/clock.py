"""The time that a chat template reads: fixed when a run is first planned, and kept by it."""

from dataclasses import replace
from pathlib import Path

from evalkit.inputs.chat import templates
from evalkit.inputs.models.model import Model
from evalkit.inputs.suite import Suite


def at_its_time(suite: Suite, model: Model, clock: str | None) -> Suite:
    """The suite with the time that a chat template reads: the recorded one, else now; none where no
    template reads any, so that equal runs on two days are equal."""
    reads = [suite.chat.text] if suite.chat.text is not None else _templates(model)
    if not suite.apply_chat_template or not any(templates.READS_CLOCK in text for text in reads):
        return suite
    return replace(suite, chat=suite.chat.at(clock or templates.now()))


def _templates(model: Model) -> list[str]:
    """The files that may hold a chat template of the model's."""
    names = [Path(name).name for name in model.tokenizer_files()]
    names = [name for name in names if "template" in name or name == "tokenizer_config.json"]
    found = (path for path in model.folder.rglob("*") if path.name in names and path.is_file())
    return [path.read_text("utf-8", "replace") for path in found]
