"""Changes of a finished, signed run: one field, one file, or a whole story; and what catches each.

Every change comes in two forms. Alone, its file's digest is left as it was. Careful, its author has
put every digest right that needs no key, and what is left says who noticed: the signature, always;
without it, the classes of `CLASSES`, or nobody but somebody who has seen the run.
"""

import copy
import gzip
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runs
import yaml
from forgeries import identified
from runs import Run
from verifying import changed, scalars

from evalkit.judge.verify import Report, Status

JOURNAL = f"journal/{runs.SEGMENT}.jsonl"
# The failing checks and what they are called in the table, in the order in which they are named.
CLASSES = {
    "schema": {"record"},
    "digest": {"files", "ids", "run", "journal", "samples", "plan"},
    "recomputation": {
        *("answers", "scores", "rescoring", "configs", "aggregates", "results", "ranges"),
        *("health", "engine", "segments", "whole", "agreement", "grading"),
    },
    "shipped lock": {"completeness", "data", "rows", "shots", "asked", "scoring"},
}
NOBODY = "signature only"
SIGNATURE = "signature"


@dataclass(frozen=True)
class Change:
    """A change: what it is called in the table, and how it is made to a written run's folder."""

    what: str
    make: Callable[[Path], None]


def failed(report: Report) -> set[str]:
    """The names of the failing checks."""
    return {check.name for check in report.checks if check.status is Status.FAIL}


def caught(report: Report) -> str:
    """The first class of checks that noticed, the signature aside."""
    names = failed(report) - {SIGNATURE}
    unknown = names - set().union(*CLASSES.values())
    assert not unknown, f"no class for {unknown}"
    found = [name for name, checks in CLASSES.items() if checks & names]
    return found[0] if found else NOBODY


# fields

KEYED = {"tasks", "groups", "files", "answers", "datasets", "rows", "configs", "results",
         "packages", "n-samples", "versions", "n-shot", "higher_is_better", "metrics",
         "group_subtasks", "arguments", "doc", "truncated", "tokenizer", "task_files"}  # fmt: skip


def label(where: tuple[Any, ...], depth: int) -> str:
    """A field's place without what names a task, a file or a number: `tasks.*.metrics`."""
    parts: list[str] = []
    for step in where:
        keyed = parts and parts[-1] in KEYED
        parts.append("*" if keyed or isinstance(step, int) else str(step))
    kept = parts[:depth]
    while kept and kept[-1] == "*":
        kept.pop()
    return ".".join(kept)


def values(name: str, data: bytes) -> list[Any]:
    """The JSON or YAML values that a file holds: one, or one a line."""
    if name.endswith(".yaml"):
        return [yaml.safe_load(data)]
    data = gzip.decompress(data) if name.endswith(".gz") else data
    return [json.loads(text) for text in (data.splitlines() if _is_lines(name) else [data])]


def _is_lines(name: str) -> bool:
    """Whether a file holds a JSON value a line."""
    return "jsonl" in name or name == "lock.rows"


def data_of(name: str, found: list[Any]) -> bytes:
    """The file that holds these values."""
    if name.endswith(".yaml"):
        return yaml.safe_dump(found[0], sort_keys=False, allow_unicode=True).encode()
    if not _is_lines(name):
        return json.dumps(found[0], ensure_ascii=False).encode()
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in found).encode()
    return gzip.compress(text, mtime=0) if name.endswith(".gz") else text


def put(folder: Path, name: str, data: bytes, *, careful: bool) -> None:
    """Replace a file; `careful`: and its entry in record.json."""
    (folder / name).write_bytes(data)
    if careful:
        record = runs.read_record(folder)
        record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
        runs.write_record(folder, record)


def called(name: str, *, careful: bool) -> str:
    """What a file is called in the table: changed alone, they are all alike but for the record."""
    return name.partition("/")[0] if careful or name == "record.json" else "a listed file"


