"""Forgeries of the small run that agree with themselves from end to end, as their author would
write them: what was asked, or how it was scored, is not what the suite's lock says."""

import copy
import math
from collections.abc import Callable
from typing import Any

import runs
from runs import Run

from evalkit.plan import store

Value = dict[str, Any]


def told() -> Run:
    """The right answer in every prompt."""

    class Told(Run):
        def prompts(self, leaf: str, doc: Value) -> list[tuple[Any, ...]]:
            answer = f"(It is {self.target(leaf, doc)}.) "
            return [(answer + first, *rest) for first, *rest in super().prompts(leaf, doc)]

    return _locked_honestly(Told())


def _locked_honestly(run: Run) -> Run:
    """A run whose lock is that of an honest one."""
    honest = Run()
    run.lock, run.locked, run.hashes = honest.lock, honest.locked, honest.hashes
    return run


def renamed_aggregation() -> Run:
    """A generation's mean of nothing, called a perplexity, is 1."""
    run, leaf = Run(answer=_never_right), "bbh_cot_fewshot_navigate"
    run.configs[leaf]["metric_list"][0]["aggregation"] = "perplexity"
    value = math.exp(-0.0)
    run.results["results"][leaf] |= {"exact_match,get-answer": value,
                                     "exact_match_stderr,get-answer": "N/A"}  # fmt: skip
    run.record["tasks"][leaf]["metrics"]["exact_match,get-answer"] |= {
        "value": value, "stderr": None, "stderr_method": None,
    }  # fmt: skip
    return run


def _never_right(part: str, answer: Value) -> Value:
    return answer | {"text": "so the answer is No."} if "text" in answer else answer


def other_targets() -> Run:
    """The right answers are those that were given, by a template in the config."""
    run, leaf = Run(), "mmlu_anatomy"
    run.configs[leaf]["doc_to_target"] = "{{answer}}"
    mine = [sample for sample in run.samples if sample["task"] == leaf]
    for sample in mine:
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        sample["target"] = str(likelihoods.index(max(likelihoods)))
        sample["target_hash"], sample["acc"] = runs.sha256(sample["target"]), 1.0
    questions = [[s["doc_id"], s["doc_hash"], s["target_hash"]] for s in mine]
    run.record["tasks"][leaf]["questions"] = runs.digest(questions)
    run.aggregate()
    return run


def plain_mean() -> Run:
    """A group's score without its tasks' sizes."""
    run = Run()
    children = run.groups["science"]
    entries = [run.record["tasks"][leaf]["metrics"]["acc,none"] for leaf in children]
    value = sum(entry["value"] for entry in entries) / len(entries)
    error = math.sqrt(sum(entry["stderr"] ** 2 for entry in entries)) / len(entries)
    for place in ("results", "groups"):
        run.results[place]["science"] |= {"acc,none": value, "acc_stderr,none": error}
    run.record["groups"]["science"]["metrics"]["acc,none"] |= {
        "value": value, "stderr": error, "stderr_method": "root of summed squares / number of leaf"
        " tasks",
    }  # fmt: skip
    return run


def more_shots() -> Run:
    """A number of shots that nobody gave."""
    run, leaf = Run(), "mmlu_anatomy"
    run.configs[leaf]["num_fewshot"] = run.results["n-shot"][leaf] = 5
    run.record["tasks"][leaf]["num_fewshot"] = 5
    return run


def other_way_up() -> Run:
    """A metric of which less is said to be better."""
    run, leaf = Run(), "arc_challenge"
    run.configs[leaf]["metric_list"][0]["higher_is_better"] = False
    run.results["higher_is_better"][leaf]["acc"] = False
    run.record["tasks"][leaf]["metrics"]["acc,none"]["higher_is_better"] = False
    group = run.record["groups"]["science"]["metrics"]["acc,none"]  # whose tasks differ now
    group["higher_is_better"] = run.results["higher_is_better"]["science"]["acc"] = None
    return run


def other_version() -> Run:
    """Another version of a task."""
    run, leaf = Run(), "arc_challenge"
    run.configs[leaf]["metadata"]["version"] = run.results["versions"][leaf] = 2.0
    run.record["tasks"][leaf]["version"] = 2.0
    return run


