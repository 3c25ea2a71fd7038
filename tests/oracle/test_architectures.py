"""Every kind of architecture, through our whole line at the level it is found to have, against
lm-eval's `hf` model on the same weights.

`make oracle` runs a few of them, `make oracle-all` all, and writes what it saw into
docs/architectures.md.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import architectures
import pages
import pytest
import sides
from architectures import ARCHITECTURES

from evalkit.base.errors import EvalkitError
from evalkit.inputs import suite as suites

pytestmark = [pytest.mark.oracle_all, pytest.mark.shared, pytest.mark.usefixtures("hub")]
IN_CI = ("gemma3", "qwen3-moe", "gpt-oss", "deepseek-v3", "bloom", "falcon-h1")
# lm-eval pads a batch's prompts on the left, which runs through a recurrent state, and moves a
# batch's short prompts to the long one's rotary angles, and Llama-4's chunks begin elsewhere where
# there is padding: alone, each is right.
ALONE = {
    "mamba", "mamba2", "jamba", "bamba", "falcon-h1", "granite-hybrid", "lfm2", "qwen3-next",
    "phi3-longrope", "llama-dynamic", "llama4",
}  # fmt: skip
# Its recurrent state lies in the module, where no cache can hold it for each row.
REFUSED = {"recurrent-gemma"}
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
WRITE = "EVALKIT_WRITE_TABLE"


@dataclass(frozen=True)
class Row:
    """A line of the page's table."""

    name: str
    features: str
    level: str
    documents: int
    worst: float
    batch_size: int

    def __str__(self) -> str:
        worst = f"{self.worst:.1e}" if self.documents else ""
        return (
            f"| {self.name} | {self.features} | {self.level} | {self.documents or ''} | {worst} |"
            f" {self.batch_size or ''} |"
        )


def names(prefix: str) -> list[str]:
    """The leaf tasks of core that begin so."""
    lock = suites.read_lock(suites.FOLDER / "core.lock.yaml")
    return sorted(name for name in lock.tasks if name.startswith(prefix))


def parts() -> list[dict[str, Any]]:
    """57 documents of MMLU (one of each subject), 50 each of HellaSwag and ARC, 54 of BBH (two of
    each task)."""
    short = {"gen_kwargs": {"max_gen_toks": 32}}
    return [
        {"name": "mmlu", "tasks": names("mmlu_"), "limit": 1},
        {"name": "choices", "tasks": ["hellaswag", "arc_challenge"], "limit": 50},
        {"name": "bbh", "tasks": names("bbh_"), "limit": 2, **short},
    ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.oracle] if n in IN_CI else []) for n in ARCHITECTURES],
)
def test_it_answers_as_lm_eval_does(name: str, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model = architectures.build(name, tmp_path / "model")
    size = 1 if name in ALONE else sides.BATCH_SIZE
    if name in REFUSED:
        with pytest.raises(EvalkitError, match=r"can't run|not its own"):
            sides.ours(model, parts()[1], tmp_path)
        write(Row(name, ARCHITECTURES[name].features, "refused", 0, 0.0, 0))
        return
    lm: Any = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=size)
    documents, worst, level = 0, 0.0, ""
    for suite in parts():
        ours = sides.ours(model, suite, tmp_path)
        figures = sides.compare(sides.theirs(lm, suite, tmp_path), ours)
        documents, worst = documents + figures.documents, max(worst, figures.worst)
        assert ours.folder is not None
        level = json.loads((ours.folder / "record.json").read_text())["engine"]["level"]
    assert documents == 211
    assert level == ARCHITECTURES[name].level
    write(Row(name, ARCHITECTURES[name].features, level, documents, worst, size))


def write(row: Row) -> None:
    """Put a row in its place in the page's table, where the command asks for that."""
    print(row)
    if not os.environ.get(WRITE):
        return
    rows = pages.rows(PAGE, 1) | {(row.name,): str(row)}
    pages.write(PAGE, (rows[name,] for name in ARCHITECTURES if (name,) in rows))


def test_every_kind_is_there() -> None:
    """What the table is to show, and the few that CI runs stand for."""
    assert len(ARCHITECTURES) - len(REFUSED) >= 24
    assert set(IN_CI) | ALONE | REFUSED <= set(ARCHITECTURES)
