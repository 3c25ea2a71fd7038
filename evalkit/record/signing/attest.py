"""Statements about a record, signed: attestation.json.

A statement is an in-toto Statement v1 in a DSSE envelope, about a record.json (the author's own
also about every file that it lists): the author evaluated, a witness audited, or somebody
reproduced. Everything but the claim follows from the record and is recomputed. Envelopes are read
as hostile: signatures are checked over the decoded bytes before these are parsed.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.files import sha256s
from evalkit.record.reading import identity
from evalkit.record.reading.folder import Folder
from evalkit.record.signing import timestamps
from evalkit.record.signing.keys import Private, Public, Tries, parsed
from evalkit.record.signing.types import (
    AttestationBody,
    Claim,
    Envelope,
    Predicate,
    SealStatement,
    Signature,
    StatementBody,
)
from evalkit.record.types import Record

NAME = "attestation.json"
SCHEMA = "evalkit/attestation/1"
MAX_BYTES = 32 << 20  # a statement about 20,000 files has 3 MiB
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
EVALUATION = "urn:evalkit:statement:evaluation:1"
AUDIT = "urn:evalkit:statement:audit:1"
REPRODUCTION = "urn:evalkit:statement:reproduction:1"
PUBLICATION = "urn:evalkit:statement:publication:1"  # of a public pack's own files
LEVELS = {
    EVALUATION: "self_attested",
    PUBLICATION: "self_attested",
    AUDIT: "third_party",
    REPRODUCTION: "reproduced",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement whose every signature is valid; `subjects` are sha256 (hex) by file name."""

    kind: str
    subjects: dict[str, str]
    predicate: Predicate
    signers: tuple[Public, ...]
    stamped: tuple[tuple[Public, bytes, bytes], ...] = ()  # signer, signature, its timestamp

    @property
    def claim(self) -> Claim:
        """What an auditor or a reproducer found; empty for the author's own."""
        return self.predicate["claim"]


@dataclass(slots=True)
class Attested:
    """What an attestation.json holds: its statements, and what is wrong with the others."""

    statements: list[Statement] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def sign(folder: Path, key: Private, kind: str = EVALUATION, claim: Claim | None = None) -> Path:
    """Add a statement about the record in `folder` to its attestation.json; the file's path. `kind`
    is EVALUATION, AUDIT or REPRODUCTION, whose claim is as in schemas/statement.schema.json. The
    same statement by the same key is added once. Refuses a record that does not fit its schema or
    whose files are others."""
    identity.require(folder)
    data = _bytes(folder / "record.json")
    try:
        record: Record = canon.loads(data)
    except ValueError as error:
        raise EvalkitError(f"record.json is not readable: {error}", where=str(folder)) from None
    problems = schema.check("record", record) or _changed(folder, record)
    if problems:
        what = f"this record will not be signed: {problems[0]}"
        raise EvalkitError(what, where=str(folder), code=Exit.FAILED)
    body = statement(record, hashlib.sha256(data).hexdigest(), kind, claim or {})
    return add(folder, seal(body, key), key.public)


def statement(
    record: Record, sha256: str, kind: str, claim: Claim, files: dict[str, str] | None = None
) -> StatementBody:
    """The statement, unsigned, about a record whose record.json has this sha256; `files`: of a
    publication, sha256 (hex) by name."""
    subjects = {"record.json": sha256, **(files or {})}
    if kind == EVALUATION:
        subjects |= sha256s(record["files"])
    body: StatementBody = {
        "_type": STATEMENT,
        "subject": [{"name": n, "digest": {"sha256": subjects[n]}} for n in sorted(subjects)],
        "predicateType": kind,
        "predicate": predicate(record, kind, claim),
    }
    problems = schema.check("statement", body)
    assert not problems, f"the statement does not fit its schema: {problems[:3]}"
    return body


def predicate(record: Record, kind: str, claim: Claim) -> Predicate:
    """What a statement of this kind says of a record; names as in-toto's eval-result has them."""
    return {
        "assuranceLevel": LEVELS[kind],
        "evaluatedAt": record["created"],
        "execution": record["execution"],
        "harness": {
            "name": "lm-eval",
            "version": record["environment"]["packages"].get("lm_eval", "unknown"),
        },
        "ids": record["ids"],
        "model": record["model"]["reference"],
        "sampleSize": sum(task["n"] for task in record["tasks"].values()),
        "suite": record["suite"]["name"],
        "claim": claim,
    }


def seal(body: StatementBody | SealStatement, key: Private) -> Envelope:
    """A DSSE envelope with one signature over a statement."""
    payload = canon.dumps(body).encode()
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key.public.id, "sig": base64.b64encode(signature).decode()}],
    }


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def add(folder: Path, envelope: Envelope, signer: Public) -> Path:
    """Put an envelope into a folder's attestation.json, beside those that are there."""
    path = folder / NAME
    try:
        before = canon.read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        before = None
    except OSError as error:
        raise EvalkitError(f"can't read {NAME}: {error.strerror}", where=str(path)) from None
    canon.write_atomic(path, added(before, envelope, signer))
    return path


