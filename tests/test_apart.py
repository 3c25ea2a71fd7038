"""Scores of tasks whose code is their own: the installed lm-eval's code scores them again, in a
process that can do nothing else."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import runs

from evalkit.base.machine import stamp
from evalkit.harness import publish
from evalkit.harness.data import metrics
from evalkit.harness.scoring import apart, rescore
from evalkit.harness.scoring.apart import Apart
from evalkit.harness.scoring.own_code import Refused
from evalkit.judge.verify.checks.scores import Scores
from evalkit.record.reading.evidence.samples import Document
from evalkit.record.reading.findings import Status

pytestmark = pytest.mark.skipif(rescore.installed() is None, reason="lm-eval isn't installed")
LEAF = "aime24"
DOC = {"Problem": "What is 6 times 7?", "Answer": 42}


Checked = Callable[..., dict[str, tuple[Status, str]]]


class Kept(Apart):
    """A child that one record after another uses: it takes seconds to import lm-eval."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def child() -> Iterator[Kept]:
    """The child of this module's tests."""
    kept = Kept()
    yield kept
    Apart.close(kept)


def config_of(name: str) -> dict[str, Any]:
    """A task's config as an honest record has it."""
    from lm_eval.api.task import TaskConfig

    with metrics.guarded():
        config = rescore.installed_config(name, with_code=True)
    return publish.clean(TaskConfig(**config).to_dict())


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The config of the task that most tests use."""
    return config_of(LEAF)


def sample(text: str, score: float) -> dict[str, Any]:
    """A document's sample, answered so."""
    prompt = f"Question: {DOC['Problem']}\nAnswer:"
    return {
        "task": LEAF, "doc_id": 0, "doc": DOC, "target": "42",
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["Question:"]}}},
        "resps": [[text]], "filtered_resps": [text], "filter": "none", "metrics": ["exact_match"],
        "doc_hash": runs.doc_hash(DOC), "prompt_hash": runs.sha256(prompt),
        "target_hash": runs.sha256("42"), "exact_match": score,
    }  # fmt: skip


@pytest.fixture
def checked(child: Kept) -> Checked:
    """What verify says of some samples' scores, by the checks' names."""

    def judged(recorded: dict[str, Any], *samples: Any) -> dict[str, tuple[Status, str]]:
        scores = Scores({LEAF: recorded}, False, _child=child)
        for each in samples:
            scores.add(Document(LEAF, 0, [each]))
        scores.finish()
        return {check.name: (check.status, check.detail) for check in scores.checks("0.4.13")}

    return judged


def test_a_score_by_the_tasks_own_code_is_recomputed(
    checked: Checked, recorded: dict[str, Any]
) -> None:
    """It was skipped: the task has process_results."""
    right, wrong = sample("It is $\\boxed{42}$", 1), sample("It is $41$", 0)
    found = checked(recorded, right, wrong)
    told = "2 samples of 1 tasks scored again by lm-eval 0.4.13, equal"
    assert found["rescoring"] == (Status.PASS, told)
    raised = checked(recorded, sample("It is $41$", 1))
    assert raised["rescoring"][0] is Status.FAIL
    assert "exact_match is 1, should be 0" in raised["rescoring"][1]


def test_another_code_than_the_installed_is_not_run_and_fails(
    checked: Checked, recorded: dict[str, Any]
) -> None:
    other = recorded | {"process_results": "def process_results(doc, results): return 1"}
    found = checked(other, sample("It is $41$", 1))
    assert found["configs"][0] is Status.FAIL and "process_results" in found["configs"][1]


def test_a_metric_that_a_tasks_own_code_aggregates_is_scored_again_in_a_process_apart(
    child: Kept,
) -> None:
    doc = {"paragraph": "p", "question": "q?", "label": 1}
    prompt = "p 질문: q? 답변: "
    sample: Any = {
        "doc": doc, "doc_id": 0, "target": "1", "filter": "none",
        "arguments": {f"gen_args_{n}": {"arg_0": prompt, "arg_1": f" {word}"}
                      for n, word in enumerate(("아니오", "예"))},
        "resps": [[["-2.0", "False"]], [["-1.0", "True"]]],
    }  # fmt: skip
    task = child.task("kobest_boolq", config_of("kobest_boolq"), doc, chat=False)
    (scored,) = task.score([[sample]])
    assert (scored.problem, scored.metrics) == ("", {"none": {"acc": 1.0, "f1": [1, 1]}})


def test_code_that_takes_too_long_is_ended_and_skipped(
    checked: Checked, recorded: dict[str, Any]
) -> None:
    child = Apart()
    child._left = 0.2
    with pytest.raises(Refused, match="more time or memory than it may"):
        child.task(LEAF, recorded, DOC, chat=False)
    assert child._process is None


def test_code_that_is_not_the_release_or_evaluates_texts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamp, "harness_record", lambda: (sys.prefix, {}))
    with pytest.raises(Refused, match="is not the released lm-eval's"):
        apart.check_files(LEAF)
    assert apart.text_evaluator(b"import re\nre.compile('a')\nlen([1])") == ""
    for text in (b"eval(answer)", b"import os\nos.system(answer)", b"exec(answer)"):
        assert apart.text_evaluator(text)


def test_the_process_apart_can_write_reach_and_start_nothing(tmp_path: Path) -> None:
    """But it reads nltk's words wherever they lie, and may set variables of its environment, as
    scikit-learn does when it is imported: without either, ifeval was not scored again."""
    (tmp_path / "secret").write_text("a key")
    words = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    words.mkdir(parents=True)
    (words / "words").write_text("these")
    script = f"""
    from evalkit.harness.scoring import apart
    apart._lock()
    import os, socket, subprocess
    tried = {{
        "write": lambda: open({str(tmp_path / "made")!r}, "w"),
        "read": lambda: open({str(tmp_path / "secret")!r}).read(),
        "make": lambda: os.mkdir({str(tmp_path / "folder")!r}),
        "remove": lambda: os.remove({str(tmp_path / "secret")!r}),
        "reach": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "start": lambda: subprocess.run(["true"]),
        "shell": lambda: os.system("true"),
        "fork": lambda: os.fork(),
    }}
    for name, attempt in tried.items():
        try:
            attempt()
        except PermissionError:
            continue
        print(name)
    assert open({str(words / "words")!r}).read() == "these"
    os.environ.setdefault("MADE_UP", "1")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], env=os.environ | {"NLTK_DATA": str(tmp_path / "nltk")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "nltk"}
