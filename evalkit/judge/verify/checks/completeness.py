"""Checks that everything was asked that the suite's lock says, of exactly the data that it pins.

The lock that counts is the one shipped with the verifier's evalkit. A user's own suite has none
there: then the run's lock.yaml is its author's word, and the check says so.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import evalkit
from evalkit.base import canon, schema
from evalkit.base.machine import shipped as shipped_files
from evalkit.inputs import locked, rows
from evalkit.inputs.rows import Rows
from evalkit.inputs.types import LockBody, SuiteFile
from evalkit.record.reading import score_table
from evalkit.record.reading.evidence.samples import Samples
from evalkit.record.reading.findings import Check, Findings, Status, difference, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.types import Record

SUITES = [shipped_files.folder("suites")]
MAX_LOCK = 16 * MiB
ROWS = "lock.rows"
AUTHORS_WORD = "the lock is the author's word"


def shipped_suite(name: str) -> SuiteFile | None:
    """Return the content of a shipped suite's file, or None if no shipped suite has the name."""
    return next(_shipped(f"{name}.yaml"), None)


def shipped_lock(name: str) -> LockBody | None:
    """Return the lock of a shipped suite, or None if no shipped suite has the name."""
    return next(_shipped(f"{name}.lock.yaml"), None)


def _shipped(wanted: str) -> Iterator[Any]:
    """Yield the content of the shipped files of a name, which is never made into a path."""
    for folder in SUITES:
        yield from (_read(path) for path in sorted(folder.glob("*.yaml")) if path.name == wanted)


def locks() -> list[LockBody]:
    """Return every shipped lock."""
    return [_read(path) for folder in SUITES for path in sorted(folder.glob("*.lock.yaml"))]


@cache
def _read(path: Path) -> Any:
    """Return a shipped file's content, which is read once a process and never changed."""
    return locked.read_yaml(path, "suite")


def lock_of(folder: Folder, record: Record, findings: Findings) -> tuple[LockBody | None, bool]:
    """Return the lock to judge by, and whether it is a shipped one; note its problems."""
    wanted = shipped_lock(record["suite"]["name"])
    found: LockBody
    try:
        found = folder.yaml("lock.yaml", MAX_LOCK)
        problems = schema.check("lock", found)
    except BROKEN as error:
        problems = [reason(error)]
    if problems:
        findings.add(f"lock.yaml: {shown(problems[0])}")
        return wanted, wanted is not None
    if wanted is None:
        findings.add_unequal("lock.yaml's suite", record["suite"]["name"], found["suite"])
        return found, False
    if wanted.get("unlocked"):
        _compare_parts(found, wanted, findings)
        return found, False  # the author of the record has locked some members
    if found != wanted and record["environment"]["versions"]["evalkit"] != evalkit.__version__:
        return found, False  # another release may ship another lock of that name
    if found != wanted:
        findings.add(f"lock.yaml is not the shipped one: {_first_unlike(found, wanted)}")
    return wanted, True


def _compare_parts(found: Mapping[str, Any], wanted: Mapping[str, Any], findings: Findings) -> None:
    """Compare a lock with the shipped one in what both have."""
    for part in ("datasets", "groups", "tasks"):
        common = {name: found[part].get(name) for name in wanted[part]}
        if common != wanted[part]:
            unlike = _first_unlike(common, wanted[part])
            findings.add(f"lock.yaml is not the shipped one: {part}: {unlike}")


