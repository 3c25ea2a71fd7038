"""lm-eval's `hf` model reads a GGUF file itself; ours, which unpacks it first, scores the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import sides

from evalkit.inputs.models.builtin.demo.model import TASKS

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_gguf_file_scores_as_lm_evals_own_reading_of_it(
    kind: str,
    chat: bool,
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    folder = tiny_model(chat_template=True)
    model = gguf_files.write(folder, tmp_path / f"tiny.{kind}.gguf", kind)
    suite = {
        "name": "packed",
        "tasks": ["demo_letters", "demo_endings", "demo_qa", "demo_cot"],
        "include_path": str(TASKS),
        "apply_chat_template": chat,
        "limit": 12,
    }
    theirs = sides.theirs(hf_model(model), suite, tmp_path)
    figures = sides.compare(theirs, sides.ours(model, suite, tmp_path))
    assert figures.documents == 72
