"""Signing: statements that others can check, and what is made of theirs."""

import base64
import copy
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runs
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from runs import Run
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey
from support import call

from evalkit.base import schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.scoring import rescore
from evalkit.judge.verify import Report, Status, Trust, Wanted, trust, verify
from evalkit.record.signing import attest, keys

DOCUMENTS = sum(map(len, runs.DOCUMENTS.values()))
BITWISE = {"verdict": "BITWISE", "answers": Run().record["ids"]["answers"], "record": "1" * 64}


def audited(samples: int = DOCUMENTS, **more: Any) -> dict[str, Any]:
    """What somebody claims who audited so many samples."""
    share = 1 - 0.05 ** (1 / max(samples, 1))
    claim = {"verdict": "PASSED", "samples": samples, "failed": 0, "seed": 7, "share": share}
    return {**claim, "difference": "rounding", **more}


PASSED = audited()


@pytest.fixture(autouse=True)
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring is not the matter here."""
    monkeypatch.setattr(rescore, "installed", lambda: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    return Run().write(tmp_path / "run")


def new() -> keys.Private:
    """A key."""
    return keys.Private(Ed25519PrivateKey.generate())


def knows(**people: keys.Private) -> Wanted:
    """A list of signers."""
    return Wanted(Trust({key.public: name for name, key in people.items()}, asked=True))


def body(run: Path) -> Any:
    """What is in a run's attestation.json."""
    return json.loads((run / attest.NAME).read_text())


def put(run: Path, value: Any) -> None:
    """Replace it."""
    (run / attest.NAME).write_text(json.dumps(value))


def details(report: Report, name: str) -> str:
    """What the checks of that name say."""
    return "; ".join(check.detail for check in report.checks if check.name == name)


def failed(report: Report) -> set[str]:
    """The names of the failing checks."""
    return {check.name for check in report.checks if check.status is Status.FAIL}


# who is known to have seen a run


def test_an_unsigned_record_is_consistent_and_no_more(run: Path) -> None:
    report = verify(run)
    told = "CONSISTENT: nothing in it contradicts itself; only its author saw it"
    assert report.verdict.startswith(f"{told}; the lock is the author's word")
    assert not details(report, "signature") + details(report, "signer")


def test_a_record_signed_by_somebody_on_the_list_is_signed(run: Path) -> None:
    alice = new()
    attest.sign(run, alice)
    report = verify(run, knows(alice=alice))
    assert report.exit_code is Exit.OK
    assert report.verdict.startswith("SIGNED by alice: ")


def test_a_signer_on_no_list_is_called_that_and_raises_no_verdict(run: Path) -> None:
    alice = new()
    attest.sign(run, alice)
    report = verify(run)
    assert report.exit_code is Exit.OK
    assert "valid, but the signer is not on your list: SHA256:" in details(report, "signer")
    assert report.verdict.startswith("CONSISTENT: ") and "is not on your list" in report.verdict


def test_where_there_is_a_list_somebody_on_it_must_have_signed(run: Path) -> None:
    unsigned = verify(run, knows(bob=new()))
    assert failed(unsigned) == {"signer"} and unsigned.exit_code is Exit.FAILED
    attest.sign(run, new())
    report = verify(run, knows(bob=new()))
    assert failed(report) == {"signer"} and report.exit_code is Exit.FAILED
    assert report.verdict.startswith("UNMET: nothing in it contradicts itself")


def test_several_sign_one_record(run: Path) -> None:
    alice, bob = new(), new()
    attest.sign(run, alice)
    attest.sign(run, bob)
    attest.sign(run, alice)  # again: nothing new
    assert len(body(run)["envelopes"]) == 2
    report = verify(run, knows(alice=alice, bob=bob))
    assert report.verdict.startswith("SIGNED by alice, bob: ")


@pytest.mark.parametrize(
    ("kind", "claim", "verdict"),
    [
        (attest.AUDIT, PASSED, f"WITNESSED by bob ({DOCUMENTS} samples); signed"),
        (attest.AUDIT, audited(3), "WITNESSED by bob (3 samples); signed"),
        (attest.REPRODUCTION, BITWISE, "REPRODUCED by bob"),
    ],
)
def test_anothers_statement_is_the_strongest_that_is_known(
    run: Path, kind: str, claim: dict[str, Any], verdict: str
) -> None:
    alice, bob = new(), new()
    attest.sign(run, alice)
    attest.sign(run, bob, kind, claim)
    report = verify(run, knows(alice=alice, bob=bob))
    assert report.verdict.startswith(verdict) and "; signed by alice; the lock" in report.verdict
    unknown = verify(run, knows(alice=alice))
    assert unknown.verdict.startswith("SIGNED by alice")


