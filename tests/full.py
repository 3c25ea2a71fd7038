"""A made-up record of core's full size: 31,767 documents of 86 leaf tasks, in the forms and about
the lengths of the real ones, every text ours and drawn at random.

For what has to hold at that size: how large and how fast a report is. No model answered it, it has
no plan and no journal, and `verify` calls it BROKEN, as it should.

    python -m tests.full FOLDER
"""

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.base import canon, statistics
from evalkit.inputs import suite as suites
from evalkit.record import record, sections
from evalkit.record.reading.evidence.samples import _hash, doc_hash

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = next((ROOT / "results/example").glob("*/record.json"))
WORDS = """the of and to in is that it was for on are as with his they at be this have from or had
by hot word but what some we can out other were all there when up use your how said an each she
which do their time if will way about many then them write would like so these her long make thing
see him two has look more day could go come did number sound no most people my over know water than
call first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name"""


def make(folder: Path, seed: int = 0) -> Path:
    """Write the record into `folder`; another seed gives other answers to the same questions."""
    folder.mkdir(parents=True)
    body = json.loads(EXAMPLE.read_text())
    lock = suites.read_lock(suites.FOLDER / "core.lock.yaml")
    values: dict[str, dict[str, list[float]]] = {}
    facts = record.write_samples(folder / "samples.jsonl.gz", _samples(lock, values, seed))
    body["model"]["reference"] = f"made-up/model-{seed}"
    body["execution"] = f"{seed:032x}"
    body["tasks"] = {name: _task(name, lock, values[name], facts) for name in lock.tasks}
    for name, task in body["tasks"].items():
        task["questions"] = canon.digest(facts.questions[name])
        task["prompts"] = canon.digest(facts.prompts[name])
    body["groups"] = {name: _group(name, lock, values) for name in lock.groups}
    suite = body["suite"]
    suite |= {"name": "core", "rows": {n: t["rows"] for n, t in lock.tasks.items()}}
    suite["shots"] = {n: t["shots"] for n, t in lock.tasks.items() if t["shots"]}
    suite["tasks"] = [{"task": n, "num_fewshot": None}
                      for n in ("mmlu", "hellaswag", "arc_challenge", "bbh")]  # fmt: skip
    suite["datasets"] = {n: {"revision": d["revision"]} for n, d in lock.datasets.items()}
    body["answers"] = dict.fromkeys(lock.tasks, f"sha256:{seed:064x}")
    body["health"] |= {"answers_not_found": facts.not_found, "cut_generations": 0}
    body["ids"]["answers"] = canon.digest(body["answers"])
    body["files"] = record.list_files(folder)
    record.write(folder, body)
    return folder


def _samples(
    lock: suites.Lock, values: dict[str, dict[str, list[float]]], seed: int
) -> Iterator[dict[str, Any]]:
    for name, task in sorted(lock.tasks.items()):
        rng, answering = random.Random(name), random.Random(f"{seed} {name}")
        skill = rng.uniform(-0.5, 2.5) + seed * rng.uniform(-0.3, 0.2)
        values[name] = {}
        shots = "\n\n".join(_text(rng, 90) for _ in range(3)) if name.startswith("bbh") else ""
        for doc_id in range(task["documents"]):
            doc = {"question": _text(rng, 45), "number": doc_id}
            kind = _chosen if not shots else _generated
            sample = {
                "task": name,
                "doc_id": doc_id,
                "doc": doc,
                **kind(rng, answering, doc, skill, shots),
            }
            prompt = sample["arguments"]["gen_args_0"]["arg_0"]
            sample["doc_hash"], sample["prompt_hash"] = doc_hash(doc), _hash(prompt)
            sample["target_hash"] = _hash(sample["target"])
            scores = sample.pop("scores")
            for metric, value in scores.items():
                values[name].setdefault(f"{metric},{sample['filter']}", []).append(value)
            yield sample | {"metrics": list(scores)} | scores


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randint(words // 2, words))).capitalize() + "."


def _chosen(
    rng: random.Random, answering: random.Random, doc: dict[str, Any], skill: float, _: str
) -> dict[str, Any]:
    likelihoods = [rng.gauss(-4, 1.5) + answering.gauss(0, 0.3) for _ in range(4)]
    gold = rng.randrange(4)
    likelihoods[gold] += skill
    options = [_text(rng, 12) for _ in range(4)]
    prompt = doc["question"] + "\n" + "\n".join(options) + "\nAnswer:"
    right = float(max(range(4), key=likelihoods.__getitem__) == gold)
    answers = [[str(value), str(value == max(likelihoods))] for value in likelihoods]
    return {
        "target": str(gold),
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": f" {o}"}
                      for i, o in enumerate(options)},
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "scores": {"acc": right, "acc_norm": right},
    }  # fmt: skip


def _generated(
    rng: random.Random, answering: random.Random, doc: dict[str, Any], skill: float, shots: str
) -> dict[str, Any]:
    target = rng.choice(["(A)", "(B)", "(C)"])
    right = answering.random() < 1 / (1 + math.exp(-skill))
    found = answering.random() < 0.97
    text = _text(answering, 120) + (
        f" So the answer is {target if right else '(D)'}." if found else ""
    )
    return {
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": f"{shots}\n\nQ: {doc['question']}\nA: Let's think",
                                     "arg_1": {"until": ["\n\n"], "max_gen_toks": 1024}}},
        "resps": [[text]],
        "filtered_resps": [target if right and found else "(D)" if found else "[invalid]"],
        "filter": "get-answer",
        "scores": {"exact_match": float(right and found)},
    }  # fmt: skip


def _metric(value: float, stderr: float, method: str) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "stderr_method": method, "higher_is_better": True}


def _task(name: str, lock: suites.Lock, values: dict[str, list[float]], facts: Any) -> Any:
    example = json.loads(EXAMPLE.read_text())["tasks"]["demo_endings"]
    locked = lock.tasks[name]
    count = locked["documents"]
    return example | {
        "alias": name,
        "output_type": "generate_until" if name.startswith("bbh") else "multiple_choice",
        "num_fewshot": 3 if name.startswith("bbh") else 0,
        "n": count, "n_expected": count, "documents": count,
        "metrics": {metric: _metric(statistics.mean(each), statistics.standard_error(each),
                                    sections.MEAN) for metric, each in values.items()},
        "dataset": example["dataset"] | {"repo": locked["dataset"], "config": locked["config"],
                                         "split": locked["split"], "rows": locked["rows"],
                                         "revision": lock.datasets[locked["dataset"]]["revision"]},
    }  # fmt: skip


def _group(name: str, lock: suites.Lock, values: dict[str, dict[str, list[float]]]) -> Any:
    def leaves(child: str) -> list[str]:
        return [leaf for c in lock.groups.get(child, []) for leaf in leaves(c)] or [child]

    members = leaves(name)
    metric = "exact_match,get-answer" if name == "bbh" else "acc,none"
    each = [values[leaf][metric] for leaf in members]
    sizes = [len(scores) for scores in each]
    errors = [statistics.standard_error(scores) for scores in each]
    mean = statistics.weighted_mean([statistics.mean(scores) for scores in each], sizes)
    stderr = statistics.pooled_standard_error(errors, sizes)
    return {"alias": name, "version": "1", "subtasks": lock.groups[name], "n": sum(sizes),
            "metrics": {metric: _metric(mean, stderr, sections.POOLED)}}  # fmt: skip


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
