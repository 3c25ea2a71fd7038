"""A proxy in front of the stand-in Hub that does to chosen requests what a busy server and a bad
line do.

`FaultyHub.add` takes a fault, a pattern that is searched in a request's path, and how often it is
to happen; each rule counts its hits. Everything else passes through unchanged: HEAD, GET, POST,
ranges, and redirects to the Hub, which are turned to the proxy.
"""

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Answer:
    """What the Hub behind the proxy answers."""

    status: int
    headers: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """One request: a rule's fault is done to it, or it is passed on."""

    protocol_version = "HTTP/1.1"
    hub: "FaultyHub"

    def log_message(self, *_: object) -> None:
        """Say nothing: the proxy counts."""

    def handle_any(self) -> None:
        """Answer a request of whichever method."""
        fault = self.hub.fault_of(self.command, self.path)
        try:
            fault(self)
        except (BrokenPipeError, ConnectionResetError):  # the client has given up
            self.close_connection = True

    do_GET = do_HEAD = do_POST = handle_any

    def ask(self) -> Answer:
        """What the Hub answers to this request."""
        place = urlsplit(self.hub.upstream)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = {key: value for key, value in self.headers.items() if key.lower() not in HOP_BY_HOP}
        connection = HTTPConnection(str(place.hostname), place.port, timeout=30)
        try:
            connection.request(self.command, self.path, body or None, sent)
            found = connection.getresponse()
            headers = dict(found.getheaders())
            if headers.get("Location", "").startswith(self.hub.upstream):
                headers["Location"] = self.hub.url + headers["Location"][len(self.hub.upstream) :]
            return Answer(found.status, headers, found.read())
        finally:
            connection.close()

    def start(self, status: int, headers: dict[str, str]) -> None:
        """Send an answer's head."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()

    def hang_up(self, *, reset: bool) -> None:
        """End the connection, in an orderly way or as if the other end were gone."""
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        self.close_connection = True


Fault = Callable[[Handler], None]


def pass_on(handler: Handler) -> None:
    """No fault: the Hub's own answer."""
    answer = handler.ask()
    handler.start(answer.status, answer.headers)
    handler.wfile.write(answer.body)


def refuse(status: int, **headers: str) -> Fault:
    """Answer with this status; `Retry_After="1"` is a header."""

    def fault(handler: Handler) -> None:
        handler.ask()  # the request's body is read
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.start(status, {"Content-Length": "0", **sent})

    return fault


def cut(handler: Handler) -> None:
    """Promise the whole body, send half of it and hang up."""
    _halve(handler, reset=False)


def tear(handler: Handler) -> None:
    """Promise the whole body, send half of it and reset the connection."""
    _halve(handler, reset=True)


def _halve(handler: Handler, *, reset: bool) -> None:
    answer = handler.ask()
    handler.start(answer.status, answer.headers)
    handler.wfile.write(answer.body[: len(answer.body) // 2])
    handler.hang_up(reset=reset)


def reset(handler: Handler) -> None:
    """Reset the connection before anything is answered."""
    handler.ask()
    handler.hang_up(reset=True)


def alter(handler: Handler) -> None:
    """Answer with another byte in the middle of the body, under the same ETag and revision."""
    answer = handler.ask()
    middle = len(answer.body) // 2
    other = bytes([answer.body[middle] ^ 1]) if answer.body else b""
    handler.start(answer.status, answer.headers)
    handler.wfile.write(answer.body[:middle] + other + answer.body[middle + 1 :])


@dataclass
class Rule:
    """A fault, which requests it is done to, how many of them (None: all), and its hits so far."""

    fault: Fault
    path: str
    method: str = ""
    times: int | None = None
    hits: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is the rule's."""
        open_ = self.times is None or self.hits < self.times
        return open_ and self.method in ("", method) and bool(re.search(self.path, path))


@dataclass
class FaultyHub:
    """The proxy: its address, the Hub's behind it, its rules, and what it was asked for."""

    url: str
    upstream: str
    rules: list[Rule] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault, path: str, method: str = "", times: int | None = None) -> Rule:
        """Have a fault happen to requests from now on; the first rule that takes one has it."""
        self.rules.append(Rule(fault, path, method, times))
        return self.rules[-1]

    def heal(self) -> None:
        """Pass everything on from now on."""
        self.rules.clear()

    def fault_of(self, method: str, path: str) -> Fault:
        """What is to be done to a request, counted."""
        with self.lock:  # downloads come in threads
            self.asked.append((method, path))
            for rule in self.rules:
                if rule.takes(method, path):
                    rule.hits += 1
                    return rule.fault
        return pass_on


@contextmanager
def faulty(upstream: str) -> Iterator[FaultyHub]:
    """Run a proxy in front of the Hub at `upstream` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = FaultyHub(f"http://127.0.0.1:{server.server_address[1]}", upstream)
    server.RequestHandlerClass = type("Bound", (Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
