"""Whether a record is one, whether its files are the ones it names, and whether its ids follow from
what they cover.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Any

from evalkit.base import canon, schema
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason

MAX_RECORD = 32 * MiB
VERSION = 4  # of the record schema that this evalkit reads
UNLISTED = {"record.json", "attestation.json", "report.html"}


@dataclass(frozen=True, slots=True)
class Read:
    """record.json: the check of it, the record where it is usable, what to do about one of another
    version of the schema, and the sha256 of its bytes."""

    check: Check
    record: dict[str, Any] | None = None
    advice: str = ""
    sha256: str = ""


def record(folder: Folder) -> Read:
    """Read record.json once and hold it against its schema."""
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


def files(folder: Folder, record: dict[str, Any]) -> Check:
    """Every listed file is there with its size and digest, and nothing else is."""
    findings = Findings("files")
    listed: dict[str, dict[str, Any]] = record["files"]
    for name in sorted(listed):
        try:
            findings.add(file_problem(folder, name, listed[name]))
        except BROKEN as error:
            findings.add(reason(error))
    try:
        found, strange = folder.walk()
    except BROKEN as error:
        findings.add(reason(error))
    else:
        if strange:
            findings.add(f"neither files nor folders: {few(strange)}")
        if extra := found - set(listed) - UNLISTED:
            findings.add(f"{len(extra):,} files that the record does not list: {few(extra)}")
    size = sum(entry["size"] for entry in listed.values())
    return findings.check(f"{len(listed):,} files, {size / MiB:,.1f} MiB, digests equal")


def file_problem(folder: Folder, name: str, entry: dict[str, Any]) -> str:
    """How a file is not as the record lists it, or nothing."""
    if name in UNLISTED:
        return f"{name} must not be listed"
    with folder.reader(name) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size != entry["size"]:
            return f"{shown(name)} has {size:,} bytes, recorded {entry['size']:,}"
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    return "" if found == entry["sha256"] else f"{shown(name)} has another sha256"


def ids(record: dict[str, Any], plan: dict[str, Any] | None) -> Check:
    """The suite, plan, run and answers ids, each recomputed from what it covers."""
    findings = Findings("ids")
    wanted = record["ids"]
    findings.add_unequal("the suite id", wanted["suite"], canon.digest(_asked(record)))
    findings.add_unequal("the run id", wanted["run"], canon.digest(_run(record)))
    findings.add_unequal("the answers id", wanted["answers"], canon.digest(record["answers"]))
    if plan is None:
        return findings.check("suite, run and answers; without the plan's")
    findings.add_unequal("the plan id", wanted["plan"], canon.digest(_plan(plan)))
    for key in ("suite", "plan"):
        findings.add_unequal(f"plan.json's {key} id", wanted[key], plan["ids"][key])
    for key in ("level", "policy"):
        findings.add_unequal(f"plan.json's {key}", record["engine"][key], plan[key])
    findings.add_unequal(
        "the tokenizer's digest", record["model"]["tokenizer"], canon.digest(plan["tokenizer"])
    )
    files = {name: entry["sha256"] for name, entry in record["model"]["files"].items()}
    unlike = {n for n, sha in plan["tokenizer"].items() if files.get(n, sha) != sha}
    if unlike:
        findings.add(f"the plan's tokenizer files are not the model's: {few(unlike)}")
    return findings.check("suite, plan, run and answers follow from what they cover")


def planned(folder: Folder, record: dict[str, Any]) -> list[Check]:
    """run.json, what was decided before the run began, says what the record says."""
    if "run.json" not in record["files"]:
        return []
    body, findings = folder.json("run.json", MAX_RECORD), Findings("run")
    inputs = body["inputs"]
    wanted = {
        "execution": (record["execution"], body["execution"]),
        "ids": ({k: v for k, v in record["ids"].items() if k != "answers"}, body["ids"]),
        "suite": (record["suite"], body["suite"]),
        "model": (record["model"], body["model"]),
        "config": (record["command"]["config"], body["options"]),
        "inputs": (
            _run(record) | {"plan": None, "suite": _asked(record)},
            inputs | {"plan": None},
        ),
    }
    for name, (recorded, found) in wanted.items():
        if recorded != found:
            findings.add(f"run.json's {name} is not the record's")
    return [findings.check("run.json decided what the record says")] if findings.count else []


def _asked(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record["suite"].items() if k not in ("name", "partial")}


def _run(record: dict[str, Any]) -> dict[str, Any]:
    files = record["model"]["files"]
    adapter = record["model"]["adapter"]
    return {
        "plan": record["ids"]["plan"],
        "model": {name: entry["sha256"] for name, entry in files.items()},
        "adapter": adapter and {n: entry["sha256"] for n, entry in adapter["files"].items()},
        "numerics": record["numerics"],
        "engine": record["engine"],
        "versions": record["environment"]["versions"],
    }


def _plan(plan: dict[str, Any]) -> dict[str, Any]:
    kept = ("tokenizer", "level", "policy", "max_length")
    batches = [batch["id"] for batch in plan["batches"]]
    return {"suite": plan["ids"]["suite"], "batches": batches} | {k: plan[k] for k in kept}
