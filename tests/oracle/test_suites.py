"""The suites that come with evalkit beside lm-eval's own run of them, a few documents of each task.

The rows are the stand-in Hub's, the lengths of texts are cut to a few tokens on both sides: random
weights never stop. What a suite ships without a lock of is left out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sides
import yaml

from evalkit.inputs import locked
from evalkit.inputs import suite as suites

pytestmark = [pytest.mark.oracle, pytest.mark.shared, pytest.mark.usefixtures("hub")]
ENGLISH = ("chat", "llama3", "leaderboard2")  # whose instructions nltk's English data counts


@pytest.mark.parametrize("name", ["chat", "llama3", "reasoning", "leaderboard2", "gemma2"])
def test_a_shipped_suite_scores_as_lm_eval_does(
    name: str,
    tiny_model: Callable[..., Path],
    hf_model: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    for package in ("math_verify", "langdetect", "immutabledict"):
        pytest.importorskip(package)
    if name in ENGLISH and locked.punkt() is None:
        pytest.skip("nltk's punkt_tab is not there: set NLTK_DATA")
    lock = suites.read_lock(suites.FOLDER / f"{name}.lock.yaml")
    suite: dict[str, Any] = yaml.safe_load((suites.FOLDER / f"{name}.yaml").read_text())
    members = [item if isinstance(item, dict) else {"task": item} for item in suite["tasks"]]
    # lm-eval takes one number of shots a call: these have their own, or the task's
    own = {"hellaswag", "mmlu", "arc_challenge", "arc_easy"} if name == "gemma2" else set()
    tasks = [m["task"] for m in members if m["task"] not in {*lock.unlocked, *own}]
    tasks = [task for task in tasks if task != "bbh"]
    suite |= {"name": f"some_{name}", "tasks": tasks, "limit": 1}
    suite["gen_kwargs"] = {"max_gen_toks": 12}
    model = tiny_model(tokenizer="llama3", chat_template=True, max_length=1024)
    ours = sides.ours(model, suite, tmp_path)
    figures = sides.compare(sides.theirs(hf_model(model), suite, tmp_path), ours)
    assert figures.documents >= len(tasks)
