"""Checks a results folder that plain lm-eval wrote: results_<date>.json, and the samples if kept.

Each sample's score, the means, the errors and the groups are computed again. What such a folder
can't tell, the report says: no file names weights, and nothing connects the numbers with
answers.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evalkit.harness.samples import RunResults, Sample
from evalkit.inputs.types import LockedTask
from evalkit.judge.verify.checks import aggregates, completeness
from evalkit.judge.verify.checks.scores import Scores
from evalkit.record.reading.evidence import samples as sampled
from evalkit.record.reading.evidence.samples import Document, Samples
from evalkit.record.reading.findings import Check, Findings, Report, Status, difference, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, broken, checked, reason
from evalkit.record.reading.lm_eval import Completing, with_sizes
from evalkit.record.sections import GroupResult
from evalkit.record.types import PlainScores, PlainTask

MAX_RESULTS = 256 * MiB
MAX_TASK = 2048 * MiB  # of one task's samples, which are held in memory: lm-eval writes by filter
PICKED = "documents were picked one by one"
CAVEAT = "a plain lm-eval folder: which model answered, and whether it did, can't be known"
UNKNOWN = "the weights, the data's revision, the answers as they came, who ran it on what"


def results_in(path: Path) -> list[str]:
    """Return the relative names of lm-eval's results files in a folder or right below it."""
    paths = [*path.glob("results_*.json"), *path.glob("*/results_*.json")]
    return sorted(file.relative_to(path).as_posix() for file in paths)


def verify(root: Path, name: str, *, asked: bool) -> Report:
    """Check one results file and its samples. `asked` says that the reader asks for a signer or has
    a policy, which such a folder can't meet."""
    folder, findings = Folder(root), Findings("results")
    checks: list[Check] = []
    try:
        results: RunResults = folder.json(name, MAX_RESULTS)
        with_sizes(results)
        record = _record(results)
        version = shown(results.get("lm_eval_version"))
        detail = f"lm-eval {version}, {len(record['tasks']):,} leaf tasks"
        evidence = _Evidence(folder, name, results, record)
        for problem in _contradictions(record, results):
            findings.add(problem)
        checks = [findings.check(detail), *_groups(record, results), *_scoring(record, results)]
        checks += [*_counted(record, results, evidence.beside), *evidence.checks()]
    except BROKEN as error:
        findings.add(f"not lm-eval's results: {reason(error)}")
        checks.append(findings.check(""))
    checks.append(Check("unknown", Status.SKIP, UNKNOWN))
    if asked:
        why = "a plain lm-eval folder is signed by nobody and meets no policy"
        checks.append(Check("policy", Status.FAIL, why))
    caveats = [check.caveat for check in checks if check.caveat]
    return Report(checks, caveat="; ".join([CAVEAT, *caveats]))


def _record(results: RunResults) -> PlainScores:
    """Return the results in a record's form, as far as they go."""
    from evalkit.record import record as records  # numpy

    better, counts = results["higher_is_better"], results["n-samples"]
    tasks: dict[str, PlainTask] = {
        name: {
            "metrics": records.metrics(results["results"][name], better.get(name) or {}, {}),
            "n": counts[name]["effective"],
            "documents": counts[name]["original"],
        }
        for name in counts
    }
    groups: dict[str, GroupResult] = {}
    for name, children in results.get("group_subtasks", {}).items():
        if name not in tasks and children:
            entry = results["results"].get(name, {})
            groups[name] = {
                "alias": name,
                "version": None,
                "metrics": records.metrics(entry, better.get(name) or {}, {}),
                "n": entry.get("sample_len", 0),
                "subtasks": children,
            }
    return {"tasks": tasks, "groups": groups}


def _groups(record: PlainScores, results: RunResults) -> list[Check]:
    """Check for groups that lm-eval ran as a task, as it does for a group with an override."""
    findings = Findings("groups")
    locked: dict[str, list[str]] = {}
    for lock in completeness.locks():
        locked |= lock["groups"]
    for name in sorted(record["tasks"]):
        own = results["configs"].get(name, {}).get("task")
        if name in locked:
            findings.add(f"{shown(name)} is a group and was run as one task ({shown(own)})")
        elif own != name:
            findings.add(f"{shown(name)} is really the task {shown(own)}")
    for name in sorted(record["groups"].keys() & locked.keys()):
        members = set(map(str, record["groups"][name]["subtasks"]))
        findings.add(difference(members, set(locked[name]), f"members of {shown(name)}"))
    return [findings.check(f"{len(record['groups']):,} groups, none collapsed")]


