"""Reads record.json and the samples, and checks whether a record fits its schema, whether its files
are the ones that it names, and whether its ids follow from what they cover.

Reading is bounded, as the author may be a stranger; `verify` says whether a record is true.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.samples import Sample
from evalkit.inputs.files import sha256s
from evalkit.inputs.types import FileEntry, RunInputs, SuiteIdentity
from evalkit.plan.types import PlanBody
from evalkit.record.reading.evidence.samples import NAME
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.types import Record

MAX_RECORD = 32 * MiB
VERSION = 4  # of the record schema that this evalkit reads
UNLISTED = {"record.json", "attestation.json", "report.html"}
# What lies beside a run's files and is none of them: a lock, what a killed process was writing,
# what NFS and FUSE keep of a removed file that is open, what macOS and Windows add to folders.
_PASSING = re.compile(
    r"[.]lock|[.].+[.]part|[.]nfs[0-9a-f]+|[.]fuse_hidden[0-9a-f]+"
    r"|[.]DS_Store|[.]_.+|Thumbs[.]db|desktop[.]ini",
    re.ASCII | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Read:
    """record.json: the check of it, the record where it is usable, what to do about one of another
    version of the schema, and the sha256 of its bytes."""

    check: Check
    record: Record | None = None
    advice: str = ""
    sha256: str = ""


def record(folder: Folder) -> Read:
    """Read record.json once and check it against its schema."""
    findings = Findings("record")
    try:
        data = folder.read("record.json", MAX_RECORD)
        value = folder.parsed("record.json", data)
    except BROKEN as error:
        findings.add(reason(error))
        return Read(findings.check(""))
    name = value.get("schema") if isinstance(value, dict) else None
    version = re.fullmatch(r"evalkit/record/([1-9][0-9]{0,5})", str(name), re.ASCII)
    if version and int(version[1]) != VERSION:
        return _of_another_version(str(name), int(version[1]) > VERSION)
    for problem in schema.check("record", value):
        findings.add(shown(problem))
    check = findings.check(f"{name}, as its schema says")
    if check.status is not Status.PASS:
        return Read(check)
    return Read(check, value, sha256=hashlib.sha256(data).hexdigest())


def _of_another_version(name: str, newer: bool) -> Read:
    if newer:
        what = f"record from a newer schema ({name}); this evalkit reads up to {VERSION}"
        detail, advice = f"{what}: upgrade evalkit", "upgrade evalkit to verify this record"
    else:
        what = f"record from an earlier schema ({name}); this evalkit reads {VERSION}"
        advice = "verify this record with the evalkit that wrote it"
        detail = f"{what}: {advice}"
    return Read(Check("record", Status.FAIL, detail), advice=advice)


def require(run: Path) -> None:
    """Raise EvalkitError (3) where a folder has no record, with what lies there instead."""
    if (run / "record.json").exists():
        return
    what, fix = "there is no finished run here", "give the folder of one"
    if (run / "run.json").exists():
        fix = "`evalkit status` says how far it is"
    elif [*run.glob("results_*.json"), *run.glob("*/results_*.json")]:
        what = "these are lm-eval's results, which don't say how each answer was computed"
        fix = "`evalkit verify`, `compare`, `report` and `export` take them as they are"
    elif [*run.glob("*/run.json"), *run.glob("*/*/run.json")]:
        what, fix = "this is a folder of runs, and no run", "give one of them"
    raise EvalkitError(what, where=str(run), fix=fix, code=Exit.MISSING)


def read_record(run: Path) -> Record:
    """Return the record of a run; EvalkitError (3) where there is none, (1) if not usable."""
    require(run)
    read = record(Folder(run))
    if read.record is None:
        raise EvalkitError(read.check.detail, where=str(run / "record.json"), code=Exit.FAILED)
    return read.record


def read_samples(run: Path) -> Iterator[Sample]:
    """Yield the samples of a run, in order; EvalkitError (1) where they can't be read."""
    try:
        for number, raw in Folder(run).gzip_lines(NAME):
            sample = canon.loads(raw)
            if not isinstance(sample, dict) or not isinstance(sample.get("task"), str):
                raise ValueError(f"line {number:,} is no sample")
            yield cast(Sample, sample)
    except BROKEN as error:
        raise EvalkitError(reason(error), where=str(run / NAME), code=Exit.FAILED) from None


def is_passing(name: str) -> bool:
    """Say whether a file of that name in a run's folder is none of the run's, and nobody's work."""
    return _PASSING.fullmatch(name.rpartition("/")[2]) is not None


