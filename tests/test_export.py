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

import evalkit
from evalkit.base import schema
from evalkit.base.errors import EvalkitError
from evalkit.record.reading import score_table
from evalkit.record.reading.findings import Report
from evalkit.show.export import every_eval_ever, hub, tables
from evalkit.show.source import Source, headline_rows, rows

pytestmark = pytest.mark.usefixtures("in_this_process", "without_lm_eval")


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
    assert every_eval_ever.eee_schema()["version"] == "0.3.0" == body["schema_version"]
    assert schema.problems(every_eval_ever.eee_schema(), body) == []
    assert schema.problems(every_eval_ever.eee_schema(), body | {"schema_version": 3})
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
    wanted = {
        (row.score.task, row.score.name): row.score.value
        for row in headline_rows(support.read(run))
    }
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
    scores = headline_rows(record)
    assert "'=1+1|" in tables.to_csv(scores)
    assert r"\input" not in tables.to_latex([scores])
    row = next(line for line in tables.to_markdown([scores]).splitlines())
    assert len(re.findall(r"(?<!\\)\|", row)) == 4 and name not in row


def test_an_unfinished_run_and_several_where_one_fits_are_refused(
    run: Path, tmp_path: Path
) -> None:
    call("export", support.executed(tmp_path), "--to", "csv").refused(3, "no finished run")
    call("export", run, run, "--to", "every-eval-ever").refused(2, "holds one run")


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
    shots = {row.score.task: row.score.shots for row in rows(record)}
    assert shots["all"] == "mixed" and shots["demo_cot_calendar"] == "3"


def test_what_contradicts_itself_is_refused_or_marked_in_everything(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    record = support.read(run)
    record["tasks"]["demo_qa"]["metrics"]["acc,none"]["value"] = 0.99
    support.write(run, record)
    out = tmp_path / "out"
    for to in ("csv", "markdown", "latex", "every-eval-ever", "model-index", "eval-results"):
        call("export", run, "--to", to).refused(1, "BROKEN", "--unverified")
        ran = call("export", run, "--to", to, "--unverified")
        assert "BROKEN" in ran.out or "no task is of a dataset on the Hub" in ran.err
    call("export", run, "--to", "lm-eval", "--out", out).refused(1, "BROKEN")
    folder = Path(call("export", run, "--to", "lm-eval", "--out", out, "--unverified").out.strip())
    assert folder.name.startswith("BROKEN-")
    (results,) = folder.glob("results_*.json")
    assert "BROKEN" in json.loads(results.read_text())["evalkit_verdict"]
    with pytest.raises(EvalkitError, match="BROKEN"):
        evalkit.load(run)
    loaded = evalkit.load(run, unverified=True)
    assert loaded.mark == "BROKEN" and "BROKEN" in repr(loaded)


def test_the_hubs_own_library_reads_eval_results(run: Path) -> None:
    hub_library = pytest.importorskip("huggingface_hub")
    record = support.read(run)
    qa = record["tasks"]["demo_qa"]
    qa["dataset"] |= {"repo": "allenai/ai2_arc", "config": "ARC-Challenge", "revision": "a" * 40}
    made = Source(run, record, Report([]), whole=True)
    entries = hub_library.parse_eval_result_entries(
        yaml.safe_load(hub.eval_results([made], "https://example.org/pack.tar.gz"))
    )
    (entry,) = entries  # the others are the suite's own files
    assert (entry.dataset_id, entry.task_id) == ("allenai/ai2_arc", "demo_qa")
    assert entry.dataset_revision == "a" * 40 and entry.date == record["created"]
    assert entry.value == round(100 * qa["metrics"]["acc_norm,none"]["value"], 4)
    assert entry.source_url == "https://example.org/pack.tar.gz"
    assert entry.notes.startswith("0-shot acc_norm, 42 documents, evalkit run ")


def test_model_index_holds_several_runs_and_real_dataset_ids(run: Path) -> None:
    first, other = support.read(run), support.read(run)
    for leaf in ("demo_letters_sums", "demo_letters_days"):
        first["tasks"][leaf]["dataset"] |= {"repo": "cais/mmlu", "config": leaf}
    other["model"] |= {"reference": "org/other", "revision": "a" * 40}
    made = [Source(run, record, Report([]), whole=True) for record in (first, other, other)]
    body = yaml.safe_load(hub.model_index(made))["model-index"]
    assert [(each["name"], len(each["results"])) for each in body] == [
        ("demo", 4),
        ("org/other", 8),
    ]
    letters = next(r for r in body[0]["results"] if r["dataset"]["name"] == "demo_letters")
    assert letters["dataset"]["type"] == "cais/mmlu" and "config" not in letters["dataset"]


def test_parquet_holds_every_sample_with_its_scores(run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "samples.parquet"
    call("export", run, "--to", "parquet").refused(2, "--out")
    call("export", run, "--to", "parquet", "--out", out).done()
    rows = parquet.read_table(out).to_pylist()
    qa = [row["acc_norm"] for row in rows if row["task"] == "demo_qa"]
    wanted = support.read(run)["tasks"]["demo_qa"]["metrics"]["acc_norm,none"]["value"]
    assert len(rows) == 210 and sum(qa) / len(qa) == pytest.approx(wanted)
    assert json.loads(rows[0]["doc"]) and rows[0]["mark"] == ""


@pytest.mark.parametrize("how", [("..", "a", "llama"), ("models", "llama"), ("", "m", "llama")])
def test_a_local_models_path_does_not_show(how: tuple[str, ...]) -> None:
    model = {"reference": "/".join(how), "revision": {"unknown": "a local folder"}}
    assert score_table.model_name({"model": model}) == "llama"
    hub_id = {"reference": "org/llama", "revision": "a" * 40}
    assert score_table.model_name({"model": hub_id}) == "org/llama"


def test_mlflows_own_local_store_holds_every_score(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made = call("export", run, "--to", "mlflow").done().out.strip()
    found = tracking.MlflowClient().get_run(made).data
    record = support.read(run)
    assert found.metrics["demo_qa/acc_norm"] == record["tasks"]["demo_qa"]["metrics"][
        "acc_norm,none"]["value"]  # fmt: skip
    assert found.metrics["demo_cot/exact_match_get-answer_stderr"] == 0
    assert found.tags["evalkit.run_id"] == record["ids"]["run"]
    assert found.tags["evalkit.verdict"].startswith("CONSISTENT")


def test_wandb_keeps_a_run_offline(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = Path(call("export", run, "--to", "wandb", "--out", tmp_path).done().out.strip())
    (kept,) = folder.glob("*.wandb")
    data = kept.read_bytes()
    assert b"demo_qa/acc_norm" in data and support.read(run)["ids"]["run"].encode() in data