def fields(folder: Path, name: str, depth: int, *, careful: bool) -> Iterator[Change]:
    """Every scalar of a file by another value of its kind, one at a time."""
    found = values(name, (folder / name).read_bytes())
    kind = called(name, careful=careful)
    for number, value in enumerate(found):
        for where in scalars(value):
            made = copy.deepcopy(value)
            _replace(made, where)
            if careful and name == JOURNAL and where != ("sha256",):
                made = runs.seal(made)
            data = data_of(name, [*found[:number], made, *found[number + 1 :]])
            what = f"{kind}: {label(where, depth) or 'a field'}"
            yield Change(what, _putting(name, data, careful=careful and name != "record.json"))


def _replace(value: Any, where: tuple[Any, ...]) -> None:
    for step in where[:-1]:
        value = value[step]
    value[where[-1]] = changed(value[where[-1]])


def _putting(name: str, data: bytes, *, careful: bool) -> Callable[[Path], None]:
    return lambda folder: put(folder, name, data, careful=careful)


def blocks(folder: Path, *, careful: bool) -> Iterator[Change]:
    """A token of each trunk and batch by its neighbour, packed again in as many bytes or not."""
    plan = json.loads((folder / "plan.json").read_text())
    tokens = (folder / "plan.tokens").read_bytes()
    for entry in plan["trunks"] + plan["batches"]:
        start, end = entry["offset"], entry["offset"] + entry["size"]
        block = bytearray(zlib.decompress(tokens[start:end]))
        block[-4] ^= 1
        made = tokens[:start] + zlib.compress(bytes(block), 9) + tokens[end:]
        what = f"{called('plan.tokens', careful=careful)}: a token"
        yield Change(what, _putting("plan.tokens", made, careful=careful))


# files


def files(folder: Path, other: Path, *, careful: bool) -> Iterator[Change]:
    """Every operation on every file. `other`: another run's folder, whose files are taken."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for name in names:
        if name == "attestation.json" or (careful and name == "record.json"):
            continue
        kind = called(name, careful=careful)
        data = (folder / name).read_bytes()
        made = {"emptied": b"", "cut in half": data[: len(data) // 2], "a byte more": data + b"\n"}
        flipped = bytearray(data)
        flipped[len(data) // 3] ^= 4
        made["a bit flipped"] = bytes(flipped)
        theirs = other / name
        if theirs.is_file() and theirs.read_bytes() != data:
            made["another run's"] = theirs.read_bytes()
        if _is_lines(name) or name == "plan.tokens":
            made |= _lines(name, data)
        for what, bytes_ in made.items():
            yield Change(f"{kind}: {what}", _putting(name, bytes_, careful=careful))
        yield Change(f"{kind}: dropped", _dropping(name, careful=careful))
        if not careful:
            yield from _kinds(kind, name)
    yield Change("an extra file", _extra)
    yield Change("two files exchanged", _exchange(careful=careful))


def _lines(name: str, data: bytes) -> dict[str, bytes]:
    packed = name.endswith(".gz")
    lines = (gzip.decompress(data) if packed else data).splitlines(keepends=True)
    if len(lines) < 2 or name == "plan.tokens":
        return {}
    made = {
        "a line dropped": lines[1:],
        "a line doubled": [lines[0], *lines],
        "two lines exchanged": [lines[1], lines[0], *lines[2:]],
        "its lines reversed": lines[::-1],
    }
    joined = {what: b"".join(kept) for what, kept in made.items()}
    return {what: gzip.compress(text, mtime=0) if packed else text for what, text in joined.items()}


def _dropping(name: str, *, careful: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        if careful:
            record = runs.read_record(folder)
            del record["files"][name]
            runs.write_record(folder, record)

    return make


def _kinds(kind: str, name: str) -> Iterator[Change]:
    def link(folder: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    def directory(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    def pipe(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    for what, make in (("a link to it", link), ("a folder", directory), ("a pipe", pipe)):
        yield Change(f"{kind}: {what}", make)


def _extra(folder: Path) -> None:
    (folder / "journal" / "notes.txt").write_text("hello")


def _exchange(*, careful: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        one, two = (folder / name for name in ("plan.json", "results.json"))
        first, second = one.read_bytes(), two.read_bytes()
        put(folder, "plan.json", second, careful=careful)
        put(folder, "results.json", first, careful=careful)

    return make


# stories that are consistent in themselves


def raised(metric: str) -> Run:
    """A score, with its sample, every aggregate and every digest put right."""
    from verifying import set_score

    run = Run()
    set_score(run, metric, 1.0)
    return run


def another_model() -> Run:
    """Answers of another model, under this one's name and digests."""
    return Run(answer=lambda part, answer: _other(part, answer))


