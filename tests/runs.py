"""A small finished run, made in plain Python: what a record looks like when nothing is wrong.

Two multiple-choice leaf tasks in a group, a generating one with a filter, and one that scores whole
texts in windows. Names and configs are lm-eval's own (all but the last), so that it can score the
samples again; questions (`questions`), answers and model are made up. Canonical JSON, means, the
plan and the lock's rows are written by evalkit's own code; what is asked, answered (here), scored
(`scored`), locked (`locked`) and recorded (`recorded`) is made here.
"""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import locked
import recorded
import scored
import yaml
from batches import array
from questions import CONFIGS, DOCUMENTS, GROUPS, LETTERS, SEEDS, doc_hash, sha256
from recorded import POLICY, SEGMENT, run_id, segment

from evalkit.base import canon
from evalkit.base.canon import digest
from evalkit.plan.requests.request import Settings
from evalkit.plan.store import Batch, BatchTarget, Builder, Policy, Row, make_batch, make_trunk
from evalkit.plan.types import Kind
from evalkit.record import journal

Value = dict[str, Any]
Answer = Callable[[str, Value], Value]

__all__ = ["DOCUMENTS", "POLICY", "SEGMENT", "digest", "doc_hash", "run_id", "segment", "sha256"]

KINDS: dict[str, Kind] = {
    "multiple_choice": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
    "generate_until": "generate_until",
}
SETTINGS: Value = {
    "until": ["Q"],
    "max_gen_toks": 32,
    "do_sample": False,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "seed": 0,
}
TRUNK = [5, 6, 7, 8]  # of the first leaf task, whose rows are trees


