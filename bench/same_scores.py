"""The same model through lm-eval's own command and through evalkit, a seeded choice of documents.

    python bench/same_scores.py RUN MODEL [--documents 200] [--seed 0]

Draws documents evenly over a finished run's top-level tasks, lets lm-eval's `hf` model (float32,
batch size 4, as in the original command) answer them, and prints, for each task and metric, the
score of lm-eval and of the run's samples on these documents, how many samples differ, and the
largest difference of a log-likelihood.
"""

import argparse
import gzip
import json
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

Sample = dict[str, Any]


def recorded(run: Path) -> dict[tuple[str, int], Sample]:
    """The run's samples by (leaf task, doc_id); the first filter of each."""
    found: dict[tuple[str, int], Sample] = {}
    with gzip.open(run / "samples.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            sample = json.loads(line)
            found.setdefault((sample["task"], sample["doc_id"]), sample)
    return found


def top_level(record: dict[str, Any]) -> dict[str, str]:
    """The suite's member that each leaf task belongs to."""
    member_of: dict[str, str] = {}

    def visit(name: str, member: str) -> None:
        for child in record["groups"].get(name, {"subtasks": []})["subtasks"]:
            visit(child, member)
        if name in record["tasks"]:
            member_of[name] = member

    for item in record["suite"]["tasks"]:
        visit(item["task"], item["task"])
    return member_of


def draw(
    samples: dict[tuple[str, int], Sample], member_of: dict[str, str], documents: int, seed: int
) -> dict[str, list[int]]:
    """doc_ids by leaf task: an equal share of the documents from each top-level task."""
    by_member: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for leaf, doc_id in sorted(samples):
        by_member[member_of[leaf]].append((leaf, doc_id))
    source = random.Random(seed)
    chosen: dict[str, list[int]] = defaultdict(list)
    for member in sorted(by_member):
        share = min(documents // len(by_member), len(by_member[member]))
        for leaf, doc_id in sorted(source.sample(by_member[member], share)):
            chosen[leaf].append(doc_id)
    return dict(chosen)


def run_lm_eval(model: str, chosen: dict[str, list[int]]) -> dict[tuple[str, int], Sample]:
    """lm-eval's own samples of the chosen documents."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=4)
    results = lm_eval.simple_evaluate(lm, tasks=sorted(chosen), samples=chosen)
    return {
        (leaf, sample["doc_id"]): sample
        for leaf, samples in results["samples"].items()
        for sample in samples
    }


def apart(ours: Sample, theirs: Sample) -> tuple[bool, float]:
    """Whether two samples' answers or metrics differ, and by how much a log-likelihood does."""
    unlike = any(ours[metric] != theirs[metric] for metric in theirs["metrics"])
    worst = 0.0
    for one, other in zip(ours["resps"], theirs["resps"], strict=True):
        for mine, its in zip(one, other, strict=True):
            if isinstance(its, tuple):
                worst = max(worst, abs(float(mine[0]) - its[0]))
                unlike |= mine[1] != str(its[1])
            else:
                unlike |= mine != its
    return unlike, worst


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("model")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    member_of = top_level(json.loads((given.run / "record.json").read_text()))
    samples = recorded(given.run)
    chosen = draw(samples, member_of, given.documents, given.seed)
    theirs = run_lm_eval(given.model, chosen)
    scores: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    differ: dict[str, int] = defaultdict(int)
    worst: dict[str, float] = defaultdict(float)
    for key, sample in theirs.items():
        member = member_of[key[0]]
        unlike, distance = apart(samples[key], sample)
        differ[member] += unlike
        worst[member] = max(worst[member], distance)
        for metric in sample["metrics"]:
            scores[member, metric].append((sample[metric], samples[key][metric]))
    print("| task | metric | documents | lm-eval | evalkit | samples that differ | worst |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for (member, metric), pairs in sorted(scores.items()):
        lm_score, our_score = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        print(
            f"| {member} | {metric} | {len(pairs)} | {lm_score:.4f} | {our_score:.4f}"
            f" | {differ[member]} | {worst[member]:.1e} |"
        )


if __name__ == "__main__":
    main()