def added(before: bytes | None, envelope: Envelope, signer: Public) -> bytes:
    """The bytes of an attestation.json with one envelope more."""
    body: AttestationBody = {"schema": SCHEMA, "keys": {}, "envelopes": []}
    if before is not None:
        try:
            body = canon.loads(before)
            problems = schema.check("attestation", body)
        except (ValueError, RecursionError) as error:
            problems = [str(error)]
        if problems:
            raise EvalkitError(f"{NAME} is not one: {problems[0]}", fix="mend or remove it")
    if envelope not in body["envelopes"]:
        body["envelopes"].append(envelope)
    body["keys"][signer.id] = signer.openssh
    return canon.pretty(body).encode()


def read(data: bytes, sha256: str, known: Iterable[Public] = ()) -> Attested:
    """The statements in an attestation.json's bytes that are about the record of this sha256.
    Signatures are checked with `known` keys and with those that the file brings along: that a
    signature is valid says nothing of whose it is."""
    found = Attested()
    try:
        body = canon.loads(data)
        problems = schema.check("attestation", body)
    except (ValueError, RecursionError) as error:
        problems = [f"it is not readable JSON: {error}"]
    if problems:
        found.problems.append(problems[0])
        return found
    known_keys = {key.id: key for key in known}
    for keyid, text in body["keys"].items():
        try:
            key = parsed(text)
        except ValueError as error:
            found.problems.append(f"key {keyid[:12]}: {error}")
            continue
        if key.id != keyid:
            found.problems.append(f"key {keyid[:12]} is not the one of that id")
        known_keys[key.id] = key
    tries, stamps = Tries(), body.get("timestamps", {})
    for number, envelope in enumerate(body["envelopes"], 1):
        try:
            found.statements.append(_opened(envelope, sha256, known_keys, tries, stamps))
        except ValueError as error:
            found.problems.append(f"statement {number}: {error}")
    return found


def opened(
    envelope: Envelope, known: dict[str, Public], tries: Tries | None = None
) -> tuple[canon.Json, tuple[Public, ...]]:
    """What is in an envelope, and whose signatures of it are valid; ValueError where one is not, or
    it is no statement of in-toto's. The statement's own form is its reader's to check."""
    tries = tries or Tries()
    payload = _decoded(envelope["payload"], "payload")
    message = pae(envelope["payloadType"], payload)
    signers = tuple(_signer(each, message, known, tries) for each in envelope["signatures"])
    if len(set(signers)) != len(signers):
        raise ValueError("one key signed it twice")
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise ValueError("it is no in-toto statement")
    try:
        return canon.loads(payload), signers
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _opened(
    envelope: Envelope, sha256: str, known: dict[str, Public], tries: Tries, stamps: dict[str, str]
) -> Statement:
    """Return the statement in an envelope; ValueError says what is wrong with either."""
    body, signers = opened(envelope, known, tries)
    if problems := schema.check("statement", body):
        raise ValueError(problems[0])
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in body["subject"]}
    if len(subjects) != len(body["subject"]):
        raise ValueError("it names a subject twice")
    if subjects.get("record.json") != sha256:
        raise ValueError("it is about another record.json")
    signatures = [_decoded(each["sig"], "signature") for each in envelope["signatures"]]
    stamped = tuple(
        (signer, signature, _decoded(stamps[timestamps.digest(signature)], "timestamp"))
        for signer, signature in zip(signers, signatures, strict=True)
        if timestamps.digest(signature) in stamps
    )
    return Statement(body["predicateType"], subjects, body["predicate"], signers, stamped)


def _signer(signature: Signature, message: bytes, known: dict[str, Public], tries: Tries) -> Public:
    """Return who made a signature. Its keyid is a hint, so without a match all keys are tried."""
    raw = _decoded(signature["sig"], "signature")
    named = known.get(signature["keyid"])
    for key in [named] if named else known.values():
        tries.take(message)
        if key.verifies(raw, message):
            return key
    if named:
        raise ValueError(f"the signature of {named.fingerprint} is not valid")
    raise ValueError("it is signed with a key that is neither here nor on your list")


def _decoded(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(f"its {what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError(f"its {what} is not canonical base64")
    return data


def _changed(folder: Path, record: Record) -> list[str]:
    return [
        f"{name} is not the file that record.json lists"
        for name, entry in sorted(record["files"].items())
        if _sha256(folder, name) != entry["sha256"]
    ]


def _sha256(folder: Path, name: str) -> str:
    """Return the sha256 of a plain file in the folder; nothing for any other."""
    try:
        return Folder(folder).sha256(name)
    except (OSError, EvalkitError):
        return ""


def _bytes(path: Path) -> bytes:
    try:
        return Folder(path.parent).read(path.name, MAX_BYTES)
    except (OSError, EvalkitError):
        raise EvalkitError(
            "there is no finished record here", where=str(path.parent), code=Exit.MISSING
        ) from None