def test_nobody_is_a_witness_of_himself(run: Path) -> None:
    """Neither with the key that signed the record nor with another one of the same name."""
    alice, second = new(), new()
    attest.sign(run, alice)
    attest.sign(run, alice, attest.REPRODUCTION, BITWISE)
    attest.sign(run, second, attest.AUDIT, PASSED)
    names = {alice.public: "alice", second.public: "alice"}
    report = verify(run, Wanted(Trust(names, asked=True)))
    assert report.verdict.startswith("SIGNED by alice: ")


def test_a_person_who_is_listed_by_several_names_is_no_witness_of_himself(
    run: Path, tmp_path: Path
) -> None:
    """By two names on one line, by one name in two ways, by a key that is listed twice."""
    alice, second = new(), new()
    attest.sign(run, alice)
    attest.sign(run, second, attest.AUDIT, PASSED)
    one, two = alice.public.openssh, second.public.openssh
    for lines in (
        [f"alice@lab,alice {one}", f"alice {two}"],
        [f"Alice {one}", f"alice {two}"],
        [f"alice {one}", f"alice {two}", f"bob {two}"],
    ):
        allowed = tmp_path / "signers"
        allowed.write_text("\n".join(lines))
        verdict = verify(run, Wanted(trust([], allowed))).verdict
        assert verdict.startswith("SIGNED by"), f"{lines}: {verdict}"


def test_a_policys_number_of_samples_is_asked_of_each_key(run: Path) -> None:
    """One key of a witness had seen all, the other one sample."""
    alice, one, two = new(), new(), new()
    attest.sign(run, alice)
    attest.sign(run, one, attest.AUDIT, audited(9))
    attest.sign(run, two, attest.AUDIT, audited(1))
    names = {alice.public: "alice", one.public: "bob", two.public: "bob"}
    known = Wanted(Trust(names, asked=True))
    for rule, met in (({"samples": 9, "keys": 2}, False), ({"samples": 1, "keys": 2}, True)):
        report = verify(run, replace(known, policy={"name": "mine", "witnessed": rule}))  # type: ignore[typeddict-item]
        assert report.consistent is met, report.verdict
    attest.sign(run, one, attest.REPRODUCTION, {"verdict": "BITWISE", "samples": 3})
    report = verify(run, replace(known, policy={"name": "mine", "witnessed": {"samples": 9}}))
    assert report.consistent, "what a key has seen more is not forgotten"


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        (attest.AUDIT, audited(5, verdict="FAILED", failed=2, difference="answers")),
        (attest.REPRODUCTION, {"verdict": "DIFFERENT", "samples": 9, "failed": 3}),
    ],
)
def test_a_statement_that_refutes_the_record_disputes_it(
    run: Path, kind: str, claim: dict[str, Any]
) -> None:
    bob = new()
    attest.sign(run, bob, kind, claim)
    report = verify(run, knows(bob=bob))
    assert report.exit_code is Exit.FAILED
    assert report.verdict.startswith("DISPUTED: ") and claim["verdict"] in report.verdict
    assert verify(run).exit_code is Exit.OK  # anybody can write such a thing


def test_an_inconclusive_reproduction_is_none(run: Path) -> None:
    bob = new()
    attest.sign(run, bob, attest.REPRODUCTION, {"verdict": "INCONCLUSIVE", "samples": 9})
    assert verify(run, knows(bob=bob)).verdict.startswith("CONSISTENT")


OTHER = {"answers": "sha256:" + "2" * 64, "record": "1" * 64}