def _contradictions(record: PlainScores, results: RunResults) -> Iterator[str]:
    """Yield where the results say a group's score, or which way up a metric is, in two ways."""
    for name, entry in results.get("groups", {}).items():
        own = {key: value for key, value in entry.items() if "," in key}
        if "group_subtasks" in results and name not in results["group_subtasks"]:
            yield f"{shown(name)} is a group without tasks"
        elif own != {key: results["results"].get(name, {}).get(key) for key in own}:
            yield f"{shown(name)} has other scores among the groups than among all results"
    for name in sorted(record["tasks"]):
        said = results["higher_is_better"].get(name) or {}
        for listed in results["configs"].get(name, {}).get("metric_list") or []:
            way, other = listed.get("higher_is_better"), said.get(listed.get("metric"))
            if isinstance(way, bool) and isinstance(other, bool) and way is not other:
                yield f"{shown(name)} {shown(listed['metric'])} is better in two directions"


def _scoring(record: PlainScores, results: RunResults) -> list[Check]:
    """Warn of tasks that are scored otherwise than in every lock of ours that has them."""
    unlike = []
    for name in sorted(record["tasks"]):
        config, metrics = results["configs"].get(name, {}), record["tasks"][name]["metrics"]
        locked = [lock["tasks"][name] for lock in completeness.locks() if name in lock["tasks"]]
        keys = {key.partition(",")[0]: metrics[key]["higher_is_better"] for key in metrics}
        if locked and not any(_is_scored_as(keys, config, each) for each in locked):
            unlike.append(name)
    if not unlike:
        return []
    detail = f"{len(unlike):,} tasks are scored otherwise than our locks say: {few(unlike)}"
    return [Check("scoring", Status.WARN, detail, _head(detail))]


def _head(detail: str) -> str:
    """Return what a detail says before it names tasks, which is for the last line."""
    return detail.partition(":")[0]


def _is_scored_as(
    ways: Mapping[str, bool | None], config: Mapping[str, Any], locked: LockedTask
) -> bool:
    """Say whether a lock and a task's results agree on its metrics, and which way up each is."""
    return all(
        ways[name] is entry["higher_is_better"]
        and (
            (how := aggregates.aggregation(config, name)) == entry["aggregation"]
            or not {how, entry["aggregation"]} & aggregates.KNOWN
        )
        for name, entry in locked["metrics"].items()
        if name in ways
    )


def _counted(record: PlainScores, results: RunResults, kept: set[str]) -> list[Check]:
    """Fail if n-samples leaves out a task with a score, a config or samples (`kept`)."""
    groups = {name for name, children in results.get("group_subtasks", {}).items() if children}
    scored = {
        name
        for name, entry in results["results"].items()
        if name not in groups and any("," in key for key in entry)
    }
    left = (scored | results["configs"].keys() | kept) - record["tasks"].keys()
    detail = f"{len(left):,} tasks that n-samples does not count: {few(left)}"
    return [Check("counted", Status.FAIL, detail)] if left else []


