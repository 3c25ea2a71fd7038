"""A public pack, whose texts are left out, is held against all that it still says: nobody scores,
asks or computes otherwise in it than in the run itself."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import honest
import pytest
import runs
from runs import Run
from scored import MEAN

from evalkit.base import canon, statistics
from evalkit.judge.verify import Report, Wanted, judge
from evalkit.judge.verify.checks import completeness
from evalkit.record import salted
from evalkit.record.packs import archive, pack
from evalkit.record.reading.identity import inputs_of

pytestmark = pytest.mark.usefixtures("without_lm_eval", "shipped")
Value = dict[str, Any]
Forge = Callable[[Value, Value, list[Value]], object]
COT, ARC, MMLU, TEXTS = "bbh_cot_fewshot_navigate", "arc_challenge", "mmlu_anatomy", "whole_texts"


@pytest.fixture(scope="module")
def shipped_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return honest.shipped_suite(tmp_path_factory.mktemp("suites"))


@pytest.fixture
def shipped(shipped_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small run's suite is shipped."""
    monkeypatch.setattr(completeness, "SUITES", [shipped_folder])


def judged(path: Path) -> Report:
    """What verify makes of a pack or its folder."""
    (report,) = judge([path], Wanted()).reports.values()
    return report


def forged(run: Run, forge: Forge, place: Path) -> Report:
    """What verify makes of a run's public pack whose record, head and lines `forge` has changed,
    every digest and id put right."""
    with archive.unpacked(pack.pack(run.write(place / "run"), public=True)) as folder:
        record = runs.read_record(folder)
        head = json.loads((folder / salted.HEAD).read_text())
        packed = (folder / salted.LINES).read_bytes()
        lines = [json.loads(raw) for raw in gzip.decompress(packed).splitlines()]
        forge(record, head, lines)
        record["ids"]["suite"] = runs.digest(inputs_of(record)["suite"])  # type: ignore[arg-type]
        record["ids"]["answers"] = runs.digest(record["answers"])
        record["ids"]["run"] = runs.run_id(record)
        runs.write_record(folder, record)
        (folder / salted.HEAD).write_text(canon.dumps(head) + "\n")
        text = "".join(f"{canon.dumps(line)}\n" for line in lines).encode()
        (folder / salted.LINES).write_bytes(gzip.compress(text, mtime=0))
        return judged(folder)


def scores(record: Value, leaf: str, metric: str, value: float) -> None:
    """Put a leaf task's score, of which every document has the same, into the record."""
    key = next(key for key in record["tasks"][leaf]["metrics"] if key.startswith(f"{metric},"))
    error = 0.0 if record["tasks"][leaf]["n"] > 1 else None
    made = {"value": value, "stderr": error, "stderr_method": MEAN if error is not None else None}
    record["tasks"][leaf]["metrics"][key] |= made


def of(leaf: str, lines: list[Value]) -> list[Value]:
    """The lines of a leaf task."""
    return [line for line in lines if line["task"] == leaf]


def texts(lines: list[Value]) -> list[Value]:
    """The answers that are texts."""
    return [a for line in of(COT, lines) for repeats in line["answers"] for a in repeats]


def renamed(record: Value, head: Value, lines: list[Value]) -> None:
    """The mean of nothing, called a perplexity, is 1."""
    head["tasks"][COT]["metric_list"][0]["aggregation"] = "perplexity"
    for line in of(COT, lines):
        line["metrics"] = {name: {"exact_match": 0.0} for name in line["metrics"]}
    record["tasks"][COT]["metrics"]["exact_match,get-answer"] |= {
        "value": 1.0, "stderr": None, "stderr_method": None,
    }  # fmt: skip


def unknown_aggregation(record: Value, head: Value, _: list[Value]) -> None:
    """A mean that nobody here can compute."""
    head["tasks"][COT]["metric_list"][0]["aggregation"] = "own"
    scores(record, COT, "exact_match", 1.0)


def better_perplexity(record: Value, _: Value, lines: list[Value]) -> None:
    """Texts are scored by a tenth of the nats that they were answered with."""
    values = []
    for line in of(TEXTS, lines):
        for pair in line["metrics"]["none"].values():
            pair[0] /= 10
        values.append(line["metrics"]["none"])
    metrics = record["tasks"][TEXTS]["metrics"]
    words = [each["word_perplexity"] for each in values]
    metrics["word_perplexity,none"]["value"] = statistics.weighted_perplexity(words)
    bits = [each["bits_per_byte"] for each in values]
    metrics["bits_per_byte,none"]["value"] = statistics.bits_per_byte(bits)


def by_texts(record: Value, head: Value, lines: list[Value]) -> None:
    """The same, and its answers called texts, which no digest is held against."""
    better_perplexity(record, head, lines)
    for line in of(TEXTS, lines):
        line["answers"] = [[{"text": "0" * 64, "stop": "eos"}] for _ in line["answers"]]


def task(leaf: str, **fields: Any) -> Forge:
    """Other fields of a leaf task."""
    return lambda record, _, __: record["tasks"][leaf].update(fields)


def text(**fields: Any) -> Forge:
    """Other fields of every text."""
    return lambda _, __, lines: [answer.update(fields) for answer in texts(lines)]


