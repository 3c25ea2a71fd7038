"""Published figures: each has a source, a run is held against those of its protocol only."""

import io
from pathlib import Path
from typing import Any

import pytest
import support
from rich.console import Console
from support import call

from evalkit.base.errors import EvalkitError
from evalkit.inputs import suite as suites
from evalkit.show import published, summary
from evalkit.show.published import Published

MODEL = "EleutherAI/pythia-70m"


EXAMPLE = next((support.ROOT / "results/example").glob("*/record.json")).parent


def record(model: str = MODEL, shots: int = 0, score: float = 0.22, **suite: Any) -> dict[str, Any]:
    """The committed record with a task called arc_challenge that has this score."""
    made: dict[str, Any] = support.read(EXAMPLE)
    made["model"]["reference"] = model
    made["suite"] |= suite
    task = made["tasks"]["arc_challenge"] = made["tasks"].pop("demo_qa")
    task["num_fewshot"] = shots
    for metric in task["metrics"].values():
        metric |= {"value": score, "stderr": 0.012}
    return made


def test_every_row_is_a_share_with_a_source_that_does_not_change() -> None:
    found = published.rows()
    assert len({(r.model, r.task, r.metric, r.shots, r.value) for r in found}) == len(found)
    for row in found:
        assert "/blob/" in row.source and len(row.source.split("/blob/")[1].split("/")[0]) == 40


def test_a_figure_of_the_same_protocol_is_one_and_others_say_why() -> None:
    (acc, normed) = published.matches(record())
    assert (acc.row.metric, normed.row.metric) == ("acc", "acc_norm")
    assert not acc.differs and "by the same protocol" in str(acc)
    (first, _) = published.matches(record(shots=25, partial=True))
    assert first.differs == ("0 shots, here 25", "here only a part of the documents")


def test_metas_arc_challenge_is_not_lm_evals() -> None:
    (match,) = published.matches(record("meta-llama/Llama-3.1-70B", shots=25, score=0.69))
    assert match.row.value == 0.929 and not match.within
    assert "all choices stand in the prompt" in str(match)


def test_the_score_table_shows_it_and_marks_another_protocol() -> None:
    def shown(made: dict[str, Any]) -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(summary._scores(made))
        return console.export_text()

    assert "published" not in shown(record("somebody/model"))
    assert "0.2210" in shown(record()) and "≠" not in shown(record())
    assert "≠ 0.9290" in shown(record("meta-llama/Llama-3.1-70B", shots=25))


@pytest.mark.parametrize(("score", "code"), [(0.20, 0), (0.5, 1)])
def test_validate_passes_within_the_standard_errors_only(
    tmp_path: Path, score: float, code: int
) -> None:
    support.write(tmp_path, record(score=score))
    ran = call("validate", tmp_path)
    assert ran.code == code
    assert ran.out.startswith("PASS  0.2000" if not code else "FAIL  0.5000")


def test_validate_refuses_a_run_without_a_figure_of_its_protocol(tmp_path: Path) -> None:
    support.write(tmp_path, record(shots=5))
    call("validate", tmp_path).refused(2, "no published figure", "another protocol")


def test_the_table_is_no_suite() -> None:
    assert "published" not in suites.shipped()
    with pytest.raises(EvalkitError, match="unknown suite"):
        suites.find("published")
    assert Published.__slots__
