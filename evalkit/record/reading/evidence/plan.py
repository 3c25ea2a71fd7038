"""Checks the plan: every batch is what its id says, and all batches together ask each request of
the samples once.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from evalkit.base import schema
from evalkit.plan.types import BatchEntry, PlanBody, SettingsEntry
from evalkit.record.reading.evidence import tokens
from evalkit.record.reading.findings import Check, Findings, difference, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, broken, reason

MAX_PLAN = 256 * MiB
_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_INTEGERS = ("rows", "width", "cost", "tokens", "offset", "size")


@dataclass(slots=True)
class Batch:
    """A planned batch: its leaf task, its request kind, the part ids that it answers, how it
    generates, and for each part where its first scored token stands and which its last one is."""

    task: str
    kind: str
    parts: list[str]
    settings: SettingsEntry | None = None
    scored: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Plan:
    """A plan whose shape has been checked. `requests`: leaf task -> request -> its parts."""

    body: PlanBody
    batches: dict[str, Batch] = field(default_factory=dict)
    requests: dict[str, dict[str, list[int | None]]] = field(default_factory=dict)

    def settings_of(self, leaf: str) -> list[SettingsEntry]:
        """Return the different generation settings of a leaf task's batches."""
        different: list[SettingsEntry] = []
        for batch in self.batches.values():
            if batch.task == leaf and batch.settings and batch.settings not in different:
                different.append(batch.settings)
        return different


def read(folder: Folder, findings: Findings) -> Plan | None:
    """Return the plan, or None if it is not usable; add what is wrong with it to the findings."""
    try:
        body = folder.json("plan.json", MAX_PLAN)
        # The schema describes every batch alike: it is asked about a few, the rest by hand below,
        # since jsonschema needs a millisecond for what a run has a hundred thousand of.
        problems = schema.check("plan", _abridged(body))
        problems += _trunk_problems(body["trunks"])[:20]
        problems += [p for entry in body["batches"] if (p := _entry_problem(entry, body))][:20]
        for problem in problems:
            findings.add(f"plan.json: {shown(problem)}")
        return None if problems else _indexed(body, findings)
    except BROKEN as error:
        findings.add(reason(error))
        return None


def _abridged(body: Any) -> Any:
    """Return the plan with only its first few trunks and batches, and their first few targets."""
    if not isinstance(body, dict):
        return body
    found = dict(body)
    for name in ("trunks", "batches"):
        if isinstance(found.get(name), list):
            found[name] = [
                entry | {"targets": entry["targets"][:3]}
                if isinstance(entry, dict) and isinstance(entry.get("targets"), list)
                else entry
                for entry in found[name][:3]
            ]
    return found


def _integer(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _properties(name: str) -> Any:
    return schema.load("plan")["$defs"][name]["properties"].keys()


def _trunk_problems(trunks: list[Any]) -> list[str]:
    """Name the trunks that are not as the schema says, or do not stand after their parents."""
    return [
        f"trunk {shown(entry['id'])[:19]} is not what the schema says"
        for index, entry in enumerate(trunks)
        if not isinstance(entry["id"], str)
        or not (entry["parent"] is None or (_integer(entry["parent"]) and entry["parent"] < index))
        or not all(_integer(entry[key], 1) for key in ("length", "size"))
        or not _integer(entry["offset"])
        or not entry.keys() <= _properties("trunk")
    ]


def _entry_problem(entry: Any, body: Any) -> str:
    settings, trunk = entry["settings"], entry["trunk"]
    fine = (
        isinstance(entry["id"], str)
        and isinstance(entry["task"], str)
        and entry["kind"] in _KINDS
        and all(_integer(entry[key]) for key in _INTEGERS)
        and (settings is None or (_integer(settings) and settings < len(body["settings"])))
        and (settings is None) == (entry["kind"] != "generate_until")
        and (trunk is None or (_integer(trunk) and trunk < len(body["trunks"])))
        and entry.keys() <= _properties("batch")
        and all(_target(target) for target in entry["targets"])
    )
    return "" if fine else f"batch {shown(entry['id'])[:19]} is not what the schema says"


def _target(target: Any) -> bool:
    row, end, start, last, part = target
    return all(map(_integer, (row, end, start))) and _integer(last, -1) and isinstance(part, str)


def _indexed(body: PlanBody, findings: Findings) -> Plan:
    plan = Plan(body)
    requests: dict[str, dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for entry in body["batches"]:
        parts = [target[4] for target in entry["targets"]]
        if entry["id"] in plan.batches:
            findings.add(f"batch {entry['id'][:19]} stands twice")
        index = entry["settings"]
        settings = None if index is None else body["settings"][index]
        scored = [(target[2], target[3]) for target in entry["targets"]]
        batch = Batch(entry["task"], entry["kind"], parts, settings, scored)
        plan.batches[entry["id"]] = batch
        for part in parts:
            request, mark, number = part.partition("#")
            requests[entry["task"]][request].append(int(number) if mark else None)
    for leaf, empty in body["empty_texts"].items():
        for request in empty:
            requests[leaf][request] += []
    used = {entry["trunk"] for entry in body["batches"]}
    used |= {entry["parent"] for entry in body["trunks"]}
    if unused := set(range(len(body["trunks"]))) - used:
        findings.add(f"{len(unused):,} trunks carry no batch")
    asked = {entry["settings"] for entry in body["batches"]}
    if unasked := set(range(len(body["settings"]))) - asked:
        findings.add(f"{len(unasked):,} generation settings are no batch's")
    plan.requests = {leaf: dict(found) for leaf, found in requests.items()}
    return plan


def check(
    folder: Folder, plan: Plan, asked: dict[str, set[str]] | None, scored: Mapping[str, int],
    findings: Findings,
) -> Check:  # fmt: skip
    """Check the batches' token ids and digests, and compare their targets with the requests of the
    samples and with the number of tokens that each answer says it `scored`."""
    _tokens(folder, plan, scored, findings)
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
    return findings.check(f"{passed}, each of the samples' requests once")


def _tokens(folder: Folder, plan: Plan, scored: Mapping[str, int], findings: Findings) -> None:
    """Check the blocks of plan.tokens, and that the trunks' and batches' ids follow from them."""
    wanted, trunks = plan.body["tokens"], tokens.Trunks(plan.body["trunks"])
    whole = hashlib.sha256()
    offset = 0
    try:
        with folder.reader("plan.tokens") as handle:
            size = os.fstat(handle.fileno()).st_size
            for index, entry in enumerate([*trunks.entries, *plan.body["batches"]]):
                is_trunk = index < len(trunks.entries)
                name = f"{'trunk' if is_trunk else 'batch'} {entry['id'][:19]}"
                if entry["offset"] != offset:
                    raise broken(f"plan.tokens: {name} does not start at the end of the one before")
                if entry["size"] > size - offset:  # a read would reserve what is claimed
                    raise broken(f"plan.tokens: {name} reaches beyond the file's end")
                data = handle.read(entry["size"])
                whole.update(data)
                offset += len(data)
                if is_trunk:
                    problem = trunks.problem(index, data)
                else:
                    batch = cast(BatchEntry, entry)
                    problem = tokens.batch_problem(batch, data, plan.body, trunks, scored)
                findings.add(problem and f"{name} {problem}")
            if handle.read(1):
                findings.add("plan.tokens holds more than the trunks and batches")
    except BROKEN as error:
        findings.add(reason(error))
        return
    findings.add_unequal("plan.tokens' size", wanted["size"], offset)
    findings.add_unequal("plan.tokens' sha256", wanted["sha256"], whole.hexdigest())
