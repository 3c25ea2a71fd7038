"""Metrics that lm-eval gets from the Hub: those of labels are computed here, and give what the
Hub's give; the Hub is never asked; a task that needs another program is refused by its name."""

import json
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labels
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import steady

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness import locking, publish, tasks
from evalkit.harness.data import loading, metrics
from evalkit.harness.scoring import own_code, rescore
from evalkit.inputs import suite as suites

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's, of lone classes
ROWS = [{"q": f"Is {n} even?", "label": 1 - n % 2} for n in range(4)]
TASK: dict[str, Any] = {
    "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{q}}",
    "doc_to_target": "{{label}}", "generation_kwargs": {"max_gen_toks": 4, "until": ["\n"]},
}  # fmt: skip
HUB = {"aggregation": "mean", "higher_is_better": True, "hf_evaluate": True}
CODE = """
import evaluate
from evaluate import load
def scored(doc, results):
    return {"one": helped(results)}
def helped(results):
    return load("bertscore").compute(predictions=results)["f1"]
def summed(items):
    import evaluate as hub
    return hub.load("rouge").compute(predictions=items)["rouge1"]
def verdict(items):
    return evaluate.load("f1").compute(predictions=[1], references=[1])["f1"]
def unused():
    return evaluate.load("bleurt")
def passed(items):
    return 1.0
"""
AVERAGES: list[dict[str, Any]] = [
    {}, {"average": "micro"}, {"average": "macro"}, {"average": "weighted"}, {"average": None},
    {"pos_label": 0},
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("somebody asks the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


LABELS = st.one_of(
    st.integers(-1, 3), st.sampled_from(["0", "1", " 2", "-1"]), st.booleans(), st.just(1.7)
)


@steady
@given(
    pairs=st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=8),
    name=st.sampled_from(sorted(metrics.FUNCTIONS)), settings=st.sampled_from(AVERAGES),
)  # fmt: skip
def test_a_metric_of_labels_gives_what_the_librarys_own_machinery_gives(
    pairs: list[tuple[Any, Any]], name: str, settings: dict[str, Any]
) -> None:
    import numpy as np

    if name in ("accuracy", "matthews_correlation"):
        settings = {}
    predictions, references = ([pair[side] for pair in pairs] for side in (0, 1))
    given = {"predictions": predictions, "references": references, **settings}
    try:
        theirs = labels.metric(name).compute(**given)
    except ValueError:  # of three classes without an average
        with pytest.raises(ValueError):
            metrics.load(name).compute(**given)
        return
    ours = metrics.load(name).compute(**given)
    assert list(ours) == [name]
    assert np.array_equal(np.ravel(ours[name]), np.ravel(theirs))
    assert isinstance(ours[name], float) == (np.size(theirs) == 1)


@pytest.mark.parametrize("label", ["A", "", None, 1 << 31, [1]])
def test_what_is_no_label_is_an_error_on_both_sides(label: Any) -> None:
    given = {"predictions": [label], "references": [1], "average": "micro"}
    for metric in (labels.metric("f1"), metrics.load("f1")):
        with pytest.raises((ValueError, TypeError)):
            metric.compute(**given)


def write(folder: Path, **more: Any) -> suites.Suite:
    """A suite of one task of ours, with code beside it."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.py").write_text(CODE)
    (folder / "tasks" / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    body = {"task": "own_labels", "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, **TASK, **more}  # fmt: skip
    text = yaml.safe_dump(body).replace("'!function own.", "!function 'own.")
    (folder / "tasks" / "own_labels.yaml").write_text(text)
    suite = {"name": "labels", "tasks": ["own_labels"], "include_path": "tasks"}
    (folder / "labels.yaml").write_text(yaml.safe_dump(suite))
    return suites.load(str(folder / "labels.yaml"))


def loaded(suite: suites.Suite) -> Any:
    return tasks.load(
        suite, loading.Pins({}, include_path=suite.include_path, resolve=loading.current)
    )


REFUSED = {
    "a name of the Hub's": ([{"metric": "rouge", **HUB}], "rouge"),
    "a name that lm-eval has too": ([{"metric": "exact_match", **HUB}], "exact_match"),
    "loaded where it aggregates": (
        [{"metric": "!function own.passed", "aggregation": "!function own.summed"}],
        "rouge",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_task_that_a_program_on_the_hub_scores_is_refused_by_its_name(
    case: str, tmp_path: Path
) -> None:
    """It was fetched and run in this process, at any revision; without a network the run failed."""
    metric_list, program = REFUSED[case]
    with pytest.raises(EvalkitError, match="own_labels") as caught:
        loaded(write(tmp_path, metric_list=metric_list))
    assert f"is scored with {program}: a program on the Hub" in caught.value.what
    assert "!function" in caught.value.fix and caught.value.code == Exit.USAGE


def test_a_program_that_is_loaded_deep_in_a_tasks_code_is_found_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    own = {
        "process_results": "!function own.scored",
        "metric_list": [{"metric": "one", "aggregation": "mean"}],
    }
    with pytest.raises(EvalkitError, match="is scored with bertscore: a program"):
        loaded(write(tmp_path, **own))


def test_code_that_loads_a_metric_of_labels_or_does_not_use_its_loader_is_taken(
    tmp_path: Path,
) -> None:
    entry = {"metric": "!function own.passed", "aggregation": "!function own.verdict",
             "higher_is_better": True}  # fmt: skip
    task = loaded(write(tmp_path, metric_list=[entry])).leaves["own_labels"].task
    with metrics.guarded():
        assert task.aggregation()["passed"]([]) == 1.0


@pytest.mark.parametrize(
    ("code", "outer"),
    [("import evaluate\nbleu = evaluate.load('bleu')\n", ""),
     ("import evaluate\ntry:\n    evaluate.load('bleu')\nexcept Exception as e:\n"
      "    raise RuntimeError('install it') from e\n", "RuntimeError")],
    ids=["plain", "wrapped"],
)  # fmt: skip
def test_a_program_that_is_loaded_with_the_tasks_code_is_named(
    code: str, outer: str, tmp_path: Path
) -> None:
    """lm-eval's meqsum and its like told the user to install what no package has."""
    suite = write(tmp_path, metric_list=[{"metric": "!function own.passed", "aggregation": "mean"}])
    (tmp_path / "tasks" / "own.py").write_text(code + CODE)
    with pytest.raises(EvalkitError, match="is scored with bleu: a program on the Hub"):
        loaded(suite)


def test_metrics_of_labels_score_a_run_and_stand_in_its_lock_with_their_package(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    from evalkit.base import canon
    from evalkit.base.events import Events
    from evalkit.base.machine import stamp
    from evalkit.run import evaluate
    from evalkit.run.preparing.prepare import Options

    numbered = [{"function": "map", "mapping_dict": {"yes": 1}, "default_value": 0}]
    first = {"name": "first", "filter": [*numbered, {"function": "take_first"}]}
    suite = write(
        tmp_path, filter_list=[first],
        metric_list=[{"metric": "accuracy", **HUB}, {"metric": "f1", **HUB, "average": "micro"}],
    )  # fmt: skip
    assert locking.make_lock(suite, update=False, offline=True).scorers == ("scikit-learn",)
    locking.write_lock(str(suite.path))
    options = Options(model=str(tiny_model()), suite=str(suite.path), out=tmp_path / "runs",
                      device="cpu")  # fmt: skip
    run = evaluate.evaluate(options, Events(), workers=0)
    record = canon.read_json(run / "record.json")
    found = record["tasks"]["own_labels"]["metrics"]
    assert {key: entry["value"] for key, entry in found.items()} == {
        "accuracy,first": 0.5, "f1,first": 0.5}  # fmt: skip
    assert record["suite"]["scorers"] == {"scikit-learn": stamp.version("scikit-learn")}


LABELLED = ["polemo2_in", "kobest_boolq", "kobest_copa", "afrimmlu_direct_eng_prompt_1"]


@pytest.mark.parametrize("name", LABELLED)
def test_verify_scores_lm_evals_own_tasks_of_labels_again(name: str) -> None:
    """They were skipped: their metric was a program on the Hub."""
    config = rescore.unresolved(name)
    own_code.refuse_code(config, with_code=True)
    assert "f1" in metrics.by_sklearn(config)


def test_a_recorded_sample_is_scored_again_by_a_metric_of_labels() -> None:
    from lm_eval.api.task import TaskConfig

    config = publish.clean(TaskConfig(**rescore.installed_config("polemo2_in")).to_dict())
    doc = {"sentence": "Dobry lekarz.", "target": "__label__meta_plus_m"}
    task = rescore.task("polemo2_in", config, doc, chat=False)
    prompt = str(task._task.doc_to_text(doc))
    for text, value in (("C", 1.0), ("B", 0.0), ("nic", 0.0)):
        sample: Any = {
            "doc": doc, "doc_id": 0, "target": "2", "filter": "score-first", "resps": [[text]],
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {}}},
        }  # fmt: skip
        (scored,) = task.score([[sample]])
        assert scored.problem == ""
        assert scored.metrics == {"score-first": {"f1": value, "accuracy": value}}


def test_a_label_that_is_never_there_is_no_warning_at_each_draw_of_the_bootstrap() -> None:
    from sklearn.metrics import f1_score

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with metrics.guarded():
            assert f1_score([0, 0], [0, 0]) == 0
        assert not said