@pytest.mark.parametrize(
    ("kind", "claim", "words"),
    [
        (attest.AUDIT, audited(10, failed=6), "difference of rounding with 6 of 10"),
        (attest.AUDIT, audited(10, failed=11), "11 of 10 samples failed"),
        (attest.AUDIT, audited(0), "0 samples of a record with 14"),
        (attest.AUDIT, audited(300), "300 samples of a record with 14"),
        (attest.AUDIT, audited(10, share=0.01), "10 samples show another share than 0.01"),
        (attest.AUDIT, audited(10, difference="answers", failed=6), "PASSED with a difference of"),
        (attest.AUDIT, {"verdict": "PASSED"}, "other things than an audit does"),
        (attest.AUDIT, {"verdict": "BITWISE", "samples": 3}, "is no verdict of its kind"),
        (attest.REPRODUCTION, {"verdict": "BITWISE"}, "BITWISE of no answers"),
        (attest.REPRODUCTION, {"verdict": "BITWISE", **OTHER}, "BITWISE with other answers"),
        (attest.REPRODUCTION, BITWISE | {"verdict": "ANSWERS"}, "with these very answers"),
        (attest.REPRODUCTION, BITWISE | {"samples": 9, "failed": 1}, "BITWISE with 1 answers"),
        (attest.REPRODUCTION, {"verdict": "REPRODUCED", **OTHER}, "REPRODUCED without a margin"),
        (attest.REPRODUCTION, {"verdict": "REPRODUCED", "margin": 0.5, **OTHER}, "margin of 0.5"),
        (
            attest.REPRODUCTION,
            {"verdict": "REPRODUCED", "margin": 10**400, **OTHER},
            "too large",  # it was a traceback
        ),
        (attest.REPRODUCTION, {"verdict": "PASSED", **OTHER}, "is no verdict of its kind"),
        (
            attest.REPRODUCTION,
            {"verdict": "BITWISE", "samples": 10**15},
            "answers of a record with",
        ),
        (attest.REPRODUCTION, {"verdict": "ANSWERS", "samples": 5}, "ANSWERS of a sample"),
        (
            attest.REPRODUCTION,
            {"verdict": "REPRODUCED", "samples": 5, "failed": 5, "margin": 0.05},
            "REPRODUCED of a sample",
        ),
        (
            attest.REPRODUCTION,
            {"verdict": "NUMERICS", "samples": 1, **OTHER},
            "NUMERICS by 1 answers to 14 documents",
        ),
        (
            attest.REPRODUCTION,
            {"verdict": "DIFFERENT", "samples": 9},
            "DIFFERENT with no answer apart",
        ),
    ],
)
def test_a_statement_that_contradicts_itself_or_the_record_breaks_it(
    run: Path, kind: str, claim: dict[str, Any], words: str
) -> None:
    """Each raised the last line, or disputed the record."""
    alice, bob = new(), new()
    attest.sign(run, alice)
    attest.sign(run, bob, kind, claim)
    report = verify(run, knows(alice=alice, bob=bob))
    assert report.verdict.startswith("BROKEN") and words in details(report, "signature")


def test_who_alone_signed_a_record_is_no_witness_of_it(run: Path) -> None:
    """The author's own statement left out, an audit signed instead."""
    bob, carol = new(), new()
    attest.sign(run, bob, attest.AUDIT, PASSED)
    report = verify(run, knows(bob=bob))
    assert report.verdict.startswith("CONSISTENT: ") and "by one key only: bob" in report.verdict
    attest.sign(run, carol, attest.REPRODUCTION, BITWISE)
    report = verify(run, knows(bob=bob, carol=carol))
    assert report.verdict.startswith("CONSISTENT: ") and "by no author" in report.verdict
    attest.sign(run, new())
    report = verify(run, knows(bob=bob, carol=carol))
    assert report.verdict.startswith(
        "REPRODUCED by carol; witnessed by bob (14 samples); signed by a key that is not on your"
    )


def test_the_last_line_counts_keys_and_a_policy_asks_for_numbers(run: Path) -> None:
    alice, bob, carol = new(), new(), new()
    attest.sign(run, alice)
    attest.sign(run, bob, attest.AUDIT, audited(4))
    attest.sign(run, carol, attest.AUDIT, audited(9))
    everybody = knows(alice=alice, bob=bob, carol=carol)
    told = "WITNESSED by bob (4 samples), carol (9 samples), by 2 keys; signed by alice"
    assert verify(run, everybody).verdict.startswith(told)
    again = shutil.copytree(run, run.with_name("again"))
    dave = new()
    attest.sign(again, dave, attest.REPRODUCTION, BITWISE)
    told = f"REPRODUCED by dave; {told.replace('WITNESSED', 'witnessed')}"
    known = knows(alice=alice, bob=bob, carol=carol, dave=dave)
    assert verify(again, known).verdict.startswith(told), "nobody who saw it is left out"
    asked: list[tuple[Any, str]] = [
        ({"samples": 9}, ""),
        ({"samples": 10}, "not witnessed by anybody on your list with 10 samples"),
        ({"keys": 2}, ""),
        ({"keys": 2, "samples": 5}, "witnessed with 5 samples by 1 of 2 keys"),
        ({"names": ["bob"], "samples": 5}, "not witnessed by bob with 5 samples"),
        (["carol"], ""),
    ]
    for rule, words in asked:
        policy = {"name": "mine", "witnessed": rule}
        assert not schema.check("policy", policy)
        report = verify(run, replace(everybody, policy=policy))
        assert words in details(report, "policy") and (words == "") == report.consistent


