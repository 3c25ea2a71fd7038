"""A seal before the first answer, and timestamps by a real authority on loopback: `openssl ts`."""

import base64
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import support
from support import call

from evalkit.base.events import now
from evalkit.harness.scoring import rescore
from evalkit.judge.verify import Report, Status, Trust, Wanted, verify
from evalkit.record.signing import attest, keys, sealing, timestamps

pytest.importorskip("rfc3161_client")
if shutil.which("openssl") is None:
    pytest.skip("openssl is not here", allow_module_level=True)

CONFIG = """
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[tsa]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ts]
default_tsa = it
[it]
serial = {place}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""


@dataclass(frozen=True)
class Authority:
    """A timestamp authority: where it answers, and its root certificate."""

    address: str
    root: Path


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def certificates(place: Path) -> None:
    """A root and an authority's certificate by it."""
    (place / "conf").write_text(CONFIG.format(place=place))
    (place / "serial").write_text("01\n")
    extended = ("-days", 9, "-extfile", place / "conf", "-extensions")
    for name, subject in (("root", "/CN=Root"), ("tsa", "/CN=Authority")):
        made = ("-keyout", place / f"{name}.key", "-out", place / f"{name}.csr")
        asked = ("-newkey", "rsa:2048", "-nodes", "-subj", subject, "-config", place / "conf")
        openssl("req", "-new", *asked, *made)
    root = ("-signkey", place / "root.key", *extended, "ca", "-out", place / "root.pem")
    openssl("x509", "-req", "-in", place / "root.csr", *root)
    by = ("-CA", place / "root.pem", "-CAkey", place / "root.key", "-CAcreateserial")
    openssl("x509", "-req", "-in", place / "tsa.csr", *by, *extended, "tsa", "-out",
            place / "tsa.pem")  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """`openssl ts` behind a server on loopback."""
    place = tmp_path_factory.mktemp("authority")
    certificates(place)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/mute":
                self.send_error(503)
                return
            (place / "query").write_bytes(query)
            openssl("ts", "-reply", "-queryfile", place / "query", "-inkey", place / "tsa.key",
                    "-signer", place / "tsa.pem", "-config", place / "conf", "-section", "it",
                    "-out", place / "reply")  # fmt: skip
            reply = (place / "reply").read_bytes() if self.path != "/old" else old[0]
            old.append(reply)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    old: list[bytes] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Authority(f"http://127.0.0.1:{server.server_port}/", place / "root.pem")
    server.shutdown()


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
    """The run finished and signed, with the answers of another of the same plan, given now."""
    with tempfile.TemporaryDirectory() as place:
        other = support.executed(Path(place))
        for name in ("journal", "events"):
            shutil.copytree(other / name, run / name, dirs_exist_ok=True)
    time.sleep(2.1)  # the authority is right to a second
    for path in (run / "events").glob("*.jsonl"):
        text = re.sub(r'"time":"[^"]*"', f'"time":"{now()}"', path.read_text())
        path.write_text(text)
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
    assert report.verdict.endswith("; SEALED by alice before the first answer")
    status, told = check(report, "timestamp")
    assert status is Status.PASS and "signed by alice at 20" in told
    for reader in (wanted(key, None), Wanted(authorities=wanted(key, authority).authorities)):
        verdict = verify(run, reader).verdict
        assert "SEALED" not in verdict and "said to be sealed by" in verdict
    words = ("--key", key.with_suffix(".pub"), "--tsa", authority.root)
    ran = call("verify", run, *words).done()
    assert ran.out.splitlines()[-1].endswith("SEALED by alice before the first answer")


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


def test_a_run_with_answers_is_not_sealed(tmp_path: Path, key: Path, authority: Authority) -> None:
    run = support.executed(tmp_path)
    call("seal", run, "--key", key).refused(1, "has answers already")
    planned = support.planned(tmp_path / "other")
    call("seal", planned, "--key", key, "--timestamp", "ftp://x").refused(2, "http address")
    call("seal", planned, "--key", key, "--timestamp", authority.address + "mute").refused(
        3, "the authority gives no timestamp")  # fmt: skip
    assert not (planned / sealing.NAME).exists()


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
