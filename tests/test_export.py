"""Exports: each read back by its format's own schema or parser, to the same numbers."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import support
import yaml
from support import call

from evalkit.base import schema
from evalkit.show import export
from evalkit.show.export import cards, tables


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo run, not to be changed."""
    return support.finished(tmp_path_factory.mktemp("export"))


def exported(run: Path, to: str) -> str:
    return call("export", run, "--to", to).done().out


def scores(record: Any) -> dict[tuple[str, str], tuple[float, float | None]]:
    """(task, metric with filter) -> value, standard error, as the record has them."""
    return {
        (name, metric): (value["value"], value["stderr"])
        for name, result in (record["groups"] | record["tasks"]).items()
        for metric, value in result["metrics"].items()
    }


def test_csv_comes_back_to_the_last_digit(run: Path) -> None:
    found = {}
    for row in csv.DictReader(exported(run, "csv").splitlines()):
        values = float(row["value"]), float(row["stderr"])
        found[row["task"], f"{row['metric']},{row['filter']}"] = values
    assert found == scores(support.read(run))


def test_every_eval_ever_fits_its_own_schema_and_names_revision_and_method(run: Path) -> None:
    body = json.loads(exported(run, "every-eval-ever"))
    assert cards.eee_schema()["version"] == "0.3.0" == body["schema_version"]
    assert schema.problems(cards.eee_schema(), body) == []
    assert schema.problems(cards.eee_schema(), body | {"schema_version": 3})
    record, found = support.read(run), {}
    for result in body["evaluation_results"]:
        task, _, metric = result["evaluation_result_id"].partition("/")
        error = result["score_details"]["uncertainty"]["standard_error"]
        assert error["method"] == "analytic"
        found[task, metric] = (result["score_details"]["score"], error["value"])
        if task in record["tasks"]:
            revision = result["source_data"]["additional_details"]["revision"]
            assert revision == record["tasks"][task]["dataset"]["revision"]
    assert found == scores(record)


def test_model_index_is_read_by_the_hubs_own_library(run: Path) -> None:
    repocard = pytest.importorskip("huggingface_hub.repocard_data")
    body = yaml.safe_load(exported(run, "model-index"))
    name, results = repocard.model_index_to_eval_results(body["model-index"])
    assert name == "demo"
    wanted = {(row.task, row.name): row.value for row in export.headline(support.read(run))}
    assert {(r.dataset_name, r.metric_name): r.metric_value for r in results} == wanted


def test_lm_evals_folder_is_found_by_its_own_finders(run: Path, tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    folder = Path(call("export", run, "--to", "lm-eval", "--out", tmp_path).done().out.strip())
    names = sorted(str(path) for path in folder.iterdir())
    (results,) = utils.get_results_filenames(names)
    samples = utils.get_sample_results_filenames(names)
    record = support.read(run)
    assert {utils.get_file_task_name(Path(name).name) for name in samples} == set(record["tasks"])
    times = {utils.get_file_datetime(name).removesuffix(".json") for name in names}
    assert len(times) == 1
    assert utils.get_latest_filename([results]) == results
    assert json.loads(Path(results).read_text()) == support.read(run, "results.json")
    lines = [json.loads(line) for name in samples for line in Path(name).read_text().splitlines()]
    assert len(lines) == 210 and "task" not in lines[0]
    call("export", run, "--to", "lm-eval", "--out", tmp_path).refused(2, "there already")
    call("export", run, "--to", "lm-eval").refused(2, "--out")


def test_latex_and_markdown_name_the_records_and_round_the_scores(run: Path) -> None:
    record = support.read(run)
    latex = call("export", run, run, "--to", "latex").done().out
    assert latex.count(f"% evalkit: {record['ids']['run']} {record['ids']['answers']}") == 2
    assert r"\toprule" in latex and r"demo\_letters" in latex and "25.0 $\\pm$ 5.5" in latex
    markdown = exported(run, "markdown")
    assert "| demo\\_letters | acc | 0.2500 ± 0.0550 |" in markdown
    assert record["ids"]["run"] in markdown


def test_what_a_record_brings_becomes_no_formula_and_no_command(run: Path) -> None:
    record = support.read(run)
    record["model"]["reference"] = name = "=1+1|\\input{x}\n<b>"
    rows = export.headline(record)
    assert "'=1+1|" in tables.to_csv(rows)
    assert r"\input" not in tables.to_latex([rows])
    row = next(line for line in tables.to_markdown([rows]).splitlines())
    assert len(re.findall(r"(?<!\\)\|", row)) == 4 and name not in row


def test_an_unfinished_run_and_several_where_one_fits_are_refused(
    run: Path, tmp_path: Path
) -> None:
    call("export", support.executed(tmp_path), "--to", "csv").refused(3, "no finished run")
    call("export", run, run, "--to", "model-index").refused(2, "holds one run")


def test_an_export_as_json_or_into_a_file_is_the_same_text(run: Path, tmp_path: Path) -> None:
    told = json.loads(call("export", run, "--to", "csv", "--json").done().out)
    out = tmp_path / "scores.csv"
    assert call("export", run, "--to", "csv", "--out", out).done().out == f"{out}\n"
    assert out.read_text() == told["text"] + "\n" == exported(run, "csv")


def test_a_group_that_is_inside_itself_is_exported_all_the_same(run: Path) -> None:
    """A stranger's record may say so; its shots were looked for without end."""
    record = support.read(run)
    record["groups"]["demo_cot"]["subtasks"] += ["demo_letters"]
    record["groups"]["demo_letters"]["subtasks"] += ["demo_letters", "demo_cot"]
    record["groups"]["all"] = record["groups"]["demo_cot"] | {"subtasks": ["demo_cot"]}
    shots = {row.task: row.shots for row in export.rows(record)}
    assert shots["all"] == "mixed" and shots["demo_cot_calendar"] == "3"
