"""The public form of a run's samples: what can be checked of them without a text.

Documents, prompts, choices, generated texts and what filters made of them are left out, each behind
a digest with a salt of its document, which only the author's key gives: with a public salt and four
choices the right answers could be tried out. Log-likelihoods, margins and metrics stay.
"""

import gzip
import io
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.harness.samples import Sample, value_of
from evalkit.inputs.types import Answer
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.record.journal import Answers
from evalkit.record.reading.identity import read_samples
from evalkit.record.salted import (
    HEAD,
    LINES,
    REVEALED,
    SCHEMA,
    HiddenText,
    PublicHead,
    PublicLine,
    PublicTask,
    Revealed,
    Salts,
    hidden,
)
from evalkit.record.types import Record


def made(run: Path, record: Record, salts: Salts) -> dict[str, bytes]:
    """Return the files of a run's public form by name: of its samples what is no text."""
    with canon.reader(run / "results.json") as handle:
        results = canon.loads(handle.read())
    configs = {leaf: results["configs"][leaf] for leaf in record["tasks"]}
    tasks = {leaf: _scoring(config) for leaf, config in configs.items()}
    lines = io.BytesIO()
    with gzip.GzipFile(fileobj=lines, mode="wb", compresslevel=9, mtime=0, filename="") as zipped:
        for line in _lines(run, record, configs, tasks, salts):
            zipped.write(canon.dumps(line).encode() + b"\n")
    head: PublicHead = {"schema": SCHEMA, "tasks": tasks}
    return {HEAD: canon.dumps(head).encode() + b"\n", LINES: lines.getvalue()}


def revealed(run: Path, record: Record, task: str, doc_id: int, salts: Salts) -> Revealed | None:
    """Return what opens one document of a public pack: its texts, its answers' texts and its salt;
    None where the run has no such document."""
    for samples in _documents(run):
        first = samples[0]
        if (first["task"], first["doc_id"]) == (task, doc_id):
            texts = record["tasks"][task]["output_type"] == "generate_until"
            return {
                "schema": REVEALED,
                "record": canon.sha256_file(run / "record.json"),
                "task": task,
                "doc_id": doc_id,
                "salt": salts.of(task, doc_id),
                "document": [first["doc"], first["arguments"], first["target"]],
                "answers": first["resps"] if texts else None,
                "filtered": {s["filter"]: s["filtered_resps"] for s in samples} if texts else None,
            }
    return None


def _is_unclear(sample: Sample) -> bool:
    """Whether a sample's scores can't contradict: choices in prompts, or several right ones."""
    prompts = {argument["arg_0"] for argument in sample["arguments"].values()}
    return len(prompts) > 1 or sample["target"].startswith("[")


def _scoring(config: Mapping[str, Any]) -> PublicTask:
    """Return what a task's config says of its metrics, and whether only lm-eval can score it."""
    metrics = config.get("metric_list")
    own = config.get("process_results") is not None or config.get("filter_list") is not None
    return {
        "metric_list": metrics
        and [{"metric": m["metric"], "aggregation": m.get("aggregation")} for m in metrics],
        "plain": not own and config.get("repeats", 1) == 1,
    }


def _lines(
    run: Path, record: Record, configs: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, PublicTask], salts: Salts,
) -> Iterator[PublicLine]:  # fmt: skip
    """Yield a line for each document; note in `tasks` whose scores can't contradict each other."""
    plan = Plan(run)
    done = journal.of_record(run, record, plan.entries)
    answers, leaf = Answers(plan, done), ""
    by_request: dict[str, Answer] = {}
    for samples in _documents(run):
        first = samples[0]
        if first["task"] != leaf:
            leaf = first["task"]
            by_request = answers.of(leaf)
        if _is_unclear(first):
            tasks[leaf]["plain"] = False
        salt = salts.of(leaf, first["doc_id"])
        line: PublicLine = {
            "task": leaf,
            "doc_id": first["doc_id"],
            "sha256": hidden(salt, [first["doc"], first["arguments"], first["target"]]),
            "answers": _answers(first, by_request, salt),
            "metrics": {s["filter"]: {m: value_of(s, m) for m in s["metrics"]} for s in samples},
        }
        kind = record["tasks"][leaf]["output_type"]
        if kind == "multiple_choice":
            delimiter = configs[leaf].get("target_delimiter", " ")
            delimiter = "" if record["suite"]["apply_chat_template"] else delimiter
            choices = [argument["arg_1"] for argument in first["arguments"].values()]
            line["lengths"] = [_lengths(choice.removeprefix(delimiter)) for choice in choices]
        elif kind == "generate_until":
            line["filtered"] = {s["filter"]: _hidden(s["filtered_resps"], salt) for s in samples}
        yield line


def _documents(run: Path) -> Iterator[list[Sample]]:
    for _, samples in groupby(read_samples(run), lambda s: (s["task"], s["doc_id"])):
        yield list(samples)


def _answers(
    sample: Sample, by_request: Mapping[str, Answer], salt: str
) -> list[list[HiddenText | list[Any]]]:
    name = f"{sample['task']}/{sample['doc_id']}"
    return [
        [_answer(by_request[f"{name}/{index}/{repeat}"], salt) for repeat in range(len(repeats))]
        for index, repeats in enumerate(sample["resps"])
    ]


def _lengths(choice: str) -> list[int]:
    return [len(choice), len(choice.encode())]


def _answer(answer: Answer, salt: str) -> HiddenText | list[Any]:
    """Return a log-likelihood as a list of its fields, a generation without its text."""
    if "text" not in answer:
        kept = ("loglikelihood", "is_greedy", "num_tokens")
        return [value for key in kept if (value := answer.get(key)) is not None]
    text: HiddenText = {"text": hidden(salt, answer["text"]), "stop": answer["stop"]}
    if isinstance(answer["tokens"], list):
        text["tokens"] = len(answer["tokens"])
        text["logprob"] = canon.total(journal.numbers(answer["logprobs"]))
        text["margin"] = min(journal.numbers(answer["margins"]), default=None)
    return text  # an engine of lm-eval's does not tell the rest


def _hidden(value: Any, salt: str) -> Any:
    """Return the digests of what a filter found, as a short text would tell the right answer."""
    if isinstance(value, list):
        return [_hidden(item, salt) for item in value]
    return {"sha256": hidden(salt, str(value))}
