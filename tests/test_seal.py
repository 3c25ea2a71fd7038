"""A seal before the first answer, and timestamps by a real authority on loopback: `openssl ts`."""

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import support
from support import call

from bench.authority import Authority, certificates, served
from evalkit.harness.scoring import rescore
from evalkit.judge.verify import Report, Status, Trust, Wanted, judge, verify
from evalkit.record.signing import attest, keys, sealing, timestamps

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

pytestmark = pytest.mark.usefixtures("in_this_process")

pytest.importorskip("rfc3161_client")
if shutil.which("openssl") is None:
    pytest.skip("openssl is not here", allow_module_level=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """`openssl ts` behind a server on loopback."""
    with served(tmp_path_factory.mktemp("authority")) as it:
        yield it


@pytest.fixture(autouse=True)
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring is not the matter here."""
    monkeypatch.setattr(rescore, "installed", lambda: None)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key's file."""
    keys.make(tmp_path / "alice")
    return tmp_path / "alice"


def wanted(key: Path, authority: Authority | None) -> Wanted:
    """What a reader asks who trusts a key, and an authority."""
    roots = timestamps.authorities(authority.root) if authority else ()
    return Wanted(Trust({keys.public(key.with_suffix(".pub")): "alice"}, asked=True),
                  authorities=roots)  # fmt: skip


def check(report: Report, name: str) -> tuple[Status, str]:
    (found,) = [each for each in report.checks if each.name == name]
    return found.status, found.detail


def finished(run: Path, key: Path) -> Path:
    """The run executed, finished and signed, some time after its seal."""
    time.sleep(2.1)  # the authority is right to a second
    call("execute", run).done()
    call("finish", run)
    attest.sign(run, keys.private(key))
    return run


def test_a_sealed_run_says_so_where_a_timestamp_proves_the_order(
    tmp_path: Path, key: Path, authority: Authority
) -> None:
    run = support.planned(tmp_path)
    call("seal", run, "--key", key, "--timestamp", authority.address,
         "--metric", "demo_qa:acc").done()  # fmt: skip
    call("seal", run, "--key", key).refused(1, "sealed already")
    call("execute", run).done()
    assert call("finish", run).code == 0
    attest.sign(run, keys.private(key))
    call("sign", run, "--key", key, "--timestamp", authority.address).done()
    report = verify(run, wanted(key, authority))
    status, told = check(report, "seal")
    assert status is Status.PASS and "demo_qa:acc meant" in told and "timestamped 20" in told
    assert report.verdict.startswith("SIGNED by alice")
    assert "; SEALED by alice before the first answer" in report.verdict
    status, told = check(report, "timestamp")
    assert status is Status.PASS and "signed by alice at 20" in told
    for reader in (wanted(key, None), Wanted(authorities=wanted(key, authority).authorities)):
        verdict = verify(run, reader).verdict
        assert "SEALED" not in verdict and "said to be sealed by" in verdict
    words = ("--key", key.with_suffix(".pub"), "--tsa", authority.root)
    ran = call("verify", run, *words).done()
    assert "SEALED by alice before the first answer" in ran.out.splitlines()[-1]
    record = support.read(run)
    for segment in record["segments"]:  # begun when nobody can have
        segment["started"] = f"2199{segment['started'][4:]}"
        segment["segment"] = f"2199{segment['segment'][4:]}"
    support.write(run, record)
    (run / attest.NAME).unlink()
    report = verify(run, Wanted(authorities=wanted(key, authority).authorities))
    assert "older than its first segment" in check(report, "seal")[1]


@pytest.mark.trust  # waits until the authority's clock is sure of the order
def test_who_sealed_a_run_is_no_witness_of_it(
    tmp_path: Path, key: Path, authority: Authority
) -> None:
    """Alice seals and audits; her statement as the author is made with a key that nobody knows."""
    run = support.planned(tmp_path)
    call("seal", run, "--key", key, "--timestamp", authority.address).done()
    keys.make(tmp_path / "nobody")
    finished(run, tmp_path / "nobody")
    claim = {"verdict": "PASSED", "samples": 10, "failed": 0, "seed": 7,
             "share": 1 - 0.05 ** (1 / 10), "difference": "rounding"}  # fmt: skip
    attest.sign(run, keys.private(key), attest.AUDIT, claim)
    verdict = verify(run, wanted(key, authority)).verdict
    assert verdict.startswith("CONSISTENT: ") and "WITNESSED" not in verdict


def test_a_timestamp_is_told_of_the_key_whose_signature_it_is_of(
    tmp_path: Path, key: Path, authority: Authority
) -> None:
    """Of one envelope with two signatures only the second was ever seen by the authority."""
    run = support.finished(tmp_path)
    keys.make(tmp_path / "bob")
    first, second = keys.private(key), keys.private(tmp_path / "bob")
    attest.sign(run, first)
    path = run / attest.NAME
    body = json.loads(path.read_text())
    (envelope,) = body["envelopes"]
    message = attest.pae(envelope["payloadType"], base64.b64decode(envelope["payload"]))
    signature = second.sign(message)
    added = {"keyid": second.public.id, "sig": base64.b64encode(signature).decode()}
    envelope["signatures"].append(added)
    body["keys"][second.public.id] = second.public.openssh
    token = timestamps.ask(authority.address, signature)
    stamps = {timestamps.digest(signature): base64.b64encode(token).decode()}
    path.write_text(json.dumps(body | {"timestamps": stamps}))
    names = {first.public: "alice", second.public: "bob"}
    roots = timestamps.authorities(authority.root)
    report = verify(run, Wanted(Trust(names, asked=True), authorities=roots))
    assert check(report, "timestamp")[1].startswith("signed by bob at 20")


@pytest.mark.trust
def test_a_seal_that_tells_of_another_log_than_lies_beside_the_run_is_named(
    tmp_path: Path, key: Path
) -> None:
    """Sealed where no log lay, and put beside one that holds a run of the same plan."""
    results = support.finished(tmp_path).parent.parent
    alone = support.planned(tmp_path / "alone")
    call("seal", alone, "--key", key).done()
    honest = call("eval", *support.DEMO, "--out", results, "--again", "--seal", key).done().folder
    found = judge([results], Wanted())
    assert found.logs[str(results)].status is Status.PASS
    sealed = json.loads((honest / sealing.NAME).read_text())
    made, _ = attest.opened(sealed["envelope"], {(k := keys.private(key)).public.id: k.public})
    for before in ({"executions": [], "lines": 0, "log": None},
                   {**made["predicate"]["before"], "executions": []},
                   {**made["predicate"]["before"], "lines": 7}):  # fmt: skip
        other = {**made, "predicate": {**made["predicate"], "before": before}}
        envelope = attest.seal(other, keys.private(key))
        (honest / sealing.NAME).write_text(json.dumps(sealed | {"envelope": envelope}))
        record = support.read(honest)
        data = (honest / sealing.NAME).read_bytes()
        record["files"][sealing.NAME] = {"size": len(data), "sha256": timestamps.digest(data)}
        support.write(honest, record)
        told = judge([results], Wanted()).logs[str(results)].detail
        assert ("tells of another log" in told) == (before["lines"] != 0), told


def test_eval_seals_in_passing_and_names_what_ran_before(
    tmp_path: Path, key: Path, authority: Authority
) -> None:
    run = support.finished(tmp_path)
    out = run.parent.parent
    ran = call("eval", *support.DEMO, "--out", out, "--again", "--seal", key, "--timestamp",
               authority.address)  # fmt: skip
    again = ran.done().folder
    status, told = check(verify(again, wanted(key, authority)), "seal")
    assert "1 executions of its plan were logged before" in told
    assert (status, "before the first segment began" in told) == (Status.PASS, True)


def test_a_host_whose_clock_is_behind_the_seal_answers_nothing(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = support.planned(tmp_path)
    call("seal", run, "--key", key).done()
    monkeypatch.setattr(sealing, "now", lambda: "2020-01-02T03:04:05.678Z")
    call("execute", run).refused(
        3, "2020-01-02T03:04:05.678Z, and the run was sealed", "set the clock"
    )
    assert not list((run / "journal").glob("*"))


def test_a_run_with_answers_is_not_sealed(tmp_path: Path, key: Path, authority: Authority) -> None:
    run = support.executed(tmp_path)
    call("seal", run, "--key", key).refused(1, "has answers already")
    planned = support.planned(tmp_path / "other")
    call("seal", planned, "--key", key, "--timestamp", "ftp://x").refused(2, "http address")
    call("seal", planned, "--key", key, "--timestamp", authority.address + "mute").refused(
        3, "the authority gives no timestamp")  # fmt: skip
    for path, said in (("odd", "gives no timestamp: ODD"), ("vague", "later than this host's")):
        call("seal", planned, "--key", key, "--timestamp", authority.address + path).refused(
            3, said)  # fmt: skip
    assert not (planned / sealing.NAME).exists()


def test_an_authority_may_tell_its_accuracy_in_any_unit(authority: Authority) -> None:
    """Without whole seconds, sealing ended in a traceback, and so did who read the seal."""
    token = timestamps.ask(authority.address + "fine", b"this")
    time = timestamps.time_of(token, b"this", timestamps.authorities(authority.root))
    assert time.microsecond == 500_000
    assert timestamps.claimed(token).endswith(".500Z")
    endless = SimpleNamespace(seconds=10**12, millis=None, micros=None)
    told = SimpleNamespace(gen_time=datetime.now(UTC), accuracy=endless)
    with pytest.raises(ValueError, match="after the year 9999"):
        timestamps._latest(cast("TimeStampResponse", SimpleNamespace(tst_info=told)))


def test_an_old_timestamp_or_one_of_something_else_counts_for_nothing(
    tmp_path: Path, key: Path, authority: Authority
) -> None:
    timestamps.ask(authority.address, b"before")
    run = support.planned(tmp_path)
    call("seal", run, "--key", key, "--timestamp", authority.address + "old").refused(
        3, "no timestamp of this signature")  # fmt: skip
    other = timestamps.ask(authority.address, b"something else")
    trusted = timestamps.authorities(authority.root)
    with pytest.raises(ValueError, match="Mismatch between messages"):
        timestamps.time_of(other, b"this", trusted)
    for token in (b"", b"x" * 100, other[:-1], bytes([other[0] ^ 1]) + other[1:]):
        with pytest.raises(ValueError):
            timestamps.time_of(token, b"something else", trusted)
    certificates(tmp_path)
    with pytest.raises(ValueError):
        timestamps.time_of(other, b"something else", timestamps.authorities(tmp_path / "root.pem"))


@pytest.mark.trust  # the same
def test_a_seal_that_is_not_the_records_breaks_it(
    tmp_path: Path, key: Path, authority: Authority
) -> None:
    run = support.planned(tmp_path)
    call("seal", run, "--key", key, "--timestamp", authority.address).done()
    finished(run, key)
    good = json.loads((run / sealing.NAME).read_text())
    private = keys.private(key)
    (run / "attestation.json").unlink()

    def put(body: Any) -> Report:
        (run / sealing.NAME).write_text(json.dumps(body))
        record = support.read(run)
        data = (run / sealing.NAME).read_bytes()
        digest = {"size": len(data), "sha256": timestamps.digest(data)}
        record["files"][sealing.NAME] = digest
        support.write(run, record)
        return verify(run, wanted(key, authority))

    made, _ = attest.opened(good["envelope"], {private.public.id: private.public})
    for place, value in (
        ("ids", made["predicate"]["ids"] | {"plan": "sha256:" + "0" * 64}),
        ("execution", "0" * 32),
        ("metrics", ["demo_qa:bleu"]),
        ("numerics", {}),
        ("model", {"reference": "other", "files": {}}),
        ("sealedAt", "2126-11-30T08:07:39.312Z"),
        ("sealedAt", "some day"),
    ):
        body = json.loads(json.dumps(made))
        body["predicate"][place] = value
        report = put(good | {"envelope": attest.seal(body, private)})
        assert check(report, "seal")[0] is Status.FAIL, place
    broken = good["envelope"] | {"payload": "e30="}
    odd_ones = ({}, [], None, good | {"timestamp": "x"}, good | {"envelope": {}})
    for odd in (*odd_ones, good | {"envelope": broken}):
        assert check(put(odd), "seal")[0] is Status.FAIL, odd
    late = sealing.statement(support.read(run, "run.json"), {
        name: support.read(run)["files"][name]["sha256"] for name in sealing.FILES
    }, (), {"executions": [], "lines": 0, "log": None})  # fmt: skip
    envelope = attest.seal(late, private)
    token = timestamps.ask(authority.address, base64.b64decode(envelope["signatures"][0]["sig"]))
    report = put(good | {"envelope": envelope, "timestamp": base64.b64encode(token).decode()})
    assert "is not before the first answer" in check(report, "seal")[1]
    assert report.verdict.startswith("BROKEN")


@pytest.mark.trust
@pytest.mark.timeout(600)
def test_the_demo_of_trust_ends_in_the_line_that_the_pages_show(tmp_path: Path) -> None:
    """By the commands that people type, each in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "bench.trust_demo", tmp_path / "demo"],
        cwd=support.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    last = ran.stdout.splitlines()[-1]
    for page in ("verify.md", "seal.md"):
        assert f"\n{last}\n" in (support.ROOT / "docs" / page).read_text("utf-8")