FORGERIES: dict[str, Forge] = {
    "an aggregation renamed": renamed,
    "an aggregation that nobody knows": unknown_aggregation,
    "a perplexity of other answers": better_perplexity,
    "a perplexity of answers called texts": by_texts,
    "less called better": lambda record, _, __: record["tasks"][ARC]["metrics"][
        "acc_norm,none"
    ].update(higher_is_better=False),
    "another version of a task": task(ARC, version=7),
    "more shots than given": task(COT, num_fewshot=9),
    "other rows in the suite": lambda record, _, __: record["suite"]["rows"].update(
        {ARC: f"sha256:{'0' * 64}"}
    ),
    "an unknown profile": lambda record, _, __: record["numerics"].update(profile="exact"),
    "an unknown dtype": lambda record, _, __: record["numerics"].update(dtype="float4"),
    "a rate that no tokens have": lambda record, _, __: record["phases"]["execute"].update(
        tokens_per_second=1e6
    ),
    "texts that were cut and aren't counted": text(stop="length"),
    "texts that ended for no reason": text(stop="enough"),
    "a text of no tokens": text(tokens=0),
    "a text with a probability above 1": text(logprob=5.0),
    "more tokens than can be counted": text(tokens=10**30),
    "cut texts that aren't there": lambda record, _, __: record["health"].update(cut_generations=2),
    "ties that aren't there": lambda record, _, __: record["health"].update(exact_ties=1),
    "a log-likelihood above 0": lambda _, __, lines: lines[0]["answers"][0][0].__setitem__(0, 2.5),
    "one choice": lambda _, __, lines: [line.update(answers=line["answers"][:1],
        lengths=line["lengths"][:1]) for line in of(ARC, lines)],
    "filters that come and go": lambda _, __, lines: lines[1].update(
        metrics={"other": lines[1]["metrics"]["none"]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_public_pack_is_broken_as_the_run_would_be(what: str, tmp_path: Path) -> None:
    report = forged(Run(), FORGERIES[what], tmp_path)
    assert report.verdict.startswith("BROKEN"), "\n".join(report.lines())


def test_the_last_line_says_how_many_scores_of_a_public_pack_are_its_authors_word(
    tmp_path: Path,
) -> None:
    """A task that is said to be scored by code of its own is held against none of its answers."""

    def all_right(record: Value, head: Value, lines: list[Value]) -> None:
        head["tasks"][MMLU]["plain"] = False
        for line in of(MMLU, lines):
            line["metrics"]["none"]["acc"] = 1.0
        scores(record, MMLU, "acc", 1.0)
        entries = [record["tasks"][leaf] for leaf in (MMLU, ARC)]
        sizes, accs = [e["n"] for e in entries], [e["metrics"]["acc,none"] for e in entries]
        record["groups"]["science"]["metrics"]["acc,none"] |= {
            "value": statistics.weighted_mean([acc["value"] for acc in accs], sizes),
            "stderr": statistics.pooled_standard_error([acc["stderr"] for acc in accs], sizes),
        }

    report = forged(Run(), all_right, tmp_path)
    documents = len(runs.DOCUMENTS[MMLU]) + len(runs.DOCUMENTS[COT])
    assert report.verdict.endswith(f"the scores of {documents} documents are their author's word")


@pytest.mark.parametrize("what", honest.VARIATIONS)
def test_the_public_pack_of_an_honest_run_is_consistent(what: str, tmp_path: Path) -> None:
    """Of a folder with letters that no archive holds, it was BROKEN."""
    path = pack.pack(honest.VARIATIONS[what](tmp_path / "run"), public=True)
    report = judged(path)
    assert report.verdict.startswith("CONSISTENT"), "\n".join(report.lines())


def test_choices_in_prompts_and_several_right_ones_contradict_nothing() -> None:
    """Such a task's scores are not held against log-likelihoods that don't decide them."""
    from evalkit.record.packs.public_form import _is_unclear

    sample: Any = {"target": "1", "arguments": {"gen_args_0": {"arg_0": "a", "arg_1": " x"}}}
    assert not _is_unclear(sample)
    assert _is_unclear(sample | {"target": "[0, 2]"})
    two = sample["arguments"] | {"gen_args_1": {"arg_0": "b", "arg_1": " x"}}
    assert _is_unclear(sample | {"arguments": two})


def test_choices_asked_again_without_their_question_are_no_choices() -> None:
    from evalkit.judge.verify.checks import hidden

    line: Any = {
        "task": "t", "doc_id": 0,
        "answers": [[[-2.0, False, 1]], [[-1.0, False, 1]], [[-0.5, False, 1]], [[-3.0, False, 1]]],
        "lengths": [[3, 3], [9, 9], [3, 3], [9, 9]],
        "metrics": {"none": {"acc": 1.0, "acc_norm": 1.0, "acc_mutual_info": 1.0}},
    }  # fmt: skip
    assert hidden.contradiction(line, "multiple_choice") == ""
    line["metrics"]["none"]["acc_norm"] = 0.0
    assert "contradict" in hidden.contradiction(line, "multiple_choice")
    line["metrics"] = {"none": {"acc": 1, "perplexity": -2.0}}
    assert "contradict" in hidden.contradiction(line, "loglikelihood")
