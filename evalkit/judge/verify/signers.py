"""Checks the signed statements in attestation.json, and says who vouches for the record.

An invalid signature, or a statement about something else, makes a record BROKEN. A signature by a
key that is not on the reader's list raises no verdict. An author is no witness of his own
record.
"""

from collections.abc import Sequence
from typing import Any

from evalkit.inputs.files import sha256s
from evalkit.judge.verify.claims import Trust, claim_problem
from evalkit.record.reading.evidence import plan as plans
from evalkit.record.reading.findings import Check, Findings, Seen, Standing, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.salted import HEAD, LINES
from evalkit.record.signing import attest, timestamps
from evalkit.record.signing.attest import AUDIT, EVALUATION, PUBLICATION, REPRODUCTION, Statement
from evalkit.record.signing.keys import Public
from evalkit.record.types import Record

_GOOD = {AUDIT: {"PASSED"}, REPRODUCTION: {"BITWISE", "ANSWERS", "NUMERICS", "REPRODUCED"}}
_BAD = {AUDIT: {"FAILED"}, REPRODUCTION: {"DIFFERENT"}}
_WORDS = {EVALUATION: "signed", AUDIT: "audited", REPRODUCTION: "reproduced",
          PUBLICATION: "published"}  # fmt: skip


def check(
    folder: Folder, record: Record, sha256: str, trusted: Trust,
    authorities: Sequence[Any] = (), sealer: Public | None = None,
) -> tuple[list[Check], Standing]:  # fmt: skip
    """Return the checks of a record's statements, and who is known to have signed, audited and
    reproduced it. `sha256` is that of record.json as it was read; `authorities` are those whose
    timestamps count; `sealer` is the key that sealed the run, which only its author can do."""
    if not folder.holds(attest.NAME):
        missing = Check("signer", Status.FAIL, "it is not signed, and you asked for a signer")
        return [missing] if trusted.asked else [], Standing()
    try:
        data = folder.read(attest.NAME, attest.MAX_BYTES)
        attested = attest.read(data, sha256, trusted.names)
    except BROKEN as error:
        return [Check("signature", Status.FAIL, reason(error))], Standing()
    findings = Findings("signature")
    for problem in attested.problems:
        findings.add(shown(problem))
    statements = attested.statements
    for statement in statements:
        findings.add(_problem(statement, record, sha256, folder))
    if findings.count:
        return [findings.check("")], Standing()
    passed = f"{len(statements):,} valid: {few(_in_words(statements, trusted))}"
    checks = [findings.check(passed), *_timestamps(statements, trusted, authorities)]
    checks += _listed(statements, trusted)
    standing = _standing(statements, trusted, sealer)
    if folder.is_public:
        checks += _publication(statements, trusted)
        standing = _public_standing(statements, standing, trusted)
    return checks, standing


def _timestamps(
    statements: list[Statement], trusted: Trust, authorities: Sequence[Any]
) -> list[Check]:
    """Check the signatures' timestamps by the authorities that the reader trusts."""
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


def _publication(statements: list[Statement], trusted: Trust) -> list[Check]:
    """Warn, or fail if a signer was asked for, where nobody on the list signed what a public pack
    holds beside the record; warn where it was not the record's signer."""
    publications = [s for s in statements if s.kind == PUBLICATION]
    packers = {name for _, name in _by_listed(publications, trusted)}
    if packers:
        evaluations = [s for s in statements if s.kind == EVALUATION]
        authors = {name for _, name in _by_listed(evaluations, trusted)}
        if packers & authors or not evaluations:
            return []
        word = f"its public form is the word of {few(packers)}"
        return [Check("signer", Status.WARN, word, caveat=word)]
    signed = "by nobody on your list" if publications else "by nobody"
    what = f"the record is signed, but the public form of its samples {signed}"
    return [Check("signer", Status.FAIL if trusted.asked else Status.WARN, what)]


def _public_standing(statements: list[Statement], standing: Standing, trusted: Trust) -> Standing:
    """Return who vouches for a public pack: nobody, unless somebody on the list packed it."""
    publications = [s for s in statements if s.kind == PUBLICATION]
    return standing if _by_listed(publications, trusted) else Standing(unlisted=standing.unlisted)


def _about(statement: Statement, record: Record, folder: Folder) -> dict[str, str]:
    if statement.kind == EVALUATION:
        return sha256s(record["files"])
    if statement.kind == PUBLICATION:
        return {name: folder.sha256(name) for name in (HEAD, LINES)}
    return {}


