"""`check-table`: a right table passes, and each kind of wrong number is named with its line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import support
from support import call

from evalkit.show import table_check
from evalkit.show.source import source
from evalkit.show.table_check import latex
from evalkit.show.table_check.numbers import read as read_number

pytestmark = pytest.mark.usefixtures("in_this_process", "without_lm_eval")
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


def by_counts(tmp_path: Path, text: str, name: str = "paper.md") -> list[tuple[str, str]]:
    """Each number that isn't merely unchecked, without records."""
    path = tmp_path / name
    path.write_text(text)
    cells = json.loads(call("check-table", path, "--json").out)["cells"]
    return [(c["text"], c["outcome"]) for c in cells if c["outcome"] != "unchecked"]


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


@pytest.mark.parametrize(
    ("cell", "numbers"),
    [
        (r"$71.2_{\pm 0.3}$", [("71.2", "score"), ("0.3", "error")]),
        (r"\textbf{71.2} {\scriptsize $\pm$ 0.3}", [("71.2", "score"), ("0.3", "error")]),
        (r"71.2 {\tiny (0.3)}", [("71.2", "score"), ("0.3", "error")]),
        (r"71.2 \textcolor{green}{(+1.2)}", [("71.2", "score"), ("+1.2", "difference")]),
        (r"\cellcolor{gray!20}71.2$\uparrow$1.2", [("71.2", "score"), ("1.2", "difference")]),
        (r"{\color{red}$\downarrow$ 2.3 pp}", [("2.3", "difference")]),
        (r"\multicolumn{2}{c}{71.2\%}", [("71.2", "score")]),
        (r"\multirow{2}{*}{\underline{71.2}$^{\dagger}$}", [("71.2", "score")]),
        (r"\makebox[1cm]{12.3\textsuperscript{1}}", [("12.3", "score")]),
        (r"\best{$\mathbf{0.25}$}", [("0.25", "score")]),
        (r"1{,}234.5", [("1234.5", "score")]),
        ("0." + "25" + "0" * 28, [("0." + "25" + "0" * 28, "score")]),
        ("$-$", []),
    ],
)
def test_what_papers_put_around_a_number_is_read(cell: str, numbers: list[tuple[str, str]]) -> None:
    content = read_number(latex.plain(cell))
    assert [(number.text, number.kind) for number in content.numbers] == numbers
    assert content.is_text == (not numbers)


@pytest.mark.parametrize("cell", [r"$1.2\times10^{-3}$", r"25.0 (see text)", "25.0 33.3", "0.0.6"])
def test_a_cell_that_cant_be_read_is_listed_and_fails(cell: str, run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW.format(cell, "33.3", run_id(run)))
    ran = call("check-table", paper, run)
    assert ran.code == 1 and "is unreadable: write one score" in ran.out
    assert "1 of 2 numbers" in ran.out


def test_swapped_errors_and_an_error_on_another_scale_are_wrong(run: Path, tmp_path: Path) -> None:
    rows = [
        ROW.format(r"25.0 $\pm$ 7.4", r"33.3 $\pm$ 5.5", run_id(run)),
        ROW.format(r"25.0 $\pm$ 0.055", r"$33.3_{\pm 14.4}$", run_id(run)),  # 1.96 errors
    ]
    assert checked(table(tmp_path, *rows), run) == [
        ("25.0", "ok"), ("7.4", "wrong"), ("33.3", "ok"), ("5.5", "wrong"),
        ("25.0", "ok"), ("0.055", "wrong"), ("33.3", "ok"), ("14.4", "ok"),
    ]  # fmt: skip


