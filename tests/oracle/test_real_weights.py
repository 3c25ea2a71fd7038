"""A real model's answers, held against lm-eval's own: the demo's tasks, and a few real documents.

On random weights every choice is as likely as the next and no text ends by itself; here they have
the margins and lengths that users see. `make bench-real` does the same for 2,000 documents.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sides

from evalkit.inputs.models import model as models

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
# Of 30 layers' float32 sums; an ending's log-likelihood is a sum of 30 tokens'.
TOLERANCE = 1e-3


def compared(name: str, suite: dict[str, Any], hf_model: Any, folder: Path) -> sides.Figures:
    """Both sides' runs of a suite, equal but for the last digits of log-likelihoods."""
    ours = sides.ours(Path(name), suite, folder)
    theirs = sides.theirs(hf_model(models.resolve(name).folder), suite, folder)
    return sides.compare(theirs, ours, TOLERANCE)


def test_the_demos_tasks_score_the_same_on_a_real_model(
    smollm2: str, hf_model: Callable[[Path], Any], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "evalkit/inputs/models/builtin/demo/tasks", tmp_path / "tasks")
    tasks = ["demo_letters", "demo_endings", "demo_qa", "demo_cot"]
    suite = {"name": "real_demo", "tasks": tasks, "include_path": "tasks", "limit": 8}
    assert compared(smollm2, suite, hf_model, tmp_path).documents == 48


@pytest.mark.shared
@pytest.mark.usefixtures("hub")
def test_real_documents_score_the_same_on_a_real_model(
    smollm2: str, hf_model: Callable[[Path], Any], tmp_path: Path
) -> None:
    """BBH's 1,024 tokens are cut to a few: most of its texts end before."""
    suite = {
        "name": "real_few",
        "tasks": ["hellaswag", "arc_challenge", "mmlu_anatomy", "bbh_cot_fewshot_navigate"],
        "limit": 6,
        "gen_kwargs": {"max_gen_toks": 96},
    }
    assert compared(smollm2, suite, hf_model, tmp_path).documents == 24


@pytest.mark.parametrize("more", [{}, {"fewshot_as_multiturn": True, "system_instruction": "Hi."}],
                         ids=["plain", "multiturn"])  # fmt: skip
def test_the_demos_tasks_score_the_same_with_the_models_chat_template(
    more: dict[str, Any], smollm2: str, hf_model: Callable[[Path], Any], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "evalkit/inputs/models/builtin/demo/tasks", tmp_path / "tasks")
    tasks = ["demo_letters", "demo_endings", "demo_qa", "demo_cot"]
    suite = {"name": "real_chat", "tasks": tasks, "include_path": "tasks", "limit": 3,
             "apply_chat_template": True, **more}  # fmt: skip
    assert compared(smollm2, suite, hf_model, tmp_path).documents == 18


@pytest.mark.shared
@pytest.mark.usefixtures("hub")
def test_gsm8k_scores_the_same_with_the_models_chat_template(
    smollm2: str, hf_model: Callable[[Path], Any], tmp_path: Path
) -> None:
    suite = {
        "name": "real_gsm8k",
        "tasks": [{"task": "gsm8k", "num_fewshot": 2}],
        "limit": 4,
        "gen_kwargs": {"max_gen_toks": 128},
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
    }
    assert compared(smollm2, suite, hf_model, tmp_path).documents == 8
