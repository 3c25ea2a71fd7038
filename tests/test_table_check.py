"""`check-table`: a right table passes, and each kind of wrong number is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest
import support
from support import call

ROW = r"demo & {} & {} \\ % evalkit: {}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo run, not to be changed."""
    return support.finished(tmp_path_factory.mktemp("table"))


def table(tmp_path: Path, *rows: str, comment: str = "") -> Path:
    """A paper with a table of demo_letters and demo_qa's acc, which is 0.25 and 0.3333."""
    lines = [
        r"\documentclass{article}", r"\begin{table}", comment, r"\begin{tabular}{lrr}", r"\hline",
        r"Model & \textbf{demo\_letters} & demo\_qa \\", r" & acc & acc \\", r"\hline", *rows,
        r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    path = tmp_path / "paper.tex"
    path.write_text("\n".join(lines))
    return path


def checked(paper: Path, *runs: Path) -> list[tuple[str, str]]:
    """Each number with its outcome."""
    ran = call("check-table", paper, *runs, "--json")
    cells = json.loads(ran.out)["cells"]
    assert ran.code == int(any(cell["outcome"] != "ok" for cell in cells))
    return [(cell["text"], cell["outcome"]) for cell in cells]


def run_id(run: Path) -> Any:
    return support.read(run)["ids"]["run"]


def test_what_export_writes_is_right(run: Path, tmp_path: Path) -> None:
    paper = tmp_path / "paper.tex"
    call("export", run, run, "--to", "latex", "--out", paper).done()
    assert "22 of 22 numbers in 1 table are the records'" in call("check-table", paper, run).out


def test_each_number_is_rounded_as_it_is_shown(run: Path, tmp_path: Path) -> None:
    rows = [
        ROW.format("25.0", "33.3", run_id(run)),
        ROW.format(r"\textbf{0.25}$^*$", r"0.3333 $\pm$ 0.0736", run_id(run)[7:19]),
        ROW.format(r"25\%", r"{33.33} (7.4)", run_id(run)),
    ]
    assert {outcome for _, outcome in checked(table(tmp_path, *rows), run)} == {"ok"}


def test_a_wrong_cell_is_named_with_its_line_and_what_it_should_be(
    run: Path, tmp_path: Path
) -> None:
    paper = table(tmp_path, ROW.format("25.1", "33.4", run_id(run)))
    ran = call("check-table", paper, run)
    assert ran.code == 1
    assert "line 9, column 2: 25.1 is wrong: should be 25.0 (± 5.5)" in ran.out
    assert "line 9, column 3: 33.4 is wrong: should be 33.3 (± 7.4)" in ran.out
    assert ran.out.endswith("0 of 2 numbers in 1 table are the records'\n")


def test_another_tasks_value_in_a_tasks_column_is_wrong(run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW.format("33.3", "25.0", run_id(run)))
    assert checked(paper, run) == [("33.3", "wrong"), ("25.0", "wrong")]


def test_a_number_of_no_task_is_unknown_and_of_no_record_stale(run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW.format("25.0", "33.3", "0123456789abcdef"))
    assert checked(paper, run) == [("25.0", "stale"), ("33.3", "stale")]
    text = paper.read_text().replace("0123456789abcdef", run_id(run)).replace(r"demo\_qa", "Mean")
    paper.write_text(text.replace("33.3", "29.2"))
    assert checked(paper, run) == [("25.0", "ok"), ("29.2", "unknown")]


def test_a_comment_on_its_own_line_names_the_records_of_all_rows(run: Path, tmp_path: Path) -> None:
    rows = [r"demo & 25.0 & 33.3 \\", r"other & 25.1 & -- \\"]
    paper = table(tmp_path, *rows, comment=f"% evalkit: {run_id(run)}")
    assert checked(paper, run) == [("25.0", "ok"), ("33.3", "ok"), ("25.1", "wrong")]


def test_a_broken_run_and_a_paper_without_ids_are_refused(run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, r"demo & 25.0 & 33.3 \\")
    call("check-table", paper, run).refused(2, "no table in it names a record")
    call("check-table", tmp_path / "none.tex", run).refused(3, "can't read it")
    broken = support.finished(tmp_path / "broken")
    (broken / "results.json").write_text("{}")
    call("check-table", paper, broken).refused(1, "BROKEN")
