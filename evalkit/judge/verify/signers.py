"""Who vouches for a record: the statements in its attestation.json, held against the record and
against the reader's own list of signers.

A signature that is not valid, or is about something else, breaks a record. A valid one by a key on
no list raises no verdict: anybody can make a key. Nor is somebody a witness of himself.
"""

from collections.abc import Sequence
from typing import Any

from evalkit.judge.verify.claims import Trust, claim_problem
from evalkit.record.reading.findings import Check, Findings, Seen, Standing, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.salted import HEAD, LINES
from evalkit.record.signing import attest, timestamps
from evalkit.record.signing.attest import AUDIT, EVALUATION, PUBLICATION, REPRODUCTION, Statement
from evalkit.record.signing.keys import Public

_GOOD = {AUDIT: {"PASSED"}, REPRODUCTION: {"BITWISE", "ANSWERS", "NUMERICS", "REPRODUCED"}}
_BAD = {AUDIT: {"FAILED"}, REPRODUCTION: {"DIFFERENT"}}
_WORDS = {EVALUATION: "signed", AUDIT: "audited", REPRODUCTION: "reproduced",
          PUBLICATION: "published"}  # fmt: skip

Value = dict[str, Any]


def check(
    folder: Folder, record: Value, sha256: str, trusted: Trust,
    authorities: Sequence[Any] = (), sealer: Public | None = None,
) -> tuple[list[Check], Standing]:  # fmt: skip
    """The checks that its statements make, and what the last line may say of them.

    `sha256`: of record.json as it was read; `authorities`: whose timestamps count; `sealer`: who
    sealed the run, which only its author can.
    """
    if not folder.holds(attest.NAME):
        missing = Check("signer", Status.FAIL, "it is not signed, and you asked for a signer")
        return [missing] if trusted.asked else [], Standing()
    try:
        data = folder.read(attest.NAME, attest.MAX_BYTES)
        found = attest.read(data, sha256, trusted.names)
    except BROKEN as error:
        return [Check("signature", Status.FAIL, reason(error))], Standing()
    findings = Findings("signature")
    for problem in found.problems:
        findings.add(shown(problem))
    for statement in found.statements:
        findings.add(_unlike(statement, record, sha256, folder))
    if findings.count:
        return [findings.check("")], Standing()
    passed = f"{len(found.statements):,} valid: {few(_told(found.statements, trusted))}"
    checks = [findings.check(passed), *_timed(found.statements, trusted, authorities)]
    checks += _listed(found.statements, trusted)
    standing = _standing(found.statements, trusted, sealer)
    if folder.is_public:
        return checks + _published(found.statements, trusted), _public(
            found.statements, standing, trusted
        )
    return checks, standing


def _timed(statements: list[Statement], trusted: Trust, authorities: Sequence[Any]) -> list[Check]:
    """Since when each signature with a timestamp is there, by the authorities that the reader
    trusts."""
    times, why = [], ""
    for statement in statements:
        for key, signature, token in statement.stamped:
            what = f"{_WORDS[statement.kind]} by {trusted.name(key)}"
            try:
                time = timestamps.time_of(token, signature, authorities)
                times.append(f"{what} at {timestamps.shown(time)} at the latest")
            except ModuleNotFoundError as error:
                why = f"{error.name} is not installed"
            except ValueError as error:
                why = f"a timestamp of what was {what} proves nothing to you: {shown(error)}"
    if why:
        return [Check("timestamp", Status.WARN, "; ".join([*times, why]))]
    return [Check("timestamp", Status.PASS, "; ".join(times))] if times else []


def _published(statements: list[Statement], trusted: Trust) -> list[Check]:
    """Whether somebody on the list signed the files that a public pack has beside the record."""
    own = [s for s in statements if s.kind == PUBLICATION]
    if _by_listed(own, trusted):
        return []
    said = "by nobody on your list" if own else "by nobody"
    what = f"the record is signed, but the public form of its samples {said}"
    return [Check("signer", Status.FAIL if trusted.asked else Status.WARN, what)]


def _public(statements: list[Statement], standing: Standing, trusted: Trust) -> Standing:
    """What is known of a public pack: nothing where whoever packed it is not known."""
    own = [s for s in statements if s.kind == PUBLICATION]
    return standing if _by_listed(own, trusted) else Standing(unlisted=standing.unlisted)


def _about(statement: Statement, record: Value, folder: Folder) -> dict[str, str]:
    """The files beside record.json that a statement must be about, with their sha256."""
    if statement.kind == EVALUATION:
        return {name: entry["sha256"] for name, entry in record["files"].items()}
    if statement.kind == PUBLICATION:
        return {name: folder.sha256(name) for name in (HEAD, LINES)}
    return {}


