"""`pack`: a finished run as one .tar.gz that says the same whoever packs it, wherever.

A whole pack holds the record, every file that it lists, and what was signed: all that `verify`
reads. A public one is for data that may not be passed on: documents, prompts and texts are left
out, each document's behind one salted digest, and answers, margins and metrics stay. Nothing is
packed that is not as the record lists it, nor what this machine's paths or secrets stand in.
"""

import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.plan.store import Plan
from evalkit.record import archive, journal
from evalkit.record.answers import Answers
from evalkit.record.salted import HEAD, LINES, SCHEMA, hidden

DETACHED = ("attestation.json", "report.html")
SHORT = 16  # characters: what a filter makes of an answer stays if it is no longer, "(A)" say
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "CREDENTIAL")  # in a variable's name
_MIN_SECRET = 8

Value = dict[str, Any]


def pack(run: Path, *, public: bool = False) -> Path:
    """Write <run>.tar.gz beside a finished run's folder, or <run>.public.tar.gz; its path.

    EvalkitError (1) where a file is not as the record lists it, where a whole pack would pass on
    texts that the lock calls not redistributable, or where a secret or path of this machine stands
    in it.
    """
    record = _record(run)
    closed = {
        task["dataset"]["repo"]
        for task in record["tasks"].values()
        if not task["dataset"]["redistributable"]
    }
    if closed and not public:
        what = f"the texts of {', '.join(sorted(closed))} may not be passed on"
        fix = "give --public, which leaves all texts out"
        raise EvalkitError(what, where=str(run), fix=fix, code=Exit.FAILED)
    files = _public(run, record) if public else _whole(run, record)
    path = run.with_name(f"{run.name}{'.public' if public else ''}{archive.SUFFIX}")
    canon.write_atomic(path, archive.packed(run.name, _harmless(files)))
    return path


def _record(run: Path) -> Value:
    record = canon.read_json(run / "record.json")
    if problems := schema.check("record", record):
        raise EvalkitError(f"record.json is not a record: {problems[0]}", where=str(run))
    found: Value = record
    return found


def _whole(run: Path, record: Value) -> Iterator[tuple[str, bytes]]:
    """Every file of a run by name, in order, as the record lists it."""
    names = {"record.json", *record["files"], *(n for n in DETACHED if (run / n).is_file())}
    for name in sorted(names):
        yield name, _listed(run, name, record)


def _listed(run: Path, name: str, record: Value) -> bytes:
    try:
        data = (run / name).read_bytes()
    except OSError as error:
        what = f"can't read {name}: {error.strerror}"
        raise EvalkitError(what, where=str(run), code=Exit.FAILED) from None
    entry = record["files"].get(name)
    if entry and canon.digest_bytes(data) != f"sha256:{entry['sha256']}":
        what = f"{name} is not the file that record.json lists"
        raise EvalkitError(what, where=str(run), fix="run `evalkit verify` on it", code=Exit.FAILED)
    return data


def _harmless(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The files; EvalkitError where this machine's secrets, home or working folder stand in one."""
    secrets = {
        value.encode(): f"the value of {name}"
        for name, value in os.environ.items()
        if any(mark in name.upper() for mark in _SECRET) and len(value) >= _MIN_SECRET
    }
    for place in (Path.home(), Path.cwd()):
        if len(place.parts) > 2:  # not "/" or "/root", which may be a word
            secrets[os.fsencode(place)] = "a path of this machine"
    for name, data in files:
        text = gzip.decompress(data) if name.endswith(".gz") else data
        for secret, what in secrets.items():
            if secret in text:
                raise EvalkitError(f"{what} stands in {name}", fix="unset it or mend the run",
                                   code=Exit.FAILED)  # fmt: skip
        yield name, data


# the public form


def _public(run: Path, record: Value) -> Iterator[tuple[str, bytes]]:
    """The record, the lock, what was signed, and of the samples what is no text of anybody's."""
    for name in ("attestation.json", "lock.yaml", "record.json"):
        if (run / name).is_file():
            yield name, _listed(run, name, record)
    for name in record["files"]:
        _listed(run, name, record)  # what follows is made of files that are the record's
    results = canon.loads((run / "results.json").read_bytes())
    configs: dict[str, Value] = {leaf: results["configs"][leaf] for leaf in record["tasks"]}
    head = {"schema": SCHEMA, "tasks": {leaf: _told(config) for leaf, config in configs.items()}}
    yield HEAD, canon.dumps(head).encode() + b"\n"
    lines = io.BytesIO()
    with gzip.GzipFile(fileobj=lines, mode="wb", compresslevel=9, mtime=0, filename="") as zipped:
        for line in _lines(run, record, configs):
            zipped.write(canon.dumps(line).encode() + b"\n")
    yield LINES, lines.getvalue()


def _told(config: Value) -> Value:
    """What of a task's config says how its values become one, and whether lm-eval alone scores."""
    metrics = config.get("metric_list")
    own = config.get("process_results") is not None or config.get("filter_list") is not None
    return {
        "metric_list": metrics
        and [{"metric": m["metric"], "aggregation": m.get("aggregation")} for m in metrics],
        "plain": not own and config.get("repeats", 1) == 1,
    }


def _lines(run: Path, record: Value, configs: dict[str, Value]) -> Iterator[Value]:
    """A line a document, in the samples' order."""
    salt = canon.sha256_file(run / "record.json")
    plan = Plan(run)
    done = journal.of_record(run, record, plan.entries)
    answers, leaf = Answers(plan, done), ""
    said: dict[str, Value] = {}
    for samples in _documents(run):
        first = samples[0]
        if first["task"] != leaf:
            leaf = first["task"]
            said = answers.of(leaf)
        name = f"{leaf}/{first['doc_id']}"
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
            line["filtered"] = {s["filter"]: _short(s["filtered_resps"], salt) for s in samples}
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


def _short(value: Any, salt: str) -> Any:
    """What a filter found, where it is short; else its digest."""
    if isinstance(value, list):
        return [_short(item, salt) for item in value]
    text = str(value)
    return text if len(text) <= SHORT else {"sha256": hidden(salt, text)}