def best_documents() -> Run:
    """The last documents of each task instead of the first, renumbered."""
    kept = {leaf: runs.DOCUMENTS[leaf] for leaf in runs.DOCUMENTS}
    runs.DOCUMENTS |= {leaf: documents[::-1] for leaf, documents in kept.items()}
    try:
        run = Run(limit=1)
    finally:
        runs.DOCUMENTS |= kept
    honest = Run(limit=1)
    run.lock, run.locked, run.hashes = honest.lock, honest.locked, honest.hashes
    for leaf, task in run.lock["tasks"].items():
        run.record["tasks"][leaf]["dataset"]["rows"] = run.suite["rows"][leaf] = task["rows"]
    return identified(run)


def identified(run: Run) -> Run:
    """Every id that follows from a changed suite, its single rows or plan."""
    run.lock["rows_file"] = f"sha256:{runs.sha256(run.rows())}"
    run.record["ids"]["suite"] = run.plan["ids"]["suite"] = run.suite_id()
    run.plan["ids"]["plan"] = run.record["ids"]["plan"] = store.plan_id(run.plan)
    run.record["ids"]["run"] = runs.run_id(run.record)
    run.lines = [run.line(batch) for batch in run.plan["batches"]]
    return run


def other_filter() -> Run:
    """An answer found by another pattern."""
    run, leaf = Run(), "bbh_cot_fewshot_navigate"
    steps = run.configs[leaf]["filter_list"][0]["filter"]
    run.configs[leaf]["filter_list"][0]["filter"] = [*copy.deepcopy(steps)]
    run.configs[leaf]["filter_list"][0]["filter"][0]["regex_pattern"] = "(.*)"
    for sample in run.samples:
        if sample["task"] == leaf:
            sample["filtered_resps"], sample["exact_match"] = [sample["target"]], 1.0
    run.aggregate()
    return run


LOCKED: dict[str, Callable[[], Run]] = {
    "the right answer in every prompt": told,
    "an aggregation renamed": renamed_aggregation,
    "right answers made those that were given, by a template": other_targets,
    "a group's score without its tasks' sizes": plain_mean,
    "more shots claimed than given": more_shots,
    "less called better": other_way_up,
    "another version of a task claimed": other_version,
    "the last documents, renumbered as the first": best_documents,
    "answers found by another filter": other_filter,
}


# Contradictions that need neither a model nor a lock


def answered(change: Callable[[str, Value], Value]) -> Run:
    """Other answers, with all that follows from them."""
    return Run(answer=change)


def _texts(**changed: Any) -> Callable[[str, Value], Value]:
    return lambda _, answer: answer | changed if "text" in answer else answer


def _likelihoods(**changed: Any) -> Callable[[str, Value], Value]:
    def change(part: str, answer: Value) -> Value:
        return answer | changed if part.startswith("arc_challenge/0/0") else answer

    return change


def _ended(part: str, answer: Value) -> Value:
    """Texts that were cut said to have ended by themselves."""
    if "text" not in answer:
        return answer
    return answer | {"stop": "eos", "tokens": [5, 6, 5], "logprobs": [-1.0] * 3,
                     "margins": [1.0] * 3}  # fmt: skip


def planned_otherwise(**settings: Any) -> Run:
    """A plan that generates with other settings than the samples say."""
    kept = dict(runs.SETTINGS)
    runs.SETTINGS |= settings
    try:
        return Run()
    finally:
        runs.SETTINGS.clear()
        runs.SETTINGS |= kept


def recorded(change: Callable[[Value], Any]) -> Run:
    """A changed record, with the ids that follow from it."""
    run = Run()
    change(run.record)
    return identified(run)


def short_context() -> Run:
    """A plan for a context that its rows don't fit into."""
    run = Run()
    run.plan["max_length"] = 1
    return identified(run)


def segments(*spans: tuple[str, str, str, int]) -> Callable[[Value], None]:
    """Segments by name, start, stop and the batches that they claim."""

    def change(record: Value) -> None:
        record["segments"] = [
            runs.segment(name, batches) | {"started": started, "stopped": stopped}
            for name, started, stopped, batches in spans
        ]

    return change


def _carried_from_itself() -> Run:
    run = recorded(lambda r: r.update(carried={"run": runs.digest(""), "batches": 8}))
    run.record["carried"]["run"] = run.record["ids"]["run"]
    return run


def _made_up_score() -> Run:
    run = Run()
    run.results["leaderboard"] = {"acc": 1.0}
    return run


def _made_up_group() -> Run:
    run = Run()
    run.results["groups"]["leaderboard"] = {"alias": "leaderboard", "acc,none": 1.0}
    return run


