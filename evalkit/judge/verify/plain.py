"""A results folder that plain lm-eval wrote: results_<date>.json, and its samples where it was told
to keep them.

Whatever can be recomputed is: each sample's score from its responses, every mean and error from the
samples, the groups from their tasks. What such a folder never says is said to be unknown: no file
in it names weights, and nothing holds its numbers against what a model answered.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from evalkit.harness.samples import Results, Sample
from evalkit.judge.verify.checks import aggregates, completeness
from evalkit.judge.verify.checks.scores import Scores
from evalkit.record.reading.evidence import samples as sampled
from evalkit.record.reading.evidence.samples import Document, Samples
from evalkit.record.reading.findings import Check, Findings, Report, Status, difference, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, broken, checked, reason
from evalkit.record.reading.lm_eval import Completing, with_sizes

MAX_RESULTS = 256 * MiB
MAX_TASK = 2048 * MiB  # of one task's samples, which are held in memory: lm-eval writes by filter
CAVEAT = "a plain lm-eval folder: which model answered, and whether it did, can't be known"
UNKNOWN = "the weights, the data's revision, the answers as they came, who ran it on what"

Value = dict[str, Any]


def results_in(path: Path) -> list[str]:
    """The results files of lm-eval's in a folder or right below it, by relative name."""
    found = [*path.glob("results_*.json"), *path.glob("*/results_*.json")]
    return sorted(file.relative_to(path).as_posix() for file in found)


def verify(root: Path, name: str, *, asked: bool) -> Report:
    """Check one results file and its samples. `asked`: for a signer or by a policy, which such a
    folder can't meet."""
    folder, findings = Folder(root), Findings("results")
    checks: list[Check] = []
    try:
        results = folder.json(name, MAX_RESULTS)
        with_sizes(results)
        record = _record(results)
        version = shown(results.get("lm_eval_version"))
        told = f"lm-eval {version}, {len(record['tasks']):,} leaf tasks"
        evidence = _Evidence(folder, name, results, record)
        checks = [Check("results", Status.PASS, told), *_groups(record, results)]
        checks += [*_counted(record, results, evidence.beside), *evidence.checks()]
    except BROKEN as error:
        findings.add(f"not lm-eval's results: {reason(error)}")
        checks.append(findings.check(""))
    checks.append(Check("unknown", Status.SKIP, UNKNOWN))
    if asked:
        why = "a plain lm-eval folder is signed by nobody and meets no policy"
        checks.append(Check("policy", Status.FAIL, why))
    return Report(checks, caveat=CAVEAT)


def _record(results: Value) -> Value:
    """The results in a record's form, as far as they go."""
    from evalkit.record import record as records  # numpy

    better, counts = results["higher_is_better"], results["n-samples"]
    tasks = {
        name: {
            "metrics": records.metrics(results["results"][name], better.get(name) or {}, {}),
            "n": counts[name]["effective"],
            "documents": counts[name]["original"],
        }
        for name in counts
    }
    groups = {}
    for name, children in results.get("group_subtasks", {}).items():
        if name not in tasks and children:
            entry = results["results"].get(name, {})
            groups[name] = {
                "metrics": records.metrics(entry, better.get(name) or {}, {}),
                "n": entry.get("sample_len", 0),
                "subtasks": children,
            }
    return {"tasks": tasks, "groups": groups}


def _groups(record: Value, results: Value) -> list[Check]:
    """Groups that lm-eval collapsed into one of their tasks: it does where a suite names a group
    with an override, and still calls the result by the group's name."""
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
        found = set(map(str, record["groups"][name]["subtasks"]))
        findings.add(difference(found, set(locked[name]), f"members of {shown(name)}"))
    return [findings.check(f"{len(record['groups']):,} groups, none collapsed")]


def _counted(record: Value, results: Value, kept: set[str]) -> list[Check]:
    """Whether n-samples counts every task that has a score, a config or samples: a task that it
    leaves out would be looked at by no check. `kept`: whose samples lie beside the results."""
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

    def __init__(self, folder: Folder, name: str, results: Value, record: Value) -> None:
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
        """The tasks whose samples lie beside the results, by the files' names."""
        names, end = self.folder.walk()[0], f"_{self._date}.jsonl"
        start = f"{self._head}samples_"
        found = {n for n in names if n.startswith(start) and n.endswith(end)}
        return {name[len(start) : -len(end)] for name in found}

    def _file(self, leaf: str) -> str:
        return f"{self._head}samples_{leaf}_{self._date}.jsonl"

    def checks(self) -> list[Check]:
        """What the samples say, or that there are none."""
        ranges = partial(aggregates.ranges, self.record, self.samples)
        if not self.kept:
            why = "no samples were kept (--log_samples), so no number can be recomputed"
            return [Check("samples", Status.SKIP, why), *checked("ranges", ranges)]
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
        made = aggregates.Aggregates(self.record, self.results, self.samples)
        return [
            *self._complete(),
            self.samples.shape.check(f"{self.samples.lines:,} samples, hashes equal"),
            *self.scores.checks(None),
            *made.check(),
            *checked("ranges", ranges),
        ]

    def _documents(self) -> Iterator[Document]:
        """Each kept task's documents, a document's filters together."""
        for leaf in self.kept:
            found: dict[int, list[Sample]] = {}
            older = Completing(cast(Results, self.results), leaf)
            try:
                if self.folder.path(self._file(leaf)).stat().st_size > MAX_TASK:
                    raise broken(f"more than {MAX_TASK // MiB:,} MiB of samples")
                for number, raw in self.folder.lines(self._file(leaf)):
                    self.samples.lines += 1
                    where = f"{shown(leaf)} line {number:,}"
                    sample = sampled.parsed(raw, where, self.samples.shape, older.complete)
                    if sample is not None:
                        found.setdefault(sample["doc_id"], []).append(sample)
            except BROKEN as error:
                self.samples.shape.add(f"{shown(leaf)}: {reason(error)}")
            for doc_id in sorted(found):
                yield Document(leaf, doc_id, found[doc_id][: sampled.MAX_FILTERS])

    def _complete(self) -> list[Check]:
        """As many documents as the results say, and what is known of how many there should be."""
        order, tasks = self.samples.order, self.record["tasks"]
        if missing := set(tasks) - set(self.kept):
            order.add(f"{len(missing):,} tasks without samples: {few(missing)}")
        for leaf in self.kept:
            seen = self.samples.leaves[leaf].n
            order.add_unequal(f"{shown(leaf)}: samples", tasks[leaf]["n"], seen)
        found = [order.check(f"{len(self.kept):,} tasks' samples are as many as their results say")]
        partial_ones = {n for n, entry in tasks.items() if entry["n"] != entry["documents"]}
        if partial_ones:
            detail = f"{len(partial_ones):,} tasks are partial: {few(partial_ones)}"
            found.append(Check("whole", Status.WARN, detail))
        return [*found, *self._rows()]

    def _rows(self) -> list[Check]:
        """Whether whole tasks that the shipped locks know are of the rows that these pin."""
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
            return [Check("rows", Status.WARN, detail)]
        return [Check("rows", Status.PASS, f"{same:,} tasks have our locks' rows")] if same else []