# what breaks


def change_record(run: Path) -> None:
    """A field that nothing else in the folder vouches for."""
    record = runs.read_record(run)
    record["code"]["commit"] = "f" * 40
    (run / "record.json").write_text(json.dumps(record))


def other_bytes(value: Any) -> None:
    payload = base64.b64decode(value["envelopes"][0]["payload"])
    payload = payload.replace(b'"suite":"tiny"', b'"suite":"full"')
    value["envelopes"][0]["payload"] = base64.b64encode(payload).decode()


def other_type(value: Any) -> None:
    value["envelopes"][0]["payloadType"] = "text/plain"


def other_signature(value: Any) -> None:
    value["envelopes"][0]["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()


def other_key(value: Any) -> None:
    (keyid,) = value["keys"]
    value["keys"][keyid] = new().public.openssh


def no_key(value: Any) -> None:
    value["keys"] = {}


def no_signature(value: Any) -> None:
    value["envelopes"][0]["signatures"] = []


def no_statement(value: Any) -> None:
    value["envelopes"] = []


def signed_twice(value: Any) -> None:
    value["envelopes"][0]["signatures"] *= 2


def loose_base64(value: Any) -> None:
    """The unused bits of base64's last character: other text, the same bytes."""
    entry = value["envelopes"][0]["signatures"][0]
    assert entry["sig"].endswith("==")
    last = entry["sig"][-3]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    entry["sig"] = f"{entry['sig'][:-3]}{alphabet[alphabet.index(last) ^ 1]}=="


def more(value: Any) -> None:
    value["envelopes"][0]["comment"] = "trust me"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_bytes, "is not valid"),
        (other_type, "is not valid"),
        (other_signature, "is not valid"),
        (other_key, "is not the one of that id"),
        (no_key, "neither here nor on your list"),
        (no_signature, "signatures"),
        (no_statement, "envelopes"),
        (signed_twice, "one key signed it twice"),
        (loose_base64, "is not canonical base64"),
        (more, "Additional properties"),
    ],
)
def test_a_changed_envelope_breaks_the_record(
    run: Path, change: Callable[[Any], None], words: str
) -> None:
    attest.sign(run, new())
    value = body(run)
    change(value)
    put(run, value)
    report = verify(run)
    assert failed(report) == {"signature"}
    assert words in details(report, "signature")
    assert report.verdict.startswith("BROKEN")


def test_a_changed_record_is_not_the_one_that_was_signed(run: Path) -> None:
    alice = new()
    attest.sign(run, alice)
    change_record(run)
    report = verify(run, knows(alice=alice))
    assert failed(report) == {"signature"}
    assert "it is about another record.json" in details(report, "signature")


def test_a_signature_of_another_run_is_no_signature_of_this_one(run: Path, tmp_path: Path) -> None:
    other = Run(limit=2).write(tmp_path / "other")
    attest.sign(other, new())
    shutil.copy(other / attest.NAME, run / attest.NAME)
    assert failed(verify(run)) == {"signature"}


def sealed(run: Path, change: Callable[[Any], None]) -> None:
    """Sign a changed statement: its author means it."""
    key = new()
    path = attest.sign(run, key)
    value = body(run)
    statement = json.loads(base64.b64decode(value["envelopes"][0]["payload"]))
    change(statement)
    value["envelopes"] = [attest.seal(statement, key)]
    path.write_text(json.dumps(value))


def drop_subject(statement: Any) -> None:
    statement["subject"].pop(0)


def no_subjects(statement: Any) -> None:
    statement["subject"] = []


def escape(statement: Any) -> None:
    statement["subject"][0]["name"] = "../plan.json"


def twice(statement: Any) -> None:
    statement["subject"].append(statement["subject"][0])


def other_digest(statement: Any) -> None:
    statement["subject"][0]["digest"]["sha256"] = "0" * 64


def sha1_as_well(statement: Any) -> None:
    statement["subject"][0]["digest"]["sha1"] = "0" * 40


