"""Edits of a finished run whose author has made everything else follow from them: not only digests
and ids, but every other field that says the same.

What is left is what no other field speaks against. It is either caught, or inherent: the author's
word, which `INHERENT` names with the reason, and only an audit, a reproduction or a signature
speaks to. Anything else is missed.
"""

import copy
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import runs
from forgeries import identified
from runs import Run
from tamper import label
from verifying import changed, scalars

Value = dict[str, Any]
Edit = tuple[str, Callable[[], Run]]  # what is changed, and the run that results
WORD = "where, when and on what it ran is its author's word"
MODEL = "only an audit on the model or a reproduction sees it"
TOKENS = "which tokens a text is takes the tokenizer: `verify --deep --model` plans again"
HARNESS = "where lm-eval is installed, it scores the samples again and sees it"
INHERENT = {
    "record.json: code.commit": WORD,
    "record.json: code.dirty": WORD,
    "record.json: command.argv": WORD,
    "record.json: created": WORD,
    "record.json: execution": "random, it says nothing",
    "record.json: environment.cpu": WORD,
    "record.json: environment.cublas": WORD,
    "record.json: environment.cuda": WORD,
    "record.json: environment.cudnn": WORD,
    "record.json: environment.driver": WORD,
    "record.json: environment.harness_intact": WORD,
    "record.json: environment.image": WORD,
    "record.json: environment.lock": WORD,
    "record.json: environment.os": WORD,
    "record.json: environment.packages": WORD,
    "record.json: environment.python": WORD,
    "record.json: environment.runtime": WORD,
    "record.json: environment.steering": WORD,
    "record.json: environment.versions": WORD,
    "record.json: model.config": MODEL,
    "record.json: model.dtype": MODEL,
    "record.json: model.files": MODEL,
    "record.json: model.parameters": MODEL,
    "record.json: model.reference": MODEL,
    "record.json: model.revision": MODEL,
    "record.json: model.trust_remote_code": MODEL,
    "record.json: numerics.attention": MODEL,
    "record.json: numerics.deterministic": MODEL,
    "record.json: numerics.tf32": MODEL,
    "record.json: numerics.threads": MODEL,
    "record.json: phases.execute": WORD,
    "record.json: segments": WORD,
    "plan.json: batches": TOKENS,
    "plan.json: double_bos": TOKENS,
    "plan.json: max_length": TOKENS,
    "plan.json: missing_bos": TOKENS,
    "plan.json: tokenizer": TOKENS,
    "samples.jsonl.gz: exact_match": HARNESS,
    "samples.jsonl.gz: filtered_resps": HARNESS,
    "plan.json: policy": "how rows were packed: any packing asks the same",
    "record.json: engine.policy": "how rows were packed: any packing asks the same",
    "journal: loglikelihood": MODEL,
    "journal: is_greedy": MODEL,
    "journal: tokens": MODEL,
    "journal: logprobs": MODEL,
    "journal: margins": MODEL,
    "journal: text": MODEL,
}


def edits() -> Iterator[Edit]:
    """Every scalar of the record, the plan, the samples and the answers by another of its kind,
    each with all that follows."""
    made = Run()
    for where in scalars(made.record):
        if where[0] not in ("ids", "answers", "files"):  # which follow from the others
            yield f"record.json: {label(where, 2)}", lambda where=where: _record(where)
    for where in scalars(made.plan):
        if where[0] not in ("ids", "tokens") and where[-1] not in ("id", "offset", "size"):
            yield f"plan.json: {label(where, 1)}", lambda where=where: _plan(where)
    for number, sample in enumerate(made.samples):
        for where in scalars(sample):
            if where[0] in ("doc_hash", "prompt_hash", "target_hash"):  # which follow
                continue
            what = f"samples.jsonl.gz: {label(where, 1)}"
            yield what, lambda number=number, where=where: _sample(number, where)
    for part, answer in made.answers.items():
        for where in scalars(answer):
            yield f"journal: {where[0]}", lambda part=part, where=where: _answer(part, where)


def replace(value: Any, where: tuple[Any, ...]) -> None:
    """Put another value of its kind at a place."""
    for step in where[:-1]:
        value = value[step]
    value[where[-1]] = changed(value[where[-1]])


def _answer(part: str, where: tuple[Any, ...]) -> Run:
    def change(asked: str, answer: Value) -> Value:
        if asked != part:
            return answer
        made: Value = {key: list(v) if isinstance(v, list) else v for key, v in answer.items()}
        replace(made, where)
        return made

    with suppress(ValueError, TypeError, KeyError):
        return Run(answer=change)
    return Run(leave_out=("whole_texts",))  # it can't be written down at all


def _sample(number: int, where: tuple[Any, ...]) -> Run:
    run = Run()
    run.samples = copy.deepcopy(run.samples)  # the documents are everybody's
    sample = run.samples[number]
    replace(sample, where)
    sample["doc_hash"] = runs.doc_hash(sample["doc"])
    sample["target_hash"] = runs.sha256(str(sample["target"]))
    with suppress(TypeError, AttributeError, KeyError):
        sample["prompt_hash"] = runs.sha256(sample["arguments"]["gen_args_0"]["arg_0"])
    for leaf, entry in run.record["tasks"].items():
        mine = [each for each in run.samples if each["task"] == leaf]
        questions = [[s["doc_id"], s["doc_hash"], s["target_hash"]] for s in mine]
        entry["questions"] = runs.digest(questions)
        entry["prompts"] = runs.digest([[s["doc_id"], s["prompt_hash"]] for s in mine])
    with suppress(TypeError, ValueError, KeyError, ZeroDivisionError):
        run.aggregate()
    return run