def test_rows_of_two_models_that_are_swapped_are_wrong(run: Path, tmp_path: Path) -> None:
    """Both runs' numbers stand in the table, each in the other's row."""
    other = renamed(run, tmp_path / "other", "a/second", 0.5)
    ids = f"% evalkit: {run_id(run)} {run_id(other)}"
    right = table(tmp_path, r"demo & 25.0 & 33.3 \\", r"second & 50.0 & 50.0 \\", comment=ids)
    assert {outcome for _, outcome in checked(right, run, other)} == {"ok"}
    swapped = table(tmp_path, r"demo & 50.0 & 50.0 \\", r"second & 25.0 & 33.3 \\", comment=ids)
    assert "ok" not in {outcome for _, outcome in checked(swapped, run, other)}
    nobody = table(tmp_path, r"Ours & 25.0 & 33.3 \\", comment=ids)
    assert {outcome for _, outcome in checked(nobody, run, other)} == {"unknown"}
    lying = table(tmp_path, r"second & 25.0 & 33.3 \\ % evalkit: " + run_id(run))
    assert {outcome for _, outcome in checked(lying, run, other)} == {"wrong"}


def renamed(run: Path, folder: Path, model: str, value: float | str) -> Path:
    """A copy of a run that says it is another model's, with other scores: only for its form."""
    made = support.read(run)
    made["model"]["reference"] = model
    made["ids"]["run"] = "sha256:" + "7" * 64
    for task in made["tasks"].values() if value else ():
        for metric in task["metrics"].values():
            metric["value"] = value
    for group in made["groups"].values():
        group["metrics"]["acc,none"] = {"value": value, "stderr": 0.01, "stderr_method": None,
                                        "higher_is_better": True}  # fmt: skip
    folder.mkdir()
    support.write(folder, made)
    return folder


@pytest.fixture(autouse=True)
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that was made up for its form is not asked to be consistent."""

    monkeypatch.setattr(
        table_check, "source", lambda run: source(run, unverified=not (run / "journal").exists())
    )


def test_columns_are_exempted_by_name_or_number(run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW.format("25.0", "99.9", run_id(run)))
    assert call("check-table", paper, run).code == 1
    for column in ("demo_qa", "3"):
        assert call("check-table", paper, run, "--exempt", column).done().out.startswith("1 of 1")


def test_a_markdown_table_is_held_against_the_records_below_it(run: Path, tmp_path: Path) -> None:
    paper = tmp_path / "card.md"
    call("export", run, "--to", "markdown", "--out", paper).done()
    assert "11 of 11 numbers in 1 table" in call("check-table", paper, run).done().out
    paper.write_text(paper.read_text().replace("0.2500", "0.2600"))
    assert "0.2600 is wrong: should be 0.2500" in call("check-table", paper, run).out


def test_braces_without_end_and_broken_tex_end_in_a_line(tmp_path: Path) -> None:
    for name, text in (
        ("deep.tex", r"\begin{tabular}{l} " + "{" * 5_000 + r"\end{tabular}"),
        ("deep.md", "| a |\n|-|\n| $" + "{" * 5_000 + "$ |\n"),
    ):
        (tmp_path / name).write_text(text)
        assert call("check-table", tmp_path / name).code in (0, 2)
    path = tmp_path / "torn.tex"
    path.write_text(r"\begin{tabular}{lr} m & GSM8K \\ \midrule a & \textbf{71.30 & } $1_ \\")
    assert call("check-table", path).code in (0, 1)


@pytest.mark.parametrize(
    "cell",
    [
        "0." + "12" * 20,
        "9" * 40 + ".5",
        r"\multicolumn{" + "9" * 5_000 + "}{c}{50.0}",
        r"\textbf{\multicolumn",
    ],
)
def test_numbers_of_any_length_and_odd_columns_are_judged(
    cell: str, run: Path, tmp_path: Path
) -> None:
    """Each was a traceback, in one of the two ways to check a table."""
    text = (
        f"\\begin{{tabular}}{{lrr}} & GSM8K & BoolQ & Avg \\\\ \\hline a & 50.0 & {cell} & {cell}"
    )
    paper = tmp_path / "counted.tex"
    paper.write_text(text + r" \\ \end{tabular}")
    for words in ([paper], [table(tmp_path, ROW.format(cell, "33.3", run_id(run))), run]):
        ran = call("check-table", *words)
        assert ran.code in (0, 1, 2), ran.traceback


def test_a_table_of_many_rows_and_a_comment_without_end_are_read_in_one_pass(
    tmp_path: Path,
) -> None:
    """Both took the square of their length: 16 s and minutes."""
    paper = tmp_path / "long.md"
    rows = "| x | 51.23 |\n" * 3_000
    paper.write_text("<div>\n" + "<!-- " * 100_000 + "\n\n| a | BoolQ |\n|-|-|\n" + rows)
    began = time.process_time()
    assert len(table_check.check(paper, []).cells) == 3_000
    assert time.process_time() - began < 5


def test_a_perplexity_without_end_is_no_number_of_a_table(run: Path, tmp_path: Path) -> None:
    endless = renamed(run, tmp_path / "endless", "demo", "inf")
    paper = table(tmp_path, ROW.format("25.0", "33.3", "7" * 64))
    assert {outcome for _, outcome in checked(paper, endless)} == {"wrong"}
    huge = renamed(run, tmp_path / "huge", "demo", 1.5e300)
    assert {outcome for _, outcome in checked(paper, huge)} == {"wrong"}


def test_a_commented_out_table_is_none(run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW.format("99.9", "33.3", run_id(run)))
    paper.write_text("\n".join("% " + line for line in paper.read_text().splitlines()))
    call("check-table", paper, run).refused(2, "no table")


def test_without_records_a_proportion_that_so_many_documents_cant_give_is_named(
    tmp_path: Path,
) -> None:
    """43 of HumanEval's 164 are 26.22%, 44 are 26.83%."""
    told = by_counts(tmp_path, "| m | HumanEval | GSM8K |\n|-|-|-|\n| a | 26.3 | 71.27 |\n"
                               "| b | 26.8 | 71.30 |\n")  # fmt: skip
    assert told == [
        ("26.3", "impossible"),
        ("71.27", "ok"),
        ("26.8", "ok"),
        ("71.30", "impossible"),
    ]