class Run:
    """A run's parts, in memory, derived one from the other; `write` seals and writes them.

    `answer` may change each raw answer before the rest is derived from it: the run stays
    consistent.
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        answer: Answer = lambda _, answer: answer,
        leave_out: tuple[str, ...] = (),
        name: str = "tiny",
        segment: str = SEGMENT,
    ) -> None:
        self.limit, self.name, self.segment = limit, name, segment
        kept = {leaf: config for leaf, config in CONFIGS.items() if leaf not in leave_out}
        self.configs = copy.deepcopy(kept)
        groups = {n: [c for c in children if c in self.configs] for n, children in GROUPS.items()}
        self.groups = {name: children for name, children in groups.items() if children}
        self.documents = {leaf: DOCUMENTS[leaf][:limit] for leaf in self.configs}
        self.parts = {leaf: self._parts(leaf) for leaf in self.configs}
        self.answers = {
            part: answer(part, raw)
            for leaf in self.configs
            for part, raw in zip(
                (p for document in self.parts[leaf] for p in document), self._raw(leaf), strict=True
            )
        }
        self.hashes = {leaf: list(map(doc_hash, DOCUMENTS[leaf])) for leaf in self.configs}
        self.locked = {leaf: locked.asked(self, leaf) for leaf in self.configs}
        self.lock = locked.lock(self)
        self.samples = [
            sample for leaf in sorted(self.configs) for sample in scored.samples(self, leaf)
        ]
        self.results = scored.results(self)
        self.suite = self._suite()
        self.plan, self.tokens = self._plan()
        self.record = recorded.record(self)
        self.lines = [self.line(batch) for batch in self.plan["batches"]]
        self.extra: dict[str, bytes] = {"events/a.jsonl": b'{"event":"start"}\n'}

    def aggregate(self) -> None:
        """Make every aggregate anew from the samples, as whoever changed one would."""
        rebuilt = scored.results(self)
        self.results |= {key: rebuilt[key] for key in ("results", "groups")}
        for leaf in self.configs:
            self.record["tasks"][leaf]["metrics"] = scored.record_metrics(
                self.results["results"][leaf]
            )
        for name in self.groups:
            metrics = scored.record_metrics(self.results["groups"][name], scored.POOLED)
            self.record["groups"][name]["metrics"] = metrics

    # what is asked

    def prompts(self, leaf: str, doc: Value) -> list[tuple[Any, ...]]:
        """Each request's arguments, as lm-eval makes them."""
        config = self.configs[leaf]
        if leaf == "mmlu_anatomy":
            letters = "".join(f"\n{a}. {c}" for a, c in zip(LETTERS, doc["choices"], strict=True))
            context = f"{config['description']}{doc['question']}{letters}\nAnswer:"
            return [(context, f" {letter}") for letter in LETTERS]
        if leaf == "arc_challenge":
            context = f"Question: {doc['question']}\nAnswer:"
            return [(context, f" {text}") for text in doc["choices"]["text"]]
        if leaf == "whole_texts":
            return [(doc["text"],)]
        context = f"{config['description']}Q: {doc['input']}\nA: Let's think step by step.\n"
        return [(context, config["generation_kwargs"])]

    def target(self, leaf: str, doc: Value) -> str:
        """The sample's target, a string."""
        if leaf == "mmlu_anatomy":
            return str(doc["answer"])
        if leaf == "arc_challenge":
            return str(doc["choices"]["label"].index(doc["answerKey"]))
        return str(doc["target"] if "target" in doc else doc["text"])

    def _parts(self, leaf: str) -> list[list[str]]:
        """Each document's part ids; a whole text has two windows."""
        windows = ["#0", "#1"] if leaf == "whole_texts" else [""]
        return [
            [
                f"{leaf}/{number}/{index}/0{window}"
                for index in range(len(self.prompts(leaf, doc)))
                for window in windows
            ]
            for number, doc in enumerate(self.documents[leaf])
        ]

    def _raw(self, leaf: str) -> list[Value]:
        """What a made-up model answers."""
        found: list[Value] = []
        for number, document in enumerate(self.parts[leaf]):
            values = [-1.0 - 2.0 * ((7 * number + 3 * i) % 5) - i / 7 for i in range(len(document))]
            for index, part in enumerate(document):
                value = values[index]
                if leaf == "bbh_cot_fewshot_navigate":
                    text = "so the answer is " + ("Yes." if number else "No.")
                    numbers = [-0.75, value]
                    found.append(
                        {
                            "text": text,
                            "tokens": [5, 6],
                            "logprobs": numbers,
                            "margins": [0.25, 1.5],
                            "stop": "stop_string",
                        }
                    )
                elif "#" in part:
                    found.append({"loglikelihood": 10 * value, "num_tokens": 1})
                else:
                    greedy = value == max(values) and number % 3 == 0
                    found.append({"loglikelihood": value, "is_greedy": greedy, "num_tokens": 1})
        return found

    def requests(self, leaf: str) -> dict[str, Value]:
        """Answers by request id: windows summed in order."""
        found: dict[str, Value] = {}
        for part in (part for document in self.parts[leaf] for part in document):
            request, _, window = part.partition("#")
            answer = self.answers[part]
            if window in ("", "0"):
                found[request] = answer
            else:
                found[request] = {
                    key: float(found[request][key]) + float(answer[key])
                    if key == "loglikelihood"
                    else found[request][key] + answer[key]
                    for key in answer
                }
        return found

    # evalkit's side

    def rows(self) -> str:
        """lock.rows."""
        return locked.rows_file(self)

    def _suite(self) -> Value:
        grouped = {leaf for children in self.groups.values() for leaf in children}
        alone = [leaf for leaf in self.configs if leaf not in grouped]
        return {
            "name": self.name,
            "tasks": [{"task": name, "num_fewshot": None} for name in [*self.groups, *alone]],
            "limit": self.limit,
            "partial": self.limit is not None,
            "apply_chat_template": False,
            "fewshot_as_multiturn": False,
            "system_instruction": None,
            "gen_kwargs": {},
            "seeds": dict(SEEDS),
            "task_files": {},
            "datasets": {
                name: {"revision": entry["revision"]}
                for name, entry in self.lock["datasets"].items()
            },
            "rows": {leaf: entry["rows"] for leaf, entry in self.lock["tasks"].items()},
            "scorers": {},
            "shots": {
                leaf: copy.deepcopy(entry["shots"])
                for leaf, entry in self.lock["tasks"].items()
                if entry["shots"] is not None
            },
        }

    def suite_id(self) -> str:
        """What is asked."""
        return digest({k: v for k, v in self.suite.items() if k not in ("name", "partial")})

    def _plan(self) -> tuple[Value, bytes]:
        builder = Builder(Policy(**POLICY), level="tree")
        for leaf in self.configs:
            for first in range(0, len(self.parts[leaf]), POLICY["max_rows"]):
                builder.write(self._batch(leaf, self.parts[leaf][first:][: POLICY["max_rows"]]))
        tokenizer = {"tokenizer.json": sha256("a tokenizer")}
        body: Any = builder.body(suite_id=self.suite_id(), tokenizer=tokenizer, max_length=128)
        return body, b"".join(builder.blocks)

    def _batch(self, leaf: str, documents: list[list[str]]) -> Batch:
        """A batch of one row a document, its token ids made up."""
        kind = KINDS[self.configs[leaf]["output_type"]]
        settings = Settings.from_json(SETTINGS) if kind == "generate_until" else None
        trunk = make_trunk(None, array(TRUNK)) if leaf == "mmlu_anatomy" else None
        # with a trunk, the second branch hangs on token 0
        branches = ((0, 1), (-1, 0)) if trunk else ((0,), (-1,))
        rows = [Row(array([2 + i] * (3 + i)), *branches) for i in range(len(documents))]
        start = 1 + (trunk.length if trunk else 0)
        targets = [
            BatchTarget(row, 2 + row, 3 + row, -1, part)
            if settings
            else BatchTarget(row, 1, start, last_token(part), part)
            for row, document in enumerate(documents)
            for part in document
        ]
        return make_batch(leaf, kind, settings, trunk, rows, targets, Policy(**POLICY))

    def line(self, batch: Value) -> Value:
        """A batch's journal line, sealed."""
        answers = {}
        for target in batch["targets"]:
            part = f"{batch['task']}/{target[4]}"
            answers[part] = self.answers[part]
        return seal(
            {
                "schema": "evalkit/journal/1",
                "run": self.record["ids"]["run"],
                "batch": batch["id"],
                "segment": self.segment,
                "answers": answers,
            }
        )

    def answer_digests(self) -> dict[str, str]:
        """Each leaf task's answers digest."""
        return {
            leaf: digest(sorted(map(list, self.requests(leaf).items()))) for leaf in self.configs
        }

    def write(self, folder: Path) -> Path:
        """Write every file, listed in record.json with its digest."""
        lines = "".join(f"{canon.dumps(line)}\n" for line in self.lines)
        samples = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in self.samples)
        files = {
            "plan.json": canon.dumps(self.plan).encode(),
            "plan.tokens": self.tokens,
            f"journal/{self.segment}.jsonl": lines.encode(),
            "samples.jsonl.gz": gzip.compress(samples.encode(), mtime=0),
            "results.json": json.dumps(self.results, indent=2, ensure_ascii=False).encode(),
            "lock.yaml": yaml.safe_dump(self.lock, sort_keys=False).encode(),
            "lock.rows": self.rows().encode(),
            **self.extra,
        }
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.record["files"] = {n: {"size": len(d), "sha256": sha256(d)} for n, d in files.items()}
        write_record(folder, self.record)
        return folder


def last_token(part: str) -> int:
    """The id of the token that a part scores: another one for each choice."""
    return 7 + int(part.split("/")[2])


def write_record(folder: Path, record: Value) -> None:
    """Write record.json as evalkit does."""
    (folder / "record.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_record(folder: Path) -> Value:
    """Read record.json."""
    record: Value = json.loads((folder / "record.json").read_text())
    return record


def seal(line: Value) -> Value:
    """A journal line with its checksum."""
    return line | {"sha256": journal.checksum(line)}