def more_samples(statement: Any) -> None:
    statement["predicate"]["sampleSize"] += 1


def own_audit(statement: Any) -> None:
    statement["predicate"]["claim"] = {"verdict": "PASSED"}


def unknown_kind(statement: Any) -> None:
    statement["predicateType"] = "https://example.org/other"


def higher_level(statement: Any) -> None:
    statement["predicate"]["assuranceLevel"] = "reproduced"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_subject, "about other files"),
        (no_subjects, "subject"),
        (escape, "does not match"),
        (twice, "names a subject twice"),
        (other_digest, "about other files"),
        (sha1_as_well, "Additional properties"),
        (more_samples, "says other things than the record"),
        (own_audit, "claims what its kind does not"),
        (unknown_kind, "predicateType"),
        (higher_level, "says other things than the record"),
    ],
)
def test_a_statement_that_is_not_of_the_record_breaks_it(
    run: Path, change: Callable[[Any], None], words: str
) -> None:
    sealed(run, change)
    report = verify(run)
    assert failed(report) == {"signature"}
    assert words in details(report, "signature")


def test_a_payload_with_a_key_twice_is_refused_though_its_signature_is_valid(run: Path) -> None:
    key = new()
    attest.sign(run, key)
    value = body(run)
    payload = base64.b64decode(value["envelopes"][0]["payload"])
    payload = b'{"_type":"x",' + payload[1:]
    signature = key.sign(attest.pae(attest.PAYLOAD_TYPE, payload))
    value["envelopes"][0] |= {
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    put(run, value)
    assert "duplicate keys _type" in details(verify(run), "signature")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"schema":1}', "\xff"])
def test_an_attestation_that_is_none_is_a_failure_and_not_a_crash(run: Path, text: str) -> None:
    (run / attest.NAME).write_bytes(text.encode("latin-1"))
    assert failed(verify(run)) == {"signature"}


def test_an_attestation_behind_a_link_is_not_read(run: Path, tmp_path: Path) -> None:
    attest.sign(run, new())
    (run / attest.NAME).rename(tmp_path / "moved.json")
    (run / attest.NAME).symlink_to(tmp_path / "moved.json")
    assert "signature" in failed(verify(run))


def test_a_record_whose_files_are_others_is_not_signed(run: Path) -> None:
    (run / "plan.json").write_text("{}")
    with pytest.raises(EvalkitError, match=r"plan\.json is not the file that record\.json lists"):
        attest.sign(run, new())
    assert not (run / attest.NAME).exists()


# others' tools


def foreign(key: keys.Private) -> SSlibKey:
    """A key of ours as securesystemslib has it, under the id that our envelopes name."""
    scheme = "ed25519"
    value = {"public": key.public.raw.hex()}
    return SSlibKey(key.public.id, scheme, scheme, value)


def test_an_envelope_of_ours_verifies_with_securesystemslib(run: Path) -> None:
    alice = new()
    attest.sign(run, alice)
    envelope = Envelope.from_dict(copy.deepcopy(body(run)["envelopes"][0]))
    accepted = envelope.verify([foreign(alice)], 1)
    assert list(accepted) == [alice.public.id]
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    names = {subject["name"] for subject in statement["subject"]}
    assert names == {"record.json", *runs.read_record(run)["files"]}


def test_an_envelope_of_securesystemslibs_verifies_with_us(run: Path) -> None:
    """Its keyid is made otherwise than ours."""
    secret = Ed25519PrivateKey.generate()
    alice, signer = keys.Private(secret), CryptoSigner(secret)
    attest.sign(run, alice)
    value = body(run)
    payload = base64.b64decode(value["envelopes"][0]["payload"])
    envelope = Envelope(payload, attest.PAYLOAD_TYPE, {})
    envelope.sign(signer)
    assert envelope.to_dict() != value["envelopes"][0]
    put(run, value | {"envelopes": [envelope.to_dict()]})
    report = verify(run, knows(alice=alice))
    assert report.verdict.startswith("SIGNED by alice")


def test_one_envelope_with_the_signatures_of_two(run: Path) -> None:
    first, second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    attest.sign(run, keys.Private(first))
    value = body(run)
    envelope = Envelope.from_dict(copy.deepcopy(value["envelopes"][0]))
    envelope.sign(CryptoSigner(second))
    put(run, value | {"envelopes": [envelope.to_dict()]})
    report = verify(run, knows(alice=keys.Private(first), bob=keys.Private(second)))
    assert report.verdict.startswith("SIGNED by alice, bob")


