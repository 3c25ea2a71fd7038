"""A seal: what is going to be asked of which model, signed before the first answer.

The plan fixes every prompt before anything runs. seal.json in the run's folder holds a signed
statement over run.json, the plan and the lock, with what the results folder's log held then. A
record lists the file, and `verify` compares the two. What an author tried elsewhere it can't
show.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import now
from evalkit.record import auditlog
from evalkit.record.reading.folder import Folder, foreign
from evalkit.record.signing import attest, timestamps
from evalkit.record.signing.keys import Private, Public, parsed
from evalkit.record.signing.types import Before, SealBody, SealPredicate, SealStatement
from evalkit.record.types import RunBody

NAME = "seal.json"
SCHEMA = "evalkit/seal/1"
KIND = "urn:evalkit:statement:seal:1"
FILES = ("lock.yaml", "plan.json", "plan.tokens", "run.json")
MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal whose signature is valid: who signed what, the signature, and a timestamp of it."""

    signer: Public
    subjects: dict[str, str]
    predicate: SealPredicate
    signature: bytes
    timestamp: bytes | None


def seal(
    run: Path, key: Private, metrics: Sequence[str] = (), authority: str | None = None
) -> Path:
    """Write a planned run's seal.json; its path. `metrics`: those meant, `TASK:METRIC` each (none:
    all); `authority`: the address of a timestamp authority. EvalkitError (1) where the run is
    sealed, or has an answer already."""
    with foreign(run):
        folder = Folder(run)
        if folder.holds(NAME):
            raise EvalkitError("this run is sealed already", where=str(run), code=Exit.FAILED)
        if folder.holds("record.json") or any((run / "journal").glob("*")):
            what = "this run has answers already, so it can't be sealed before the first"
            fix = "plan another: evalkit plan ... --again"
            raise EvalkitError(what, where=str(run), fix=fix, code=Exit.FAILED)
        planned: RunBody = folder.json("run.json", attest.MAX_BYTES)
        files = {name: folder.sha256(name) for name in FILES}
        made = statement(planned, files, metrics, _before(run, planned))
    if problems := schema.check("seal", made):
        raise EvalkitError(f"this run can't be sealed: {problems[0]}", where=str(run))
    envelope = attest.seal(made, key)
    token = None
    if authority:
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        given = timestamps.ask(authority, signature)
        timestamps.wait_until_past(given, authority)  # what comes next is later beyond doubt
        token = base64.b64encode(given).decode()
    body: SealBody = {
        "schema": SCHEMA, "key": key.public.openssh, "envelope": envelope, "timestamp": token,
    }  # fmt: skip
    canon.write_json(run / NAME, body)
    return run / NAME


def statement(
    body: RunBody, files: dict[str, str], metrics: Sequence[str], before: Before
) -> SealStatement:
    """What a seal says of a run's run.json."""
    inputs = body["inputs"]
    return {
        "_type": attest.STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)],
        "predicateType": KIND,
        "predicate": {
            "sealedAt": now(),
            "execution": body["execution"],
            "ids": body["ids"],
            "suite": body["suite"]["name"],
            "model": {"reference": body["model"]["reference"], "files": inputs["model"]},
            "numerics": inputs["numerics"],
            "metrics": sorted(metrics),
            "before": before,
        },
    }


def _before(run: Path, body: RunBody) -> Before:
    path = run.absolute().parent.parent / auditlog.NAME
    lines = canon.read_bytes(path, 256 << 20).splitlines() if path.is_file() else []
    return {
        "executions": auditlog.executions_of(body["ids"]["plan"], lines),
        "lines": len(lines),
        "log": canon.digest_bytes(lines[-1]) if lines else None,
    }


def stamp(folder: Path, signer: Public, authority: str) -> None:
    """Add a timestamp, by the authority at this address, to each signature by a key that has none
    yet in a folder's attestation.json."""
    body = canon.loads(canon.read_bytes(folder / attest.NAME, attest.MAX_BYTES))
    stamps = body.setdefault("timestamps", {})
    for envelope in body["envelopes"]:
        for each in envelope["signatures"]:
            signature = base64.b64decode(each["sig"])
            name = timestamps.digest(signature)
            if each["keyid"] == signer.id and name not in stamps:
                token = timestamps.ask(authority, signature)
                stamps[name] = base64.b64encode(token).decode()
    canon.write_json(folder / attest.NAME, body)


def check_clock(run: Path) -> None:
    """Stop a host whose clock is behind the seal of this run or its timestamp, before it answers
    anything: by the record the seal would be younger than the first answer, and the record BROKEN.
    Raises EvalkitError (3)."""
    with foreign(run):
        made = read(Folder(run))
        sealed_at = max(made.predicate["sealedAt"], _stamped_at(made))
    if (here := now()) <= sealed_at:
        raise EvalkitError(
            f"this host's clock says {here}, and the run was sealed at {sealed_at}",
            where=str(run),
            fix="set the clock of this host",
            code=Exit.MISSING,
        )


def _stamped_at(made: Seal) -> str:
    """Return when a seal was there at the latest by its timestamp; empty where that is unknown."""
    if made.timestamp is None:
        return ""
    try:
        return timestamps.claimed(made.timestamp)
    except ModuleNotFoundError:
        return ""


def read(folder: Folder, known: Iterable[Public] = ()) -> Seal:
    """The seal in a folder; ValueError or EvalkitError where it is none, or not validly signed."""
    body = folder.json(NAME, MAX_BYTES)
    if set(body) != {"schema", "key", "envelope", "timestamp"} or body["schema"] != SCHEMA:
        raise ValueError("it is no seal of this version")
    own = parsed(body["key"])
    made, signers = attest.opened(body["envelope"], {key.id: key for key in (*known, own)})
    if problems := schema.check("seal", made):
        raise ValueError(problems[0])
    if len(signers) != 1:
        raise ValueError("one key seals a run")
    token = body["timestamp"]
    try:
        stamp = None if token is None else base64.b64decode(token, validate=True)
    except (binascii.Error, TypeError):
        raise ValueError("its timestamp is not base64") from None
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in made["subject"]}
    signature = base64.b64decode(body["envelope"]["signatures"][0]["sig"])
    return Seal(signers[0], subjects, made["predicate"], signature, stamp)
