"""Whether the plan holds together: every batch is what its id says, and together they ask each
request of the samples once.

The layout of plan.tokens is the plan's: per batch, zlib over row count, row lengths and token ids
as little-endian unsigned 32-bit integers. Nothing here needs numpy.
"""

import hashlib
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from evalkit import canon, schema
from evalkit.verify.folder import BROKEN, Folder, MiB, broken, reason
from evalkit.verify.report import Check, Findings, difference, few, shown

MAX_PLAN = 256 * MiB
MAX_BATCH = 64 * MiB  # of a batch's token ids, unpacked
_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_INTEGERS = ("rows", "width", "cost", "offset", "size")


@dataclass(slots=True)
class Batch:
    """A planned batch: its leaf task, its request kind and the part ids that it answers."""

    task: str
    kind: str
    parts: list[str]


@dataclass(slots=True)
class Plan:
    """A plan whose shape has been checked. `requests`: leaf task -> request -> its parts."""

    body: dict[str, Any]
    batches: dict[str, Batch] = field(default_factory=dict)
    requests: dict[str, dict[str, list[int | None]]] = field(default_factory=dict)


def read(folder: Folder, findings: Findings) -> Plan | None:
    """The plan where it is usable; what is wrong with it goes into the findings."""
    try:
        body = folder.json("plan.json", MAX_PLAN)
        # The schema describes every batch alike: it is asked about a few, the rest by hand below,
        # since jsonschema needs a millisecond for what a run has a hundred thousand of.
        entries = body["batches"] if isinstance(body, dict) else []
        problems = schema.check("plan", _abridged(body, entries))
        problems += [p for entry in entries if (p := _entry_problem(entry, body))][:20]
        for problem in problems:
            findings.add(f"plan.json: {shown(problem)}")
        return None if problems else _indexed(body, findings)
    except BROKEN as error:
        findings.add(reason(error))
        return None


def _abridged(body: Any, entries: Any) -> Any:
    if not isinstance(body, dict) or not isinstance(entries, list):
        return body
    few_entries = [
        entry | {"targets": entry["targets"][:3]}
        if isinstance(entry, dict) and isinstance(entry.get("targets"), list)
        else entry
        for entry in entries[:3]
    ]
    return body | {"batches": few_entries}


def _integer(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _entry_problem(entry: Any, body: dict[str, Any]) -> str:
    settings = entry["settings"]
    fine = (
        isinstance(entry["id"], str)
        and isinstance(entry["task"], str)
        and entry["kind"] in _KINDS
        and all(_integer(entry[key]) for key in _INTEGERS)
        and (settings is None or (_integer(settings) and settings < len(body["settings"])))
        and entry.keys() <= schema.load("plan")["$defs"]["batch"]["properties"].keys()
        and all(_target(target) for target in entry["targets"])
    )
    return "" if fine else f"batch {shown(entry['id'])[:19]} is not what the schema says"


def _target(target: Any) -> bool:
    row, start, last, part = target
    return _integer(row) and _integer(start) and _integer(last, -1) and isinstance(part, str)


def _indexed(body: dict[str, Any], findings: Findings) -> Plan:
    plan = Plan(body)
    requests: dict[str, dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for entry in body["batches"]:
        parts = [target[3] for target in entry["targets"]]
        if entry["id"] in plan.batches:
            findings.add(f"batch {entry['id'][:19]} stands twice")
        plan.batches[entry["id"]] = Batch(entry["task"], entry["kind"], parts)
        for part in parts:
            request, mark, number = part.partition("#")
            requests[entry["task"]][request].append(int(number) if mark else None)
    plan.requests = {leaf: dict(found) for leaf, found in requests.items()}
    return plan


def check(
    folder: Folder, plan: Plan, asked: dict[str, set[str]] | None, findings: Findings
) -> Check:
    """The batches' token ids and digests, and their targets against the requests of the samples."""
    _tokens(folder, plan, findings)
    for leaf in sorted(plan.requests):
        for request, parts in plan.requests[leaf].items():
            whole = parts == [None] or sorted(p for p in parts if p is not None) == list(
                range(len(parts))
            )
            if not whole:
                findings.add(f"{shown(f'{leaf}/{request}')} is asked in parts {few(parts)}")
    count = sum(map(len, plan.requests.values()))
    passed = f"{len(plan.batches):,} batches ask {count:,} requests"
    if asked is None:
        return findings.check(f"{passed}; the samples could not be read")
    findings.add(difference(set(plan.requests), set(asked), "leaf tasks"))
    for leaf in sorted(set(plan.requests) & set(asked)):
        findings.add(difference(set(plan.requests[leaf]), asked[leaf], f"requests of {leaf}"))
    return findings.check(f"{passed}, each of the samples' once")


def _tokens(folder: Folder, plan: Plan, findings: Findings) -> None:
    """plan.tokens holds each batch's token ids, and its id follows from them."""
    wanted = plan.body["tokens"]
    whole = hashlib.sha256()
    offset = 0
    try:
        with folder.path("plan.tokens").open("rb") as handle:
            for entry in plan.body["batches"]:
                if entry["offset"] != offset:
                    raise broken(f"plan.tokens: batch {entry['id'][:19]} does not start at its end")
                data = handle.read(entry["size"])
                whole.update(data)
                offset += len(data)
                findings.add(_batch_problem(entry, data, plan.body["settings"]))
            if handle.read(1):
                findings.add("plan.tokens holds more than the batches")
    except BROKEN as error:
        findings.add(reason(error))
        return
    findings.add_unequal("plan.tokens' size", wanted["size"], offset)
    findings.add_unequal("plan.tokens' sha256", wanted["sha256"], whole.hexdigest())


def _batch_problem(entry: dict[str, Any], data: bytes, settings: list[Any]) -> str:
    rows, width = entry["rows"], entry["width"]
    size = 4 * (1 + rows * (1 + width))  # what it holds at most; guards against a bomb
    if size > MAX_BATCH:
        return f"batch {entry['id'][:19]} claims {rows:,} rows of {width:,} tokens"
    stream = zlib.decompressobj()
    content = stream.decompress(data, size + 1)
    lengths = struct.unpack_from(f"<{rows + 1}I", content)
    shape = (rows, max(lengths[1:], default=0), len(content))
    if lengths[0] != rows or shape != (rows, width, 4 * (1 + rows + sum(lengths[1:]))):
        return f"batch {entry['id'][:19]} holds other rows than its entry says"
    index = entry["settings"]
    layout = {
        "kind": entry["kind"],
        "settings": None if index is None else settings[index],
        "tokens": canon.digest_bytes(content),
        "targets": [
            [row, at, last, f"{entry['task']}/{p}"] for row, at, last, p in entry["targets"]
        ],
    }
    if canon.digest(layout) != entry["id"]:
        return f"batch {entry['id'][:19]} has another digest"
    return ""