def test_lm_evals_own_table_is_read_with_its_errors(tmp_path: Path) -> None:
    head = "|Tasks|Version|n-shot|Metric| |Value| |Stderr|\n|-|-|-|-|-|-|-|-|\n"
    rows = "|arc_challenge|1|25|acc|↑|0.5316|±|0.0146|\n|||25|acc_norm|↑|0.5648|±|0.0345|\n"
    assert by_counts(tmp_path, f"```\n{head}{rows}```\n") == [
        ("0.5316", "ok"), ("0.0146", "ok"), ("0.5648", "ok"), ("0.0345", "unlike"),
    ]  # fmt: skip


def test_a_mean_that_isnt_its_parts_is_named_in_rows_and_columns(tmp_path: Path) -> None:
    table = (
        "| m | A | B | Avg |\n|-|-|-|-|\n| x | 10.0 | 20.0 | 15.0 |\n| y | 30.0 | 10.0 | 25.0 |\n"
    )
    assert by_counts(tmp_path, table) == [("15.0", "ok"), ("25.0", "unlike")]
    latex = (r"\begin{tabular}{lr} m & A \\ \midrule x & 10.0 \\ y & 20.0 \\ Mean & 35.0 \\"
             r"\end{tabular}")  # fmt: skip
    assert by_counts(tmp_path, latex, "paper.tex") == [("35.0", "wrong")]


def test_a_difference_is_one_of_its_column(run: Path, tmp_path: Path) -> None:
    rows = [r"a & 25.0 & 33.3 \\", r"b & 25.0 (+0.0) & 33.3 $\uparrow$ 8.3 \\",
            r"c & 25.0 (+4.4) & 33.3 \\"]  # fmt: skip
    told = dict(checked(table(tmp_path, *rows, comment=f"% evalkit: {run_id(run)}"), run))
    assert told["+0.0"] == "ok" and told["8.3"] == "ok" and told["+4.4"] == "unknown"


def test_a_broken_run_and_a_paper_without_ids_are_refused(run: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, r"demo & 25.0 & 33.3 \\")
    call("check-table", paper, run).refused(2, "no table in it names a record")
    call("check-table", tmp_path / "none.tex", run).refused(3, "can't read it")
    broken = support.finished(tmp_path / "broken")
    (broken / "results.json").write_text("{}")
    call("check-table", paper, broken).refused(1, "BROKEN")
