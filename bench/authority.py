"""A timestamp authority (RFC 3161) on loopback: `openssl ts` behind a small server, with
certificates of its own. It stands in for a public one where a test or a demo needs a timestamp.
"""

import http.server
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""
SECTION = """
[{name}]
serial = {place}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = {accuracy}
ess_cert_id_alg = sha256
"""
ACCURACIES = {"it": "secs:1", "fine": "millisecs:500", "vague": "secs:2147483647"}


@dataclass(frozen=True)
class Authority:
    """A timestamp authority: where it answers, and its root certificate."""

    address: str
    root: Path


def openssl(*words: object) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def certificates(place: Path) -> None:
    """Make a root and an authority's certificate by it, in a folder."""
    sections = (
        SECTION.format(name=name, accuracy=accuracy, place=place)
        for name, accuracy in ACCURACIES.items()
    )
    (place / "conf").write_text(CONFIG + "".join(sections))
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


@contextmanager
def served(place: Path) -> Iterator[Authority]:
    """Serve timestamps; under /old it gives its first one again, under /mute none, under /odd what
    is not HTTP, under /fine and /vague one of such an accuracy."""
    certificates(place)
    old: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/mute":
                self.send_error(503)
                return
            if self.path == "/odd":
                self.wfile.write(b"ODD\r\n\r\n")
                return
            section = self.path[1:] if self.path[1:] in ACCURACIES else "it"
            reply = old[0] if self.path == "/old" else _reply(place, query, section)
            old.append(reply)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Authority(f"http://127.0.0.1:{server.server_port}/", place / "root.pem")
    finally:
        server.shutdown()
        server.server_close()


def _reply(place: Path, query: bytes, section: str) -> bytes:
    (place / "query").write_bytes(query)
    openssl("ts", "-reply", "-queryfile", place / "query", "-inkey", place / "tsa.key",
            "-signer", place / "tsa.pem", "-config", place / "conf", "-section", section,
            "-out", place / "reply")  # fmt: skip
    return (place / "reply").read_bytes()