def files(folder: Folder, record: Record) -> Check:
    """Check that every listed file is there with its size and digest, and nothing else is."""
    findings = Findings("files")
    listed = record["files"]
    for name in sorted(listed):
        try:
            findings.add(file_problem(folder, name, listed[name]))
        except BROKEN as error:
            findings.add(reason(error))
    beside: set[str] = set()
    try:
        names, strange = folder.walk()
    except BROKEN as error:
        findings.add(reason(error))
    else:
        if strange:
            findings.add(f"neither files nor folders: {few(strange)}")
        beside = set(filter(is_passing, names - set(listed)))
        if extra := names - set(listed) - UNLISTED - beside:
            findings.add(f"{len(extra):,} files that the record does not list: {few(extra)}")
    size = sum(entry["size"] for entry in listed.values())
    return with_passing(
        findings, f"{len(listed):,} files, {size / MiB:,.1f} MiB, digests equal", beside
    )


def with_passing(findings: Findings, passed: str, beside: set[str]) -> Check:
    """Return the check of a folder's files: a warning where only passing ones lie beside them."""
    if findings.count or not beside:
        return findings.check(passed)
    detail = f"{passed}; {len(beside):,} beside them: {few(beside)}"
    return Check(findings.name, Status.WARN, detail)


def file_problem(folder: Folder, name: str, entry: FileEntry) -> str:
    """Return how a file is not as the record lists it, or nothing."""
    if name in UNLISTED:
        return f"{name} must not be listed"
    with folder.reader(name) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size != entry["size"]:
            return f"{shown(name)} has {size:,} bytes, recorded {entry['size']:,}"
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return "" if digest == entry["sha256"] else f"{shown(name)} has another sha256"


def ids(record: Record, plan: PlanBody | None) -> Check:
    """Recompute the suite, plan, run and answers ids, each from what it covers."""
    findings = Findings("ids")
    recorded = record["ids"]
    inputs = dict(inputs_of(record))
    findings.add_unequal("the suite id", recorded["suite"], canon.digest(inputs.pop("suite")))
    run_id = canon.digest(inputs | {"plan": recorded["plan"]})  # a plan covers the suite
    findings.add_unequal("the run id", recorded["run"], run_id)
    findings.add_unequal("the answers id", recorded["answers"], canon.digest(record["answers"]))
    if plan is None:
        return findings.check("suite, run and answers; without the plan's")
    findings.add_unequal("the plan id", recorded["plan"], canon.digest(_plan(plan)))
    for key, id_ in plan["ids"].items():
        findings.add_unequal(f"plan.json's {key} id", recorded.get(key), id_)
    findings.add_unequal("plan.json's level", record["engine"]["level"], plan["level"])
    findings.add_unequal("plan.json's policy", record["engine"]["policy"], plan["policy"])
    findings.add_unequal(
        "the tokenizer's digest", record["model"]["tokenizer"], canon.digest(plan["tokenizer"])
    )
    digests = sha256s(record["model"]["files"])
    unlike = {n for n, sha in plan["tokenizer"].items() if digests.get(n, sha) != sha}
    if unlike:
        findings.add(f"the plan's tokenizer files are not the model's: {few(unlike)}")
    return findings.check("suite, plan, run and answers follow from what they cover")


def planned(folder: Folder, record: Record) -> list[Check]:
    """Check that run.json, which was written before the run began, says what the record says."""
    if "run.json" not in record["files"]:
        return []
    body, findings = folder.json("run.json", MAX_RECORD), Findings("run")
    pairs = {
        "execution": (record["execution"], body["execution"]),
        "ids": ({k: v for k, v in record["ids"].items() if k != "answers"}, body["ids"]),
        "suite": (record["suite"], body["suite"]),
        "model": (record["model"], body["model"]),
        "config": (record["command"]["config"], body["options"]),
        "inputs": (inputs_of(record), body["inputs"]),
    }
    for name, (recorded, decided) in pairs.items():
        if recorded != decided:
            findings.add(f"run.json's {name} is not the record's")
    return [findings.check("run.json decided what the record says")] if findings.count else []


def inputs_of(record: Record) -> RunInputs:
    """Return a record's inputs, as run.json has them. The suite id covers its suite."""
    adapter = record["model"]["adapter"]
    suite = {k: v for k, v in record["suite"].items() if k not in ("name", "partial")}
    return {
        "suite": cast(SuiteIdentity, suite),
        "model": sha256s(record["model"]["files"]),
        "adapter": sha256s(adapter["files"]) if adapter else None,
        "numerics": record["numerics"],
        "engine": record["engine"],
        "versions": record["environment"]["versions"],
    }


def _plan(plan: PlanBody) -> dict[str, object]:
    """Return what the plan id covers."""
    return {
        "suite": plan["ids"]["suite"],
        "batches": [batch["id"] for batch in plan["batches"]],
        "tokenizer": plan["tokenizer"],
        "level": plan["level"],
        "policy": plan["policy"],
        "max_length": plan["max_length"],
    }