def _plan(where: tuple[Any, ...]) -> Run:
    run = Run()
    replace(run.plan, where)
    if where[0] in ("level", "policy"):
        run.record["engine"][where[0]] = run.plan[where[0]]
    if where[0] == "tokenizer":
        run.record["model"]["tokenizer"] = runs.digest(run.plan["tokenizer"])
    if where[0] in ("missing_bos", "double_bos"):
        run.record["health"][where[0]] = run.plan[where[0]]
    return _replanned(run)


def _replanned(run: Run) -> Run:
    """Batches' ids by what the plan says of them, and all that follows."""
    ids: list[str] = []
    for trunk in run.plan["trunks"]:
        data = zlib.decompress(run.tokens[trunk["offset"] : trunk["offset"] + trunk["size"]])
        above = ids[trunk["parent"]] if isinstance(trunk["parent"], int) and ids else None
        trunk["id"] = runs.digest({"parent": above, "tokens": f"sha256:{runs.sha256(data)}"})
        ids.append(trunk["id"])
    for batch in run.plan["batches"]:
        with suppress(LookupError, TypeError, zlib.error, struct.error):
            batch["id"] = runs.digest(_layout(run, batch, ids))
    with suppress(LookupError, TypeError):
        identified(run)
    return run


def _layout(run: Run, batch: Value, trunks: list[str]) -> Value:
    data = zlib.decompress(run.tokens[batch["offset"] : batch["offset"] + batch["size"]])
    settings = None if batch["settings"] is None else run.plan["settings"][batch["settings"]]
    policy, slots = run.plan["policy"], 0
    if settings is not None:
        longest = max(target[2] for target in batch["targets"])
        tokens = max(1, longest + settings["max_gen_toks"])
        slots = max(1, min(policy["max_slots"], policy["max_cache"] // tokens))
    return {
        "kind": batch["kind"],
        "settings": settings,
        "trunk": None if batch["trunk"] is None else trunks[batch["trunk"]],
        "tokens": f"sha256:{runs.sha256(data)}",
        "targets": [[*t[:4], f"{batch['task']}/{t[4]}"] for t in batch["targets"]],
        "slots": slots,
        "chunk": policy["chunk"],
    }


def _record(where: tuple[Any, ...]) -> Run:
    run = Run()
    replace(run.record, where)
    value: Any = run.record
    for step in where:
        value = value[step]
    with suppress(LookupError, TypeError):
        _mirrored(run, where, value)
    with suppress(LookupError, TypeError, AttributeError):
        return _replanned(run)
    return run


def _mirrored(run: Run, where: tuple[Any, ...], value: Any) -> None:
    """Say it wherever else it is said."""
    record, results = run.record, run.results
    if where[0] in ("tasks", "groups"):
        _scored(run, where, value)
    elif where[:2] in (("engine", "level"), ("engine", "policy")):
        run.plan[where[1]] = record["engine"][where[1]]
    elif where[:2] == ("model", "reference"):
        results["config"]["model_args"] = f"pretrained={value}"
    elif where[:2] == ("environment", "versions"):
        record["environment"]["packages"][where[2]] = value
    elif where[:2] == ("environment", "packages"):
        if where[2] in record["environment"]["versions"]:
            record["environment"]["versions"][where[2]] = value
        elif where[2] == "lm_eval":
            results["lm_eval_version"] = value
    elif where == ("suite", "limit"):
        results["config"]["limit"] = record["command"]["config"]["limit"] = value
    elif where[0] == "phases":
        phase = record["phases"][where[1]]
        phase["tokens_per_second"] = phase["tokens"] / max(phase["seconds"], 1e-9)


def _scored(run: Run, where: tuple[Any, ...], value: Any) -> None:
    results, name, key = run.results, where[1], where[2]
    places = [results["results"][name]]
    places += [results["groups"][name]] if where[0] == "groups" else []
    config = run.configs.get(name, {})
    if key == "metrics":
        metric, _, by = where[3].partition(",")
        if where[4] == "higher_is_better":
            results["higher_is_better"][name][metric] = value
            for entry in config.get("metric_list", []):
                if entry["metric"] == metric:
                    entry["higher_is_better"] = value
        said = {"value": where[3], "stderr": f"{metric}_stderr,{by}"}
        for place in places:
            if where[4] in said:
                place[said[where[4]]] = value
    elif key == "version":
        results["versions"][name] = value
        config.get("metadata", {})["version"] = value
    elif key == "alias":
        for place in places:
            place["alias"] = value
        config["task_alias"] = value
    elif key == "num_fewshot":
        results["n-shot"][name] = config["num_fewshot"] = value
    elif key == "output_type":
        config["output_type"] = value
    elif key in ("n", "n_expected", "documents"):
        counts = results["n-samples"].get(name, {})
        counts["original" if key == "documents" else "effective"] = value
        for place in places:
            place["sample_len"] = value if key == "n" else place["sample_len"]