def _problem(statement: Statement, record: Record, sha256: str, folder: Folder) -> str:
    try:
        return _contradiction(statement, record, sha256, folder)
    except BROKEN as error:
        return reason(error)


def _contradiction(statement: Statement, record: Record, sha256: str, folder: Folder) -> str:
    subjects = {name: sha for name, sha in statement.subjects.items() if name != "record.json"}
    about = _about(statement, record, folder)
    signers = few([key.fingerprint for key in statement.signers])
    if subjects != about:
        return f"the statement of {signers} is about other files"
    if statement.predicate != attest.predicate(record, statement.kind, statement.claim):
        return f"the statement of {signers} says other things than the record"
    if _is_authors(statement) == ("verdict" in statement.claim):
        return f"the statement of {signers} claims what its kind does not"
    wrong = claim_problem(statement, record, sha256) or _sample_problem(statement, folder)
    return f"the claim of {signers} can't be true: {wrong}" if wrong else ""


def _sample_problem(statement: Statement, folder: Folder) -> str:
    """Say if a reproduction of a sample tells of more answers than the record's plan asks for."""
    claimed = statement.claim.get("samples", 0)
    if statement.kind != REPRODUCTION or "record" in statement.claim or folder.is_public:
        return ""
    try:
        plan = folder.json("plan.json", plans.MAX_PLAN)
        answers = sum(len(batch["targets"]) for batch in plan["batches"])
    except BROKEN:
        return ""  # which the check of the plan says
    return f"{claimed:,} answers of a record with {answers:,}" if claimed > answers else ""


def _is_authors(statement: Statement) -> bool:
    return statement.kind in (EVALUATION, PUBLICATION)


def _in_words(statements: list[Statement], trusted: Trust) -> list[str]:
    """Return each signature as text: `audited by bob`."""
    return [
        f"{_WORDS[statement.kind]} by {trusted.name(key)}"
        for statement in statements
        for key in statement.signers
    ]


def _listed(statements: list[Statement], trusted: Trust) -> list[Check]:
    """Return a check if nobody on the list signed, and one for each audit or reproduction by
    somebody on it that came out against the record."""
    checks = []
    signers = {key for statement in statements for key in statement.signers}
    if not signers & trusted.names.keys():
        names = few([key.fingerprint for key in signers])
        status = Status.FAIL if trusted.asked else Status.WARN
        checks.append(
            Check("signer", status, f"valid, but the signer is not on your list: {names}")
        )
    for statement, name in _by_listed(statements, trusted):
        verdict = statement.claim.get("verdict")
        if verdict in _BAD.get(statement.kind, ()):
            what = "audit" if statement.kind == AUDIT else "reproduction"
            detail = f"the {what} by {name} came out {verdict}"
            checks.append(Check("dispute", Status.FAIL, detail))
    return checks


def _by_listed(statements: list[Statement], trusted: Trust) -> list[tuple[Statement, str]]:
    """Return each signature by a key on the list as the statement and the signer's name."""
    return [
        (statement, trusted.name(key))
        for statement in statements
        for key in statement.signers
        if key in trusted.names
    ]


def _standing(statements: list[Statement], trusted: Trust, sealer: Public | None) -> Standing:
    """Return who vouches for the record, by the reader's list alone. A witness whose key or name
    also made the author's statement or the seal is the author."""
    own = [s for s in statements if _is_authors(s)]
    signed = {key for statement in own for key in statement.signers}
    author_keys = signed | ({sealer} if sealer else set())
    authors = {name for statement, name in _by_listed(own, trusted)}
    author_names = {name for key in author_keys for name in trusted.people(key)}
    seen: dict[str, dict[str, Seen]] = {AUDIT: {}, REPRODUCTION: {}}
    for statement in statements:
        if statement.claim.get("verdict") in _GOOD.get(statement.kind, ()):
            for key in statement.signers:
                is_author = key in author_keys or trusted.people(key) & author_names
                if key in trusted.names and not is_author:
                    made = Seen({key.fingerprint: _samples(statement)})
                    by_name, name = seen[statement.kind], trusted.name(key)
                    by_name[name] = made.merged(by_name.get(name))
    unlisted = {key.fingerprint for key in signed - trusted.names.keys()}
    if not own:
        return Standing(unproven={**seen[AUDIT], **seen[REPRODUCTION]})
    return Standing(authors, seen[AUDIT], seen[REPRODUCTION], unlisted)


def _samples(statement: Statement) -> int | None:
    """Return how many samples a witness has seen by a statement; None for the whole record."""
    whole = statement.kind == REPRODUCTION and "record" in statement.claim
    return None if whole else int(statement.claim["samples"])
