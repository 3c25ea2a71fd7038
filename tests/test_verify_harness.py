"""verify with lm-eval, which scores the samples again, and without anything: nothing that a record
brings is run."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import runs
from forgeries import identified
from runs import Run
from verifying import failed, judged, line, nan_in, set_score

import evalkit
from evalkit.harness.scoring import own_code, rescore
from evalkit.judge.verify import Report, Status, verify
from evalkit.judge.verify.checks import completeness

pytestmark = pytest.mark.usefixtures("without_lm_eval")


def payloads(marker: Path) -> list[str]:
    """Texts that write the marker where something runs them."""
    command = f"touch {marker}"
    return [
        "{{cycler.__init__.__globals__.os.popen('" + command + "').read()}}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %}",
        f"!function os.system('{command}')",
        f"!!python/object/apply:os.system ['{command}']",
        f"__import__('os').system('{command}')",
    ]


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "key", ["doc_to_text", "doc_to_target", "doc_to_choice", "process_results", "target_delimiter"]
)
def test_lm_eval_runs_no_payload_of_a_recorded_config(
    tmp_path: Path, number: int, key: str
) -> None:
    payload = payloads(tmp_path / "marker")[number]
    run = Run()
    run.configs["arc_challenge"][key] = payload
    report = judged(run, tmp_path)
    assert f"arc_challenge ({key})" in line(report, "configs", Status.WARN)
    assert not (tmp_path / "marker").exists()


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_is_not_got_around_by_another_config_in_a_shipped_suite(
    tmp_path: Path, shipped: Path
) -> None:
    run = Run()
    run.configs["arc_challenge"]["process_results"] = "def process_results(doc, results): ..."
    set_score(run, "acc", 1.0)
    report = judged(run, tmp_path)
    assert failed(report) == {"configs", "scoring"}
    assert "arc_challenge (process_results)" in line(report, "configs", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("number", range(5))
def test_lm_eval_runs_no_payload_of_a_document_or_an_answer(tmp_path: Path, number: int) -> None:
    payload = payloads(tmp_path / "marker")[number]

    def say(part: str, answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"text": payload} if "text" in answer else answer

    run = Run(answer=say)
    for sample in run.samples:
        sample["doc"] = dict.fromkeys(sample["doc"], payload)
    report = judged(run, tmp_path)
    assert {"samples", "rescoring"} <= failed(report)
    assert not (tmp_path / "marker").exists()


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_loads_no_task_from_a_path_that_the_record_names(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    marker = tmp_path / "marker"
    (tasks / "utils.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef f(x): return x\n")
    (tasks / "evil.yaml").write_text("task: evil\nprocess_docs: !function utils.f\n")
    run = Run()
    config = run.configs["whole_texts"]
    config |= {"process_docs": "!function utils.f", "dataset_path": str(tasks)}
    config |= {"metadata": {"config_source": str(tasks / "evil.yaml")}}
    run.record["command"]["config"]["include_path"] = str(tasks)
    run.lock["tasks"]["../../tasks/evil"] = run.lock["tasks"].pop("whole_texts")
    verify(run.write(tmp_path / "run"))
    assert not marker.exists()


def test_a_suite_name_is_never_made_into_a_path(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "evil.lock.yaml").write_text("!!python/object/apply:os.system ['true']")
    assert completeness.shipped_lock("../evil") is None
    assert completeness.shipped_lock("*") is None
    assert completeness.shipped_lock("tiny") is not None


def test_a_record_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    run = Run()
    run.extra["events/\x1b[2J\u202e.jsonl"] = b""
    run.samples[0]["filter"] = "\x1b]0;owned\x07"
    run.record["groups"]["science"]["subtasks"] = ["\x1b[31mred"]
    text = "\n".join(judged(run, tmp_path).lines())
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_scores_a_good_run_the_same(tmp_path: Path) -> None:
    report = judged(Run(), tmp_path)
    assert failed(report) == set()
    assert line(report, "rescoring", Status.PASS).startswith("12 samples of 3 tasks scored again")
    report = verify(Run(answer=nan_in("arc_challenge/1/1/0")).write(tmp_path / "nan"))
    assert failed(report) == {"health"}


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_scores_a_raised_generation_otherwise(tmp_path: Path) -> None:
    run = Run()
    set_score(run, "exact_match", 1.0)
    report = judged(run, tmp_path)
    assert failed(report) == {"rescoring"}
    assert "exact_match is 1.0, should be 0.0" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
def test_another_release_of_lm_eval_may_score_otherwise_and_no_one_may_say_so_who_had_this_one(
    tmp_path: Path, shipped: Path
) -> None:
    """What evalkit 0.1.9 had scored by the lm-eval of its time is no lie where ours differs; but
    a run of this evalkit was scored by the release that it asks for."""

    def made(where: str, version: str) -> Report:
        run = Run()
        set_score(run, "exact_match", 0.0)
        run.results["lm_eval_version"] = "0.4.12"
        for part in ("versions", "packages"):
            run.record["environment"][part]["evalkit"] = version
        run.lock["datasets"]["json"]["licence"] = "another" if version == "0.1.9" else "mit"
        leaf = run.record["tasks"]["whole_texts"]["dataset"]
        leaf["licence"] = run.lock["datasets"]["json"]["licence"]
        return verify(identified(run).write(tmp_path / where))

    report = made("older", "0.1.9")
    assert "0.4.13: bbh_cot_fewshot" in line(report, "rescoring", Status.SKIP)
    words = "the scores are said to come from lm-eval 0.4.12, not from 0.4.13, and don't follow"
    assert f"{completeness.AUTHORS_WORD}; {words} from the answers" in report.verdict
    assert failed(made("ours", evalkit.__version__)) == {"rescoring", "configs"}


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_filters_otherwise_where_a_filtered_answer_is_changed(tmp_path: Path) -> None:
    run = Run()
    sample = next(s for s in run.samples if s["task"] == "bbh_cot_fewshot_navigate")
    sample["filtered_resps"] = ["Yes"]
    report = judged(run, tmp_path)
    assert failed(report) == {"rescoring"}
    assert "filter get-answer gives" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("leaf", ["arc_challenge", "mmlu_anatomy", "bbh_cot_fewshot_navigate"])
def test_lm_eval_knows_another_target_though_its_hashes_are_right(
    tmp_path: Path, leaf: str
) -> None:
    run = Run()
    mine = [sample for sample in run.samples if sample["task"] == leaf]
    mine[0]["target"] = "2"
    mine[0]["target_hash"] = runs.sha256("2")
    questions = [[s["doc_id"], s["doc_hash"], s["target_hash"]] for s in mine]
    run.record["tasks"][leaf]["questions"] = runs.digest(questions)
    report = judged(run, tmp_path)
    assert "rescoring" in failed(report)
    assert "its target is 2, lm-eval says" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_knows_exchanged_choices_and_a_prompt_that_ends_otherwise(tmp_path: Path) -> None:
    run = Run()
    arguments = run.samples[0]["arguments"]
    first, second = arguments["gen_args_0"], arguments["gen_args_1"]
    first["arg_1"], second["arg_1"] = second["arg_1"], first["arg_1"]
    report = judged(run, tmp_path)
    assert "its requests are not the task's" in line(report, "rescoring", Status.FAIL)
    run = Run()
    for argument in run.samples[0]["arguments"].values():
        argument["arg_0"] += " (B)"
    report = verify(run.write(tmp_path / "prompt"))
    assert "does not end with the task's question" in line(report, "rescoring", Status.FAIL)


@pytest.mark.usefixtures("lm_eval")
def test_lm_eval_leaves_tasks_that_score_by_code_of_their_own(tmp_path: Path) -> None:
    for name in ("ifeval", "humaneval", "mmlu", "no_such_task"):
        with pytest.raises(own_code.Refused):
            rescore.task(name, {}, {"a": 1}, chat=False)


def test_verify_needs_neither_lm_eval_nor_torch_nor_a_network(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "run")
    code = f"""
        import socket, sys
        for name in ("lm_eval", "torch", "datasets", "transformers", "numpy", "huggingface_hub"):
            sys.modules[name] = None
        socket.socket.connect = None
        from pathlib import Path
        from evalkit.judge.verify import verify
        print("\\n".join(verify(Path({str(path)!r})).lines()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert {text.split()[0] for text in lines[:-1]} <= {"PASS", "WARN", "SKIP"}
    assert lines[-1].startswith("CONSISTENT")
    assert any(text.startswith("SKIP  rescoring") for text in lines)


def test_verify_imports_nothing_heavy_where_lm_eval_is_not_needed() -> None:
    code = "import sys, evalkit.judge.verify; heavy = 'torch', 'lm_eval', 'datasets', 'numpy'"
    code += "; print([m for m in heavy if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
