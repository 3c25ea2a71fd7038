"""The public form of a run's samples: what can be checked of them without a text.

Documents, prompts, choices, generated texts and what filters made of them are left out, each behind
a digest with a salt of its document, which only the author's key gives: with a public salt and four
choices the right answers could be tried out. Log-likelihoods, margins and metrics stay.
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.record.journal import Answers
from evalkit.record.salted import HEAD, LINES, REVEALED, SCHEMA, Salts, hidden

Value = dict[str, Any]


def made(run: Path, record: Value, salts: Salts) -> dict[str, bytes]:
    """Of a run's samples what is no text, by file name."""
    with canon.reader(run / "results.json") as handle:
        results = canon.loads(handle.read())
    configs: dict[str, Value] = {leaf: results["configs"][leaf] for leaf in record["tasks"]}
    head = {"schema": SCHEMA, "tasks": {leaf: _told(config) for leaf, config in configs.items()}}
    lines = io.BytesIO()
    with gzip.GzipFile(fileobj=lines, mode="wb", compresslevel=9, mtime=0, filename="") as zipped:
        for line in _lines(run, record, configs, salts):
            zipped.write(canon.dumps(line).encode() + b"\n")
    return {HEAD: canon.dumps(head).encode() + b"\n", LINES: lines.getvalue()}


def revealed(run: Path, record: Value, task: str, doc_id: int, salts: Salts) -> Value | None:
    """What opens one document of a public pack: its texts, its answers' and its salt; None where
    the run has no such document."""
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


def _told(config: Value) -> Value:
    """What of a task's config says how its values become one, and whether lm-eval alone scores."""
    metrics = config.get("metric_list")
    own = config.get("process_results") is not None or config.get("filter_list") is not None
    return {
        "metric_list": metrics
        and [{"metric": m["metric"], "aggregation": m.get("aggregation")} for m in metrics],
        "plain": not own and config.get("repeats", 1) == 1,
    }


def _lines(run: Path, record: Value, configs: dict[str, Value], salts: Salts) -> Iterator[Value]:
    """A line a document, in the samples' order."""
    plan = Plan(run)
    done = journal.of_record(run, record, plan.entries)
    answers, leaf = Answers(plan, done), ""
    said: dict[str, Value] = {}
    for samples in _documents(run):
        first = samples[0]
        if first["task"] != leaf:
            leaf = first["task"]
            said = answers.of(leaf)
        name, salt = f"{leaf}/{first['doc_id']}", salts.of(leaf, first["doc_id"])
        kept = [
            [_answer(said[f"{name}/{index}/{repeat}"], salt) for repeat in range(len(repeats))]
            for index, repeats in enumerate(first["resps"])
        ]
        line = {
            "task": leaf,
            "doc_id": first["doc_id"],
            "sha256": hidden(salt, [first["doc"], first["arguments"], first["target"]]),
            "answers": kept,
            "metrics": {s["filter"]: {m: s[m] for m in s["metrics"]} for s in samples},
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


def _documents(run: Path) -> Iterator[list[Value]]:
    """The samples of each document, one a filter."""
    waiting: list[Value] = []
    with gzip.open(run / "samples.jsonl.gz", "rt", encoding="utf-8") as lines:
        for raw in lines:
            sample = json.loads(raw)
            key = (sample["task"], sample["doc_id"])
            if waiting and key != (waiting[0]["task"], waiting[0]["doc_id"]):
                yield waiting
                waiting = []
            waiting.append(sample)
    if waiting:
        yield waiting


def _lengths(choice: str) -> list[int]:
    return [len(choice), len(choice.encode())]


def _answer(answer: Value, salt: str) -> Any:
    """A log-likelihood whole, as a list; of a generation what is not its text: its length, its
    log-probability, its smallest margin, why it ended."""
    if "text" not in answer:
        kept = ("loglikelihood", "is_greedy", "num_tokens")
        return [answer[key] for key in kept if key in answer]
    if isinstance(answer["tokens"], dict):  # the engine does not tell
        return {"text": hidden(salt, answer["text"]), "stop": answer["stop"]}
    return {
        "text": hidden(salt, answer["text"]),
        "tokens": len(answer["tokens"]),
        "logprob": canon.total(map(canon.number, answer["logprobs"])),
        "margin": min(map(canon.number, answer["margins"]), default=None),
        "stop": answer["stop"],
    }


def _hidden(value: Any, salt: str) -> Any:
    """What a filter found: its digests, as a short text would tell the right answer."""
    if isinstance(value, list):
        return [_hidden(item, salt) for item in value]
    return {"sha256": hidden(salt, str(value))}