DAY = "2026-01-02T03"
CONTRADICTIONS: dict[str, Callable[[], Run]] = {
    "a plan that samples, samples that are greedy": lambda: planned_otherwise(
        do_sample=True, temperature=1.0, seed=1234
    ),
    "a plan with another limit of length": lambda: planned_otherwise(max_gen_toks=48),
    "texts longer than their limit": lambda: answered(
        _texts(tokens=[5] * 500, logprobs=[-1.0] * 500, margins=[1.0] * 500)
    ),
    "a text without a token": lambda: answered(_texts(tokens=[], logprobs=[], margins=[])),
    "a text cut at the limit that is shorter": lambda: answered(_texts(stop="length")),
    "an end-of-text within other texts": lambda: answered(_ended),
    "a text behind its own stop string": lambda: answered(_texts(text="the answer is Yes. Q: no")),
    "a token that was not the likeliest": lambda: answered(_texts(margins=[0.25, -1.5])),
    "a token likelier than can be": lambda: answered(_texts(logprobs=[-0.75, 0.5])),
    "two tokens at one place likelier than can be": lambda: answered(_texts(logprobs=[-0.1, -1.0])),
    "a log-likelihood above 0": lambda: answered(_likelihoods(loglikelihood=2.5)),
    "a negative number of tokens": lambda: answered(_likelihoods(num_tokens=-1)),
    "another number of tokens than planned": lambda: answered(_likelihoods(num_tokens=3)),
    "a sure answer that was not greedy": lambda: answered(
        _likelihoods(loglikelihood=-0.01, is_greedy=False)
    ),
    "choices likelier than can be": lambda: answered(
        lambda part, answer: answer | {"loglikelihood": -0.4, "is_greedy": True}
        if part.startswith("arc") else answer
    ),
    "a context of one token": short_context,
    "an unknown profile": lambda: recorded(lambda r: r["numerics"].update(profile="exact")),
    "an unknown dtype": lambda: recorded(lambda r: r["numerics"].update(dtype="int3")),
    "a segment that claims more batches": lambda: recorded(
        segments((runs.SEGMENT, f"{DAY}:04:05Z", f"{DAY}:04:06Z", 9))
    ),
    "a preferred segment that is none of the run's": lambda: recorded(
        lambda r: r.update(preferred={"segment": "nobody", "batches": 0})
    ),
    "answers carried over from the run itself": _carried_from_itself,
    "more answers carried over than there are": lambda: recorded(
        lambda r: r.update(carried={"run": runs.digest("another"), "batches": 999})
    ),
    "precise products in TF32": lambda: recorded(
        lambda r: r["numerics"].update(profile="precise", tf32=True)
    ),
    "a likeliest token that is hardly likely": lambda: answered(_texts(logprobs=[-30.0, -1.0])),
    "a token far ahead of others, and a rest that is likelier": lambda: answered(
        _texts(logprobs=[-3.0, -1.0], margins=[25.0, 1.5])
    ),
    "likeliest tokens of a continuation that can't be": lambda: answered(
        _likelihoods(loglikelihood=-70.0, is_greedy=True)
    ),
    "a group in lm-eval's results that was not asked": _made_up_group,
    "a segment named after another time": lambda: recorded(
        segments((runs.SEGMENT, f"{DAY}:14:05Z", f"{DAY}:14:06Z", 8))
    ),
    "a segment of month 99": lambda: recorded(
        segments((runs.SEGMENT, "2026-99-02T03:04:05Z", f"{DAY}:04:06Z", 8))
    ),
    "packages unlike versions": lambda: recorded(
        lambda r: r["environment"]["packages"].update(torch="2.0")
    ),
    "a standard error without its method": lambda: recorded(
        lambda r: r["tasks"]["arc_challenge"]["metrics"]["acc,none"].update(stderr_method=None)
    ),
    "another rate than tokens by seconds": lambda: recorded(
        lambda r: r["phases"]["execute"].update(tokens_per_second=1e6)
    ),
    "a chat template that no model has": lambda: recorded(
        lambda r: r["suite"].update(apply_chat_template=True)
    ),
    "another limit in the command": lambda: recorded(
        lambda r: r["command"]["config"].update(limit=3)
    ),
    "42.0 for 42 in an identity": lambda: recorded(
        lambda r: r["suite"]["seeds"].update(torch=42.0)
    ),
    "a score that lm-eval does not write": _made_up_score,
    "another model in lm-eval's results": lambda: recorded(
        lambda r: r["model"].update(reference="made-up/other")
    ),
}  # fmt: skip