class _Evidence:
    """The samples of one results file, read once."""

    def __init__(self, folder: Folder, name: str, results: RunResults, record: PlainScores) -> None:
        self.folder, self.record, self.results = folder, record, results
        head, slash, tail = name.rpartition("/")
        self._head, self._date = head + slash, tail[len("results_") : -len(".json")]
        self.samples = Samples()
        chat, release = results.get("chat_template") is not None, results.get("lm_eval_version")
        self.scores = Scores(results["configs"], chat, release, other=True)
        limit = (results.get("config") or {}).get("limit")
        self.picked = {  # of a part that is no first part: by --samples, one by one
            leaf
            for leaf, task in record["tasks"].items()
            if limit is None and task["n"] < task["documents"]
        }
        self.kept = [leaf for leaf in sorted(record["tasks"]) if folder.holds(self._file(leaf))]

    @property
    def beside(self) -> set[str]:
        names, end = self.folder.walk()[0], f"_{self._date}.jsonl"
        start = f"{self._head}samples_"
        files = {n for n in names if n.startswith(start) and n.endswith(end)}
        return {name[len(start) : -len(end)] for name in files}

    def _file(self, leaf: str) -> str:
        return f"{self._head}samples_{leaf}_{self._date}.jsonl"

    def checks(self) -> list[Check]:
        ranges = partial(aggregates.ranges, self.record, self.samples, self.results.get("configs"))
        if not self.kept:
            why = "no samples were kept (--log_samples), so no number can be recomputed"
            return [Check("samples", Status.SKIP, why, why), *checked("ranges", ranges)]
        for document in self._documents():
            try:
                if document.leaf in self.picked:
                    leaf = self.samples.leaves[document.leaf]
                    leaf.next_id = max(leaf.next_id, document.doc_id)
                sampled.note(document, self.samples, None)
                self.scores.add(document)
            except BROKEN as error:
                self.samples.shape.add(f"{document.name}: {reason(error)}")
        try:
            self.scores.finish()
        except BROKEN as error:
            self.samples.shape.add(reason(error))
        made = aggregates.Aggregates(self.record, self.results["configs"], self.samples)
        return [
            *self._complete(),
            self.samples.shape.check(f"{self.samples.lines:,} samples, hashes equal"),
            *self.scores.checks(None),
            *made.check(),
            *checked("ranges", ranges),
        ]

    def _documents(self) -> Iterator[Document]:
        for leaf in self.kept:
            by_id: dict[int, list[Sample]] = {}
            completing = Completing(self.results, leaf)
            try:
                if self.folder.path(self._file(leaf)).stat().st_size > MAX_TASK:
                    raise broken(f"more than {MAX_TASK // MiB:,} MiB of samples")
                for number, raw in self.folder.lines(self._file(leaf)):
                    self.samples.lines += 1
                    where = f"{shown(leaf)} line {number:,}"
                    sample = sampled.parsed(raw, where, self.samples.shape, completing.complete)
                    if sample is not None:
                        by_id.setdefault(sample["doc_id"], []).append(sample)
            except BROKEN as error:
                self.samples.shape.add(f"{shown(leaf)}: {reason(error)}")
            for doc_id in sorted(by_id):
                yield Document(leaf, doc_id, by_id[doc_id][: sampled.MAX_FILTERS])

    def _complete(self) -> list[Check]:
        """Check the number of documents; warn of tasks of which only a part was asked."""
        order, tasks = self.samples.order, self.record["tasks"]
        if missing := set(tasks) - set(self.kept):
            order.add(f"{len(missing):,} tasks without samples: {few(missing)}")
        for leaf in self.kept:
            seen = self.samples.leaves[leaf].n
            order.add_unequal(f"{shown(leaf)}: samples", tasks[leaf]["n"], seen)
        checks = [
            order.check(f"{len(self.kept):,} tasks' samples are as many as their results say")
        ]
        partial_ones = {n for n, entry in tasks.items() if entry["n"] != entry["documents"]}
        if partial_ones:
            detail = f"{len(partial_ones):,} tasks are partial: {few(partial_ones)}"
            checks.append(Check("whole", Status.WARN, detail, _head(detail)))
        leaves = self.samples.leaves
        gaps = {n for n in self.picked if n in leaves and leaves[n].next_id != leaves[n].n}
        if gaps:
            detail = f"{PICKED} in {len(gaps):,} tasks: {few(gaps)}"
            checks.append(Check("whole", Status.WARN, detail, caveat=PICKED))
        return [*checks, *self._rows()]

    def _rows(self) -> list[Check]:
        """Check that the documents of whole tasks are the rows that the shipped locks pin."""
        known = {n: task for lock in completeness.locks() for n, task in lock["tasks"].items()}
        unlike, same = [], 0
        for leaf in sorted(known.keys() & set(self.kept)):
            seen = self.samples.leaves[leaf]
            if self.record["tasks"][leaf]["n"] != self.record["tasks"][leaf]["documents"]:
                continue
            if f"sha256:{seen.rows.hexdigest()}" == known[leaf]["rows"]:
                same += 1
            else:
                unlike.append(f"{shown(leaf)} ({seen.n:,} of {known[leaf]['documents']:,})")
        if unlike:
            detail = f"{len(unlike):,} tasks' documents are not those of our locks: {few(unlike)}"
            return [Check("rows", Status.WARN, detail, _head(detail))]
        return [Check("rows", Status.PASS, f"{same:,} tasks have our locks' rows")] if same else []
