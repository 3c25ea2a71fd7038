"""A policy: what a record must meet beyond being consistent, for a leaderboard, say.

It is the reader's own file. It can only ask for more: no policy makes a failed check pass.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError
from evalkit.base.machine.types import Code, Image, Unknown
from evalkit.inputs import untrusted
from evalkit.record.reading.findings import Check, Findings, Seen, Standing, Status, few, shown
from evalkit.record.sections import Health
from evalkit.record.types import Record

MAX_POLICY = 1 << 20
_ALL = Seen({"": None})  # of an author, who has seen all


class SeenBy(TypedDict, total=False):
    """How much has to be seen, by how many keys of which names."""

    names: list[str]
    samples: int
    keys: int


Names = Literal[True] | list[str]  # anybody on the reader's list, or one of these names


class Policy(TypedDict, total=False):
    """The content of a policy; schemas/policy.schema.json describes it. `name` is always there."""

    name: str
    suites: list[str]
    whole: Literal[True]
    recomputed: Literal[True]
    clean_commit: Literal[True]
    pinned_image: Names
    bit_repeatable: Literal[True]
    health: dict[str, int]
    signed: Names
    witnessed: Names | SeenBy
    reproduced: Names | SeenBy


def read(path: Path) -> Policy:
    """Read a policy file; EvalkitError if it is none."""
    policy: Policy = read_rules(path, "policy")
    return policy


def read_rules(path: Path, kind: str) -> Any:
    """Return the content of a file of rules; EvalkitError if the schema of that kind rejects it."""
    data = canon.read_given(path, MAX_POLICY, f"the {kind}")
    try:
        rules = untrusted.load_foreign_yaml(data)
    except ValueError as error:
        what = f"the {kind} is not readable YAML: {error}"
        raise EvalkitError(what, where=str(path)) from None
    if problems := schema.check(kind, rules):
        raise EvalkitError(f"the {kind} is not valid: {problems[0]}", where=str(path))
    return rules


def check(policy: Policy, record: Record, checks: Collection[Check], standing: Standing) -> Check:
    """Return one check of every rule of the policy; it names the unmet rules."""
    findings = Findings("policy")
    rules = _rules(policy, record, checks, standing)
    for name in sorted(policy.keys() & rules.keys()):
        findings.add(rules[name](policy.get(name)))
    count = len(policy.keys() & rules.keys())
    return findings.check(f"{shown(policy['name'])}: {count} rules hold")


def _rules(
    policy: Policy, record: Record, checks: Collection[Check], standing: Standing
) -> dict[str, Callable[[Any], str]]:
    code, suite = record["code"], record["suite"]["name"]
    seen = dict(standing.witnesses)
    for name, each in standing.reproducers.items():
        seen[name] = each.merged(seen.get(name))
    return {
        "suites": lambda names: "" if suite in names else f"its suite is {shown(suite)}",
        "whole": lambda _: _whole(checks),
        "recomputed": lambda _: _recomputed(checks),
        "clean_commit": lambda _: "" if _clean(code) else "evalkit's commit is unknown or changed",
        "pinned_image": lambda images: _image(record["environment"]["image"], images),
        "bit_repeatable": lambda _: (
            "" if record["engine"]["bit_repeatable"] else "its engine is not bit-repeatable"
        ),
        "health": lambda most: _health(record["health"], most),
        "signed": lambda names: _by("signed", names, dict.fromkeys(standing.authors, _ALL)),
        "witnessed": lambda names: _by("witnessed", names, seen),
        "reproduced": lambda names: _by("reproduced", names, standing.reproducers),
    }


def _whole(checks: Collection[Check]) -> str:
    passed = {check.name for check in checks if check.status is Status.PASS}
    if not {"whole", "completeness"} <= passed:
        return "it is not the whole of a shipped suite"
    if any(check.name == "settings" for check in checks):
        return "it was not asked as the shipped suite asks"
    return ""


def _recomputed(checks: Collection[Check]) -> str:
    skipped = {check.name for check in checks if check.status is Status.SKIP}
    left = skipped & {"answers", "scores", "rescoring", "aggregates"}
    return f"not all of its scores could be recomputed here ({few(left)})" if left else ""


def _clean(code: Code) -> bool:
    return isinstance(code["commit"], str) and code["dirty"] is False


def _image(image: Image | Unknown, wanted: Names) -> str:
    if "unknown" in image:
        return f"its image is unknown ({shown(image['unknown'])})"
    named = wanted is True or image["digest"] in wanted
    return "" if named else f"its image is {shown(image['digest'])}"


def _health(counts: Health, most: Mapping[str, int]) -> str:
    over = []
    for name in sorted(most):
        count = counts.get(name)
        if not isinstance(count, int):
            over.append(f"unknown {name}")
        elif count > most[name]:
            over.append(f"{count} {name}")
    return f"its health counts {few(over)}" if over else ""


def _by(what: str, wanted: Names | SeenBy, people: Mapping[str, Seen]) -> str:
    """Say who is missing: `wanted` is true, names of which one is enough, or a `SeenBy`."""
    if wanted is True:
        return "" if people else f"not {what} by anybody on your list"
    rule: SeenBy = {"names": wanted} if isinstance(wanted, list) else wanted
    least, samples = rule.get("keys", 1), rule.get("samples", 0)
    names = rule.get("names", people)
    keys = sum(seen.keys_with(samples) for name, seen in people.items() if name in names)
    if keys >= least:
        return ""
    who = few(rule["names"]) if "names" in rule else "anybody on your list"
    much = f" with {samples:,} samples" if samples else ""
    if least > 1:
        return f"{what}{much} by {keys:,} of {least:,} keys of {who}"
    return f"not {what} by {who}{much}"