def rows_of(folder: Folder, lock: LockBody | None, findings: Findings) -> dict[str, Rows]:
    """Return the single rows that a lock pins by leaf task, from the run's folder. The file must be
    the one that the lock names, and hold as many rows as it counts; problems are added to the
    findings."""
    if lock is None:
        return {}
    try:
        data = folder.read(ROWS, rows.MAX_BYTES)
        if canon.digest_bytes(data) != lock["rows_file"]:
            findings.add(f"{ROWS} is not the file that the lock names")
            return {}
        found = rows.parse(data, ROWS)
    except BROKEN as error:
        findings.add(f"{ROWS}: {reason(error)}")
        return {}
    counts = {leaf: len(pinned.documents) // rows.SIZE for leaf, pinned in found.items()}
    wanted = {leaf: entry["documents"] for leaf, entry in lock["tasks"].items()}
    if counts != wanted:
        findings.add(f"{ROWS} does not fit the lock: {_first_unlike(counts, wanted)}")
    return found


def _first_unlike(found: Mapping[str, object], wanted: Mapping[str, object], path: str = "") -> str:
    """Say where two nested values differ first; empty if they don't."""
    for key in sorted(found.keys() | wanted.keys()):
        here, ours, theirs = f"{path}{shown(key)}", wanted.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours != theirs:
            return _first_unlike(theirs, ours, f"{here}.")
        if ours != theirs:
            return f"{here} is {shown(theirs)}, shipped {shown(ours)}"
    return ""


def check(record: Record, lock: LockBody | None, shipped_lock: bool, samples: Samples) -> Check:
    """Check that all leaf tasks are there, with exactly min(limit, documents) documents of each."""
    findings = samples.order
    if lock is None:
        return findings.check("")
    limit = record["suite"]["limit"]
    wanted = {
        leaf: entry["documents"] if limit is None else min(limit, entry["documents"])
        for leaf, entry in lock["tasks"].items()
    }
    findings.add(difference(set(record["tasks"]), set(wanted), "leaf tasks"))
    findings.add(difference(set(samples.leaves), set(wanted), "leaf tasks' samples"))
    unscored = set()
    for leaf in sorted(wanted.keys() & record["tasks"].keys()):
        entry = record["tasks"][leaf]
        seen = samples.leaves[leaf].n if leaf in samples.leaves else 0
        counts = {"samples": seen, "n": entry["n"], "n_expected": entry["n_expected"]}
        if not shipped_lock and 0 < entry["n"] == _scored(samples, leaf) < wanted[leaf]:
            del counts["n"]
            unscored.add(f"{shown(leaf)} ({wanted[leaf] - entry['n']:,})")
        for what, count in counts.items():
            if count != wanted[leaf]:
                findings.add(f"{shown(leaf)}: {what} {count:,}, the lock asks {wanted[leaf]:,}")
        findings.add_unequal(
            f"{shown(leaf)}: documents", entry["documents"], lock["tasks"][leaf]["documents"]
        )
    _groups(record, lock, findings)
    _shots(record, findings)
    passed = f"{sum(wanted.values()):,} documents of {len(wanted):,} leaf tasks"
    if findings.count or shipped_lock:
        return findings.check(f"{passed}, as the shipped lock asks")
    release = record["environment"]["versions"]["evalkit"]
    other = f" (of evalkit {shown(release)})" if release != evalkit.__version__ else ""
    if unscored:
        passed += f", of which the tasks' own code scores not all: {few(unscored)} without a score"
    detail = f"{passed}; {AUTHORS_WORD}{other}"
    return Check(findings.name, Status.WARN, detail, caveat=AUTHORS_WORD)


def _scored(samples: Samples, leaf: str) -> int:
    """Return how many documents of a leaf task have a value of some metric, as lm-eval counts."""
    return max(map(len, samples.leaves[leaf].values.values()), default=0)


def _groups(record: Record, lock: LockBody, findings: Findings) -> None:
    findings.add(difference(set(record["groups"]), set(lock["groups"]), "groups"))
    for name in sorted(record["groups"].keys() & lock["groups"].keys()):
        found, wanted = set(record["groups"][name]["subtasks"]), set(lock["groups"][name])
        findings.add(difference(found, wanted, f"members of {shown(name)}"))


def _shots(record: Record, findings: Findings) -> None:
    """Check that a member's leaf tasks have the shots that the suite gives it, if it gives any."""
    groups = score_table.groups(record)
    for member in record["suite"]["tasks"]:
        if (shots := member["num_fewshot"]) is not None:
            for leaf in groups.below(member["task"]):
                given = record["tasks"][leaf]["num_fewshot"]
                findings.add_unequal(f"{shown(leaf)}: num_fewshot", shots, given)


def data(
    record: Record, lock: LockBody | None, pinned: dict[str, Rows], samples: Samples
) -> list[Check]:
    """Check the datasets, the digests of rows, questions and prompts, and where shots come from.
    `pinned` are the lock's single rows by leaf task."""
    findings = Findings("data")
    for leaf in sorted(record["tasks"].keys() & samples.leaves.keys()):
        entry, seen = record["tasks"][leaf], samples.leaves[leaf]
        for key, parts in (("questions", seen.questions), ("prompts", seen.prompts)):
            digest = canon.digest_bytes(f"[{','.join(parts)}]".encode())
            findings.add_unequal(f"{shown(leaf)}: the {key} digest", entry.get(key), digest)
    datasets(record, lock, findings)
    passed = "questions, prompts and datasets agree"
    return [findings.check(passed), _rows(record, lock, pinned, samples), *shots(record, lock)]


def datasets(record: Record, lock: LockBody | None, findings: Findings) -> None:
    """Compare each dataset, and each leaf task's use of one, with the suite's own and the lock."""
    rows = {leaf: entry["dataset"]["rows"] for leaf, entry in record["tasks"].items()}
    unlike = {leaf for leaf in rows if rows[leaf] != record["suite"]["rows"].get(leaf)}
    if unlike or rows.keys() != record["suite"]["rows"].keys():
        findings.add(f"suite.rows is not the tasks' own: {few(unlike or set(rows))}")
    if lock is None:
        return
    revisions = {repo: {"revision": entry["revision"]} for repo, entry in lock["datasets"].items()}
    if record["suite"]["datasets"] != revisions:
        where = _first_unlike(record["suite"]["datasets"], revisions)
        findings.add(f"suite.datasets are not the lock's: {where}")
    for leaf in sorted(record["tasks"].keys() & lock["tasks"].keys()):
        found, entry = record["tasks"][leaf]["dataset"], lock["tasks"][leaf]
        source: Mapping[str, object] = lock["datasets"].get(entry["dataset"], {})
        wanted = {
            "repo": entry["dataset"],
            "config": entry["config"],
            "split": entry["split"],
            "rows": entry["rows"],
            **{key: source.get(key) for key in ("revision", "licence", "redistributable")},
        }
        for key, value in wanted.items():
            recorded = found.get(key)
            if recorded != value:
                findings.add(f"{shown(leaf)}: {key} {shown(recorded)}, locked {shown(value)}")


def _rows(
    record: Record, lock: LockBody | None, pinned: dict[str, Rows], samples: Samples
) -> Check:
    """Check that the samples' documents are the locked ones: by the digest over all of them, and
    one by one where only the first were asked."""
    findings, tasks = Findings("rows"), lock["tasks"] if lock else {}
    whole = part = 0
    for leaf in sorted(record["tasks"].keys() & samples.leaves.keys() & tasks.keys()):
        seen, problem = samples.leaves[leaf], ""
        if leaf in pinned:
            first = pinned[leaf].documents[: len(seen.each)]
            problem = rows.difference(bytes(seen.each), first)
        if seen.n >= tasks[leaf]["documents"]:
            whole += 1
            digest = f"sha256:{seen.rows.hexdigest()}"
            if digest != tasks[leaf]["rows"]:
                other = f"the rows digest is {digest}, locked {shown(tasks[leaf]['rows'])}"
                problem = problem or other
        else:
            part += leaf in pinned
        findings.add(problem and f"{shown(leaf)}: {problem}")
    if not whole and not part and not findings.count:
        why = "no lock pins the documents one by one, and no leaf task's are all there"
        return Check(findings.name, Status.SKIP, why)
    passed = [f"{whole:,} leaf tasks' documents are the locked ones"] if whole else []
    passed += [f"{part:,} leaf tasks' documents are the first of the locked ones"] if part else []
    return findings.check("; ".join(passed))


def shots(record: Record, lock: LockBody | None) -> list[Check]:
    """Check that shots are drawn from the rows that the lock pins, and warn where it pins none; no
    check for a suite without shots. `verify --deep` checks the rows themselves."""
    findings, recorded = Findings("shots"), record["suite"]["shots"]
    if lock is not None:
        wanted = {n: task["shots"] for n, task in lock["tasks"].items() if task["shots"]}
        if recorded != wanted:
            findings.add(f"suite.shots is not the lock's: {_first_unlike(recorded, wanted)}")
    for leaf, entry in sorted(record["tasks"].items()):
        if bool(entry["num_fewshot"]) != (leaf in recorded):
            named = "names" if leaf in recorded else "does not name"
            has = f"{shown(leaf)} has {entry['num_fewshot']:,} shots"
            findings.add(f"{has}, but suite.shots {named} the rows that they are drawn from")
    unknown = {n: entry["unknown"] for n, entry in recorded.items() if "unknown" in entry}
    if not recorded and not findings.count:
        return []
    passed = f"{len(recorded) - len(unknown):,} leaf tasks' shots are drawn from locked rows"
    if findings.count or not unknown:
        return [findings.check(passed)]
    names = few({f"{name} ({why})" for name, why in unknown.items()})
    detail = f"{len(unknown):,} leaf tasks' shots are drawn from rows that no lock pins: {names}"
    return [Check(findings.name, Status.WARN, f"{detail}; {passed}")]
