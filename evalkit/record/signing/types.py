"""Statements about a record as types, with their envelopes: attestation.json and seal.json.

They mirror schemas/statement.schema.json, attestation.schema.json and seal.schema.json;
tests/test_record_types.py compares them.
"""

from typing import NotRequired, TypedDict

from evalkit.inputs.types import NumericsEntry
from evalkit.record.types import Ids, RunIds


class Sha256(TypedDict):
    """A digest of a subject."""

    sha256: str


class Subject(TypedDict):
    """A file that a statement is about."""

    name: str
    digest: Sha256


class Claim(TypedDict, total=False):
    """What an audit or a reproduction found; empty in the author's own statement."""

    verdict: str
    samples: int
    failed: int
    seed: int
    share: float
    difference: str
    margin: float
    answers: str
    record: str
    cause: str


class HarnessName(TypedDict):
    """The software that scored a run."""

    name: str
    version: str


class Predicate(TypedDict):
    """What a statement says of a record. All but the claim follows from the record."""

    assuranceLevel: str
    claim: Claim
    evaluatedAt: str
    execution: str
    harness: HarnessName
    ids: Ids
    model: str
    sampleSize: int
    suite: str


class StatementBody(TypedDict):
    """An in-toto Statement v1 about a record."""

    _type: str
    subject: list[Subject]
    predicateType: str
    predicate: Predicate


class Signature(TypedDict):
    """A signature over the payload of an envelope, and the id of its key."""

    keyid: str
    sig: str


class Envelope(TypedDict):
    """A DSSE envelope: a payload in base64 with its signatures."""

    payload: str
    payloadType: str
    signatures: list[Signature]


class AttestationBody(TypedDict):
    """The content of attestation.json. `keys`: public keys by id; `timestamps`: RFC 3161 tokens by
    the digest of the signature that they are of."""

    schema: str
    keys: dict[str, str]
    envelopes: list[Envelope]
    timestamps: NotRequired[dict[str, str]]


class SealedModel(TypedDict):
    """A sealed run's model, with the sha256 (hex) of each of its files."""

    reference: str
    files: dict[str, str]


class Before(TypedDict):
    """The executions of the sealed plan that the results folder's log held, how many lines it had,
    and the digest of its last line."""

    executions: list[str]
    lines: int
    log: str | None


class SealPredicate(TypedDict):
    """What a seal says of a run."""

    sealedAt: str
    execution: str
    ids: RunIds
    suite: str
    model: SealedModel
    numerics: NumericsEntry
    metrics: list[str]
    before: Before


class SealStatement(TypedDict):
    """An in-toto Statement v1 about a planned run."""

    _type: str
    subject: list[Subject]
    predicateType: str
    predicate: SealPredicate


class SealBody(TypedDict):
    """The content of seal.json."""

    schema: str
    key: str
    envelope: Envelope
    timestamp: str | None