def _other(part: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "loglikelihood" not in answer:
        return answer
    shift = random.Random(part).uniform(-0.5, 0.5)
    return answer | {"loglikelihood": answer["loglikelihood"] + shift}


def improved() -> Run:
    """Wrong answers made right where they were given: in the journal, and all that follows."""

    def better(part: str, answer: dict[str, Any]) -> dict[str, Any]:
        if not part.startswith(("arc", "mmlu")):
            return answer
        right = part.split("/")[2] == "1"
        return answer | {"loglikelihood": -0.01 if right else -9.0, "is_greedy": right}

    return Run(answer=better)


def thinned() -> Run:
    """The documents that were answered wrong left out, with a lock to match."""
    run = Run(limit=3)
    run.record["suite"] |= {"limit": None, "partial": False}
    run.record["command"]["config"]["limit"] = run.results["config"]["limit"] = None
    for leaf, entry in run.lock["tasks"].items():
        entry["documents"] = run.record["tasks"][leaf]["documents"] = run.record["tasks"][leaf]["n"]
        run.results["n-samples"][leaf]["original"] = entry["documents"]
        mine = [sample for sample in run.samples if sample["task"] == leaf]
        rows = runs.sha256("".join(sample["doc_hash"] for sample in mine))
        entry["rows"] = run.record["tasks"][leaf]["dataset"]["rows"] = f"sha256:{rows}"
        run.record["suite"]["rows"][leaf] = f"sha256:{rows}"
        run.hashes[leaf] = [sample["doc_hash"] for sample in mine]
        prompts, targets = run.locked[leaf]
        run.locked[leaf] = (prompts[: len(mine)], targets[: len(mine)])
    identified(run)
    return run


def other_gold() -> Run:
    """The right answers edited to those that the model gave, with every hash and digest."""
    run = Run()
    leaf = "mmlu_anatomy"
    mine = [sample for sample in run.samples if sample["task"] == leaf]
    for sample in mine:
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        best = likelihoods.index(max(likelihoods))
        sample["doc"] = sample["doc"] | {"answer": best}
        sample["target"], sample["acc"] = str(best), 1.0
        sample["doc_hash"] = runs.doc_hash(sample["doc"])
        sample["target_hash"] = runs.sha256(sample["target"])
    questions = [[s["doc_id"], s["doc_hash"], s["target_hash"]] for s in mine]
    run.record["tasks"][leaf]["questions"] = runs.digest(questions)
    rows = f"sha256:{runs.sha256(''.join(s['doc_hash'] for s in mine))}"
    run.record["tasks"][leaf]["dataset"]["rows"] = run.record["suite"]["rows"][leaf] = rows
    run.lock["tasks"][leaf]["rows"] = rows
    run.hashes[leaf] = [sample["doc_hash"] for sample in mine]
    run.aggregate()
    identified(run)
    return run


def own_config() -> Run:
    """A task's config that says it scores by code of its own, so that nobody scores it again."""
    run = raised("acc")
    for config in run.configs.values():
        config["process_results"] = "<function process_results>"
    return run


def other_numerics() -> Run:
    """Computed otherwise than it says."""
    run = Run()
    run.record["numerics"]["dtype"] = "bfloat16"
    identified(run)
    return run


def copied(folder: Path, to: Path) -> Path:
    """A fresh copy of a written run."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to, symlinks=True)
    return to
