"""Results of two versions of lm-eval, as they wrote them (tests/golden/lm-eval.sh): imported, they
are verified, compared, reported on and still marked as lm-eval's word."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import support
from support import ROOT, call

import evalkit
from evalkit.record.signing import keys

pytestmark = pytest.mark.usefixtures("in_this_process")
VERSIONS = ["0.4.5", "0.4.13"]
GOLDEN = {version: ROOT / f"tests/golden/lm-eval-{version}" for version in VERSIONS}


def bring_in(version: str, out: Path) -> Path:
    return Path(call("import", GOLDEN[version], "--out", out).done().out.strip())


@pytest.mark.parametrize("version", VERSIONS)
def test_results_of_either_version_become_a_consistent_marked_folder(
    version: str, tmp_path: Path
) -> None:
    folder = bring_in(version, tmp_path)
    told = json.loads((folder / "imported.json").read_text())
    assert told["schema"] == "evalkit/imported/1" and "weights" in told["unknown"]
    assert told["lm_eval"] == version or "unknown" in told["lm_eval"]
    verdict = call("verify", folder).done().out.splitlines()[-1]
    assert verdict.startswith("CONSISTENT") and "can't be known" in verdict
    html = folder.parent / "report.html"
    call("report", folder, "--out", html).done()
    text = html.read_text()
    assert "imported from lm-eval" in text and "demo_letters_days" in text
    assert "Provenance" not in text and "Time and tokens" not in text


@pytest.mark.parametrize("version", VERSIONS)
def test_results_of_either_version_are_verified_as_they_are(version: str) -> None:
    """What an older version leaves out of its samples is not taken for a change of them."""
    told = call("verify", GOLDEN[version]).done().out.splitlines()
    assert told[-1].startswith("CONSISTENT") and not [line for line in told if "FAIL" in line]
    assert any("24 samples, hashes equal" in line for line in told)


def test_what_older_versions_leave_out_is_put_where_newer_ones_have_it(tmp_path: Path) -> None:
    old, new = (_samples(bring_in(version, tmp_path / version)) for version in VERSIONS)
    for name in ("demo_cot_calendar", "demo_endings"):
        assert old[name][0].keys() == new[name][0].keys()
        assert old[name][0]["filter"] == new[name][0]["filter"]
        assert old[name][0]["metrics"] == new[name][0]["metrics"]
    (path,) = (tmp_path / "0.4.5").glob("*/*/results_*.json")
    assert json.loads(path.read_text())["results"]["demo_letters"]["sample_len"] == 8


def _samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.name.removeprefix("samples_").rsplit("_", 1)[0]: [
            json.loads(line) for line in path.read_text().splitlines()
        ]
        for path in folder.glob("samples_*")
    }


def test_two_versions_are_compared(tmp_path: Path) -> None:
    old, new = (bring_in(version, tmp_path / version) for version in VERSIONS)
    body = json.loads(call("compare", old, new, "--json").done().out)
    tasks = {row["task"] for row in body["pairs"][0]["rows"]}
    assert {"demo_letters", "demo_endings", "demo_qa", "demo_cot"} <= tasks
    assert call("report", old, new, "--out", tmp_path / "c.html").done().out


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    folder = bring_in("0.4.13", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert bring_in("0.4.13", tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_altered_score_is_found_after_importing(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN["0.4.5"], tmp_path / "source")
    (path,) = source.glob("samples_demo_qa_*")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for sample in lines:
        sample["acc"] = 1.0
    path.write_text("".join(json.dumps(sample) + "\n" for sample in lines))
    folder = call("import", source, "--out", tmp_path).done().out.strip()
    assert call("verify", folder).code == 1


def test_what_is_no_results_folder_is_refused(tmp_path: Path) -> None:
    call("import", tmp_path, "--out", tmp_path).refused(3, "nor lm-eval's results")
    source = shutil.copytree(GOLDEN["0.4.5"], tmp_path / "source")
    (path,) = source.glob("samples_demo_qa_*")
    path.write_text("{}\n")
    call("import", source, "--out", tmp_path / "out").refused(1, "line 1", "can't be read")


@pytest.mark.parametrize("command", ["audit", "reproduce", "pack", "sign"])
def test_what_has_no_record_is_not_called_broken_but_what_it_is(
    command: str, tmp_path: Path
) -> None:
    results = bring_in("0.4.13", tmp_path / "results")
    run = support.planned(tmp_path / "demo")
    key = ["--key", tmp_path / "key"] if command == "sign" else []
    if key:
        keys.make(tmp_path / "key")
    call(command, results, *key).refused(3, "these are lm-eval's results", "`evalkit verify`")
    call(command, run, *key).refused(3, "no finished run here", "evalkit status")
    call(command, run.parent, *key).refused(3, "a folder of runs", "give one of them")


def test_imported_results_are_exported_loaded_listed_and_have_a_status(tmp_path: Path) -> None:
    """They were refused everywhere but by verify, compare and report."""
    folder = bring_in("0.4.13", tmp_path / "results")
    for to in ("csv", "markdown", "latex", "every-eval-ever", "model-index"):
        made = call("export", folder, "--to", to).done().out
        assert "demo" in made and "letters" in made
    latex = tmp_path / "t.tex"
    call("export", folder, "--to", "latex", "--out", latex).done()
    assert "numbers in 1 table are the records'" in call("check-table", latex, folder).done().out
    call("export", folder, "--to", "lm-eval", "--out", tmp_path / "o").refused(2, "lm-eval's own")
    assert len(evalkit.load(folder).record["tasks"]) == 6
    assert call("status", folder).done().out.startswith("imported")
    out = tmp_path / "public"
    call("report", "--site", tmp_path / "results", "--out", out).done()
    assert "demo_letters" in (out / "index.html").read_text()
    (page,) = out.glob("*/*/report.html")
    assert "imported from lm-eval" in page.read_text()