# keys


def test_a_new_key_is_for_its_owner_alone_and_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    public = keys.make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.private(path).public == public == keys.public(tmp_path / "mine.pub")
    with pytest.raises(EvalkitError, match="there is a file of that name"):
        keys.make(path)


def test_a_fingerprint_is_ssh_keygens(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen isn't installed")
    public = keys.make(tmp_path / "mine")
    told = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "mine.pub"], capture_output=True, text=True, check=True
    )
    assert public.fingerprint in told.stdout


@pytest.mark.parametrize("form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8])
@pytest.mark.parametrize("secret", [None, "wörd"])
def test_openssh_and_pem_keys_are_read_with_a_passphrase_and_without(
    tmp_path: Path, form: PrivateFormat, secret: str | None
) -> None:
    key = Ed25519PrivateKey.generate()
    locked = BestAvailableEncryption(secret.encode()) if secret else NoEncryption()
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, form, locked))
    found = keys.private(tmp_path / "key", (lambda: str(secret)) if secret else None)
    assert found.public == keys.Private(key).public
    if secret:
        with pytest.raises(EvalkitError, match="no key can be read"):
            keys.private(tmp_path / "key", lambda: "wrong")
        with pytest.raises(EvalkitError, match="has a passphrase"):
            keys.private(tmp_path / "key")


def test_a_pem_public_key_is_read(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    assert keys.public(tmp_path / "key.pem").raw == key.public_bytes_raw()


def test_other_files_than_the_right_half_of_an_ed25519_key_are_refused(tmp_path: Path) -> None:
    keys.make(tmp_path / "mine")
    other = generate_private_key(SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ec").write_bytes(pem)
    (tmp_path / "text").write_text("hello")
    for name, read, words in (
        ("mine.pub", keys.private, "this is a public key"),
        ("mine", keys.public, "this is a private key"),
        ("ec", keys.private, "not an ed25519 one"),
        ("text", keys.private, "no key can be read"),
        ("text", keys.public, "no public key can be read"),
        ("absent", keys.public, "can't read the key file"),
    ):
        with pytest.raises(EvalkitError, match=words):
            read(tmp_path / name)


def test_allowed_signers_gives_keys_their_names(tmp_path: Path) -> None:
    alice, bob, carol = (keys.make(tmp_path / name) for name in ("alice", "bob", "carol"))
    (tmp_path / "list").write_text(
        f"# ours\n\nalice@example.org {alice.openssh} her laptop\n"
        f'bob,bob@example.org namespaces="git,evalkit" {bob.openssh}\n'
        f'carol namespaces="git" {carol.openssh}\n'
        "dave ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC\n"
    )
    found = keys.allowed(tmp_path / "list")
    assert found == {alice: "alice@example.org", bob: "bob,bob@example.org"}
    given = trust([tmp_path / "carol.pub"], tmp_path / "list")
    assert given.asked and given.names == found | {carol: "carol"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alice", "not a line of allowed_signers"),
        ("alice ssh-ed25519", "not a line of allowed_signers"),
        ("alice ssh-ed25519 AAAA", "no public key"),
        ('alice valid-after="20260101" {key}', "valid-after can't be held against"),
        ("*@example.org cert-authority {key}", "cert-authority can't be held against"),
    ],
)
def test_a_list_that_asks_for_more_than_can_be_known_is_refused(
    tmp_path: Path, line: str, words: str
) -> None:
    key = keys.make(tmp_path / "key").openssh
    (tmp_path / "list").write_text(line.format(key=key) + "\n")
    with pytest.raises(EvalkitError, match=words):
        keys.allowed(tmp_path / "list")


# the commands


def test_sign_and_verify_as_the_command_line_does(run: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    made = call("sign", "--new-key", "--key", key).done()
    assert "SHA256:" in made.err and not made.out
    assert call("sign", run, "--key", key).done().out.splitlines()[-1] == str(run / attest.NAME)
    told = call("verify", run, "--key", f"{key}.pub").done()
    assert told.out.splitlines()[-1].startswith("SIGNED by key: ")
    other = tmp_path / "other"
    call("sign", "--new-key", "--key", other).done()
    assert call("verify", run, "--key", f"{other}.pub").code == 1
    call("sign", "--key", key).refused(2, "no run given")
    call("sign", tmp_path, "--key", key).refused(3, "no finished run here")
    assert os.fspath(tmp_path) not in (run / attest.NAME).read_text()
