"""Whether a signed statement's claim can be true: of itself, and of the record that it is about.

A signature says who speaks, not that what is said fits together. An audit that passed with half of
its samples failed, or a reproduction that was equal to the last bit with other answers, is refused
whoever signed it.
"""

import math
from typing import Any

from evalkit.record.reading.findings import shown
from evalkit.record.signing.attest import AUDIT, EVALUATION, PUBLICATION, Statement

AUDITED = {"verdict", "samples", "failed", "seed", "share", "difference"}
VERDICTS = ("PASSED", "FAILED")  # an audit's; any other is a reproduction's
LARGEST_MARGIN = 0.05  # of a reproduction: its cap

Value = dict[str, Any]


def problem(statement: Statement, record: Value, sha256: str) -> str:
    """Why a claim can't be true of a record whose record.json has this sha256, or nothing."""
    claim = statement.claim
    if statement.kind in (EVALUATION, PUBLICATION):
        return ""  # they claim nothing, which is looked at elsewhere
    if "verdict" not in claim:
        return "it has no verdict"
    if (claim["verdict"] in VERDICTS) != (statement.kind == AUDIT):
        return f"{shown(claim['verdict'])} is no verdict of its kind"
    if claim.get("failed", 0) > claim.get("samples", 0):
        return f"{claim['failed']:,} of {claim.get('samples', 0):,} samples failed"
    documents = sum(task["n"] for task in record["tasks"].values())
    return _audit(claim, documents) if statement.kind == AUDIT else _again(claim, record, sha256)


def _audit(claim: Value, documents: int) -> str:
    if claim.keys() != AUDITED:
        return "it says other things than an audit does"
    samples, failed, difference = claim["samples"], claim["failed"], claim["difference"]
    if not 1 <= samples <= documents:
        return f"{samples:,} samples of a record with {documents:,}"
    if (claim["verdict"] == "PASSED") != (difference == "rounding"):
        return f"it {claim['verdict']} with a difference of {difference}"
    if (difference == "rounding" and failed) or (difference == "answers" and not failed):
        return f"a difference of {difference} with {failed:,} of {samples:,} samples failed"
    if not math.isclose(claim["share"], 1 - 0.05 ** (1 / samples), rel_tol=1e-9):
        return f"{samples:,} samples show another share than {claim['share']:g}"
    return ""


def _again(claim: Value, record: Value, sha256: str) -> str:
    """A reproduction's: of the whole record, with the new one's answers, or of a sample."""
    verdict, failed = claim["verdict"], claim.get("failed", 0)
    whole = {"answers", "record"} & claim.keys()
    if len(whole) == 1 or claim.keys() & {"seed", "share", "difference"}:
        return "it says other things than a reproduction does"
    if not whole and not claim.get("samples") and verdict != "INCOMPARABLE":
        return f"{verdict} of no answers"
    if whole and claim["record"] == sha256:
        return "it names this record as the one that it was reproduced in"
    same = bool(whole) and claim["answers"] == record["ids"]["answers"]
    if whole and same != (verdict == "BITWISE"):
        answers = "these very answers" if same else "other answers"
        return f"{verdict} with {answers}"
    if verdict in ("BITWISE", "NUMERICS") and failed:
        return f"{verdict} with {failed:,} answers apart"
    margin = claim.get("margin")
    if (verdict == "REPRODUCED") != (margin is not None):
        return f"{verdict} {'without' if margin is None else 'with'} a margin"
    if margin is not None and not 0 < margin <= LARGEST_MARGIN:
        return f"a margin of {margin:g}"
    return ""
