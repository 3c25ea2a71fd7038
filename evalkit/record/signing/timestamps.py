"""Timestamps by RFC 3161: that some bytes were there at a time, by the word of an authority.

One is asked for at an address that the user types, over the sha256 of a signature, so that the
authority learns nothing else. It is checked offline, against the certificates of authorities that
the reader trusts; nobody else's word for a time counts. Nothing here is needed without a network.
"""

import hashlib
import http.client
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from rfc3161_client import TimeStampResponse

MAX_BYTES = 64 << 10  # of a token, with the authority's certificates
TIMEOUT_S = 30
_MAX_FILE = 1 << 20


def ask(address: str, message: bytes) -> bytes:
    """A timestamp of a message by the authority at an address; EvalkitError (3) where it gives
    none, or one that is not of this message."""
    from rfc3161_client import TimestampRequestBuilder, decode_timestamp_response

    if not address.startswith(("http://", "https://")):
        raise EvalkitError("a timestamp's authority has an http address", where=address)
    request = TimestampRequestBuilder().data(message).cert_request(cert_request=True).build()
    head = {"Content-Type": "application/timestamp-query"}
    try:
        asked = urllib.request.Request(address, request.as_bytes(), head)
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
        token = decode_timestamp_response(data)
        same = token.tst_info.message_imprint.message == _imprint(request)
        given = token.status == 0 and token.tst_info.nonce == request.nonce and same
        _latest(token)
    except (OSError, ValueError, http.client.HTTPException) as error:
        what = f"the authority gives no timestamp: {error}"
        raise EvalkitError(what, where=address, fix="try again, or another one",
                           code=Exit.MISSING) from None  # fmt: skip
    if not given or len(data) > MAX_BYTES:
        what = "the authority's answer is no timestamp of this signature"
        raise EvalkitError(what, where=address, fix="try another one", code=Exit.MISSING)
    return data


def _imprint(request: object) -> bytes:
    from rfc3161_client import TimeStampRequest

    assert isinstance(request, TimeStampRequest), "what the builder builds"
    imprint: bytes = request.message_imprint.message
    return imprint


def authorities(path: Path) -> tuple["Certificate", ...]:
    """The certificates (PEM) of authorities that a reader trusts: roots, as `openssl ts -CAfile`
    takes them; EvalkitError where there are none."""
    from cryptography.x509 import load_pem_x509_certificates

    data = canon.read_given(path, _MAX_FILE, "the certificates")
    try:
        return tuple(load_pem_x509_certificates(data))
    except ValueError as error:
        raise EvalkitError(f"no certificate can be read: {error}", where=str(path)) from None


def time_of(token: bytes, message: bytes, trusted: Sequence["Certificate"]) -> datetime:
    """The latest time that a timestamp proves a message to have been there at; ValueError where it
    proves none to who trusts these authorities."""
    from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

    if not trusted:
        raise ValueError("no authority is trusted")
    if len(token) > MAX_BYTES:
        raise ValueError("it is too long for a timestamp")
    try:
        found = decode_timestamp_response(token)
        VerifierBuilder(roots=list(trusted)).build().verify_message(found, message)
        return _latest(found)
    except VerificationError as error:
        raise ValueError(str(error)) from None


def claimed(token: bytes) -> str:
    """The latest time that a timestamp speaks of, as events write theirs; ValueError where it is
    none. Nothing is proven by it: see `time_of`."""
    from rfc3161_client import decode_timestamp_response

    latest = _latest(decode_timestamp_response(token))
    return latest.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def wait_until_past(token: bytes, address: str) -> None:
    """Return once this host's clock is past the latest time of a timestamp just given, which is its
    time and its accuracy: a second, say. EvalkitError (3) where the two clocks are far apart."""
    from rfc3161_client import decode_timestamp_response

    ahead = (_latest(decode_timestamp_response(token)) - datetime.now(UTC)).total_seconds()
    if ahead > TIMEOUT_S:
        what = f"the authority's timestamp may be {ahead:.0f} s later than this host's clock"
        raise EvalkitError(what, where=address, fix="set this host's clock, or ask another one",
                           code=Exit.MISSING)  # fmt: skip
    time.sleep(max(0.0, ahead + 0.002))  # segments are logged in whole milliseconds


def _latest(response: "TimeStampResponse") -> datetime:
    """The time of a timestamp and its accuracy, of which any part may be left out; ValueError where
    that is no time."""
    told = response.tst_info
    off = told.accuracy
    parts = (off.seconds, off.millis, off.micros) if off else ()
    seconds, millis, micros = (part or 0 for part in parts or (0, 0, 0))
    made: datetime = told.gen_time
    try:
        latest = timedelta(seconds=seconds, milliseconds=millis, microseconds=micros)
        return made.astimezone(UTC) + latest
    except OverflowError:
        raise ValueError("its time, with its accuracy, is after the year 9999") from None


def shown(at: datetime) -> str:
    """A time as records write it."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def digest(signature: bytes) -> str:
    """How a file names the signature that a timestamp is of."""
    return hashlib.sha256(signature).hexdigest()