def _unlike(statement: Statement, record: Value, sha256: str, folder: Folder) -> str:
    """How a statement contradicts itself, or the record that it is about."""
    subjects = {name: sha for name, sha in statement.subjects.items() if name != "record.json"}
    try:
        about = _about(statement, record, folder)
    except BROKEN as error:
        return reason(error)
    if subjects != about:
        return f"the statement of {few(_prints(statement))} is about other files"
    if statement.predicate != attest.predicate(record, statement.kind, statement.claim):
        return f"the statement of {few(_prints(statement))} says other things than the record"
    own = statement.kind in (EVALUATION, PUBLICATION)
    if own == ("verdict" in statement.claim):
        return f"the statement of {few(_prints(statement))} claims what its kind does not"
    if wrong := claim_problem(statement, record, sha256):
        return f"the claim of {few(_prints(statement))} can't be true: {wrong}"
    return ""


def _prints(statement: Statement) -> list[str]:
    return [key.fingerprint for key in statement.signers]


def _told(statements: list[Statement], trusted: Trust) -> list[str]:
    return [
        f"{_WORDS[statement.kind]} by {trusted.name(key)}"
        for statement in statements
        for key in statement.signers
    ]


def _listed(statements: list[Statement], trusted: Trust) -> list[Check]:
    """Whether somebody on the list signed, and whether somebody there contradicts."""
    found = []
    signers = {key for statement in statements for key in statement.signers}
    if not signers & trusted.names.keys():
        names = few([key.fingerprint for key in signers])
        status = Status.FAIL if trusted.asked else Status.WARN
        found.append(Check("signer", status, f"valid, but the signer is not on your list: {names}"))
    for statement, name in _by_listed(statements, trusted):
        verdict = statement.claim.get("verdict")
        if verdict in _BAD.get(statement.kind, ()):
            what = "audit" if statement.kind == AUDIT else "reproduction"
            found.append(Check("dispute", Status.FAIL, f"the {what} by {name} came out {verdict}"))
    return found


def _by_listed(statements: list[Statement], trusted: Trust) -> list[tuple[Statement, str]]:
    return [
        (statement, trusted.name(key))
        for statement in statements
        for key in statement.signers
        if key in trusted.names
    ]


def _standing(statements: list[Statement], trusted: Trust, sealer: Public | None) -> Standing:
    """What is known of who saw the run, by the reader's list alone.

    A witness whose key, or whose name, also made the author's statement or the seal is the author
    again; and without an author's statement anybody who signed may be the author.
    """
    own = [s for s in statements if s.kind in (EVALUATION, PUBLICATION)]
    signed = {key for statement in own for key in statement.signers}
    author_keys = signed | ({sealer} if sealer else set())
    authors = {name for statement, name in _by_listed(own, trusted)}
    not_witnesses = {trusted.names[key] for key in author_keys if key in trusted.names}
    found: dict[str, dict[Public, int | None]] = {AUDIT: {}, REPRODUCTION: {}}
    for statement in statements:
        if statement.claim.get("verdict") in _GOOD.get(statement.kind, ()):
            for key in statement.signers:
                mine = key in author_keys or trusted.names.get(key) in not_witnesses
                if key in trusted.names and not mine:
                    _note(found[statement.kind], key, statement)
    unlisted = {key.fingerprint for key in signed - trusted.names.keys()}
    seen = {kind: _seen(keys_, trusted) for kind, keys_ in found.items()}
    if not own:
        return Standing(unproven={**seen[AUDIT], **seen[REPRODUCTION]})
    return Standing(authors, seen[AUDIT], seen[REPRODUCTION], unlisted)


def _note(found: dict[Public, int | None], key: Public, statement: Statement) -> None:
    """How much a key says it has seen: samples, or (None) all of it; the most of its statements."""
    whole = statement.kind == REPRODUCTION and "record" in statement.claim
    samples = None if whole else int(statement.claim["samples"])
    before = found.get(key, 0)
    found[key] = None if samples is None or before is None else max(samples, before)


def _seen(found: dict[Public, int | None], trusted: Trust) -> dict[str, Seen]:
    """The same by name, with the number of keys that each name has."""
    names: dict[str, list[int | None]] = {}
    for key, samples in found.items():
        names.setdefault(trusted.name(key), []).append(samples)
    return {
        name: Seen(len(counts), None if None in counts else max(c for c in counts if c is not None))
        for name, counts in names.items()
    }
